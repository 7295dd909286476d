"""Compose: writes all variants of an output shard from layers and backgrounds, and its index."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import operator
import os
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import cv2
import pyarrow as pa

from pipeline.dataset.config import fingerprint
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    ImageRow,
    count_sources,
    index_file,
    read_image_rows,
)
from pipeline.dataset.sinks import (
    Sample,
    decode_layer,
    digests_of,
    layer_digest,
    layer_ranges,
    open_sinks,
    sample_schema,
)
from pipeline.errors import JobError
from pipeline.generate.custom_variants import find_variants
from pipeline.generate.cut_source import Cutter, SourceBytes, read_source
from pipeline.generate.job import JobStep
from pipeline.generate.plan import Plan, PlannedImage, load_plan
from pipeline.generate.scenes import DrawnScenes, Scene
from pipeline.generate.shard_elements import OutputShard
from pipeline.inputs.location import changed, reads_ahead, shown
from pipeline.inputs.recipe import Recipe
from pipeline.runtime.progress import Tally, count_shard, timed
from pipeline.storage.interface import REQUESTS_IN_FLIGHT, Files, read_ahead
from pipeline.storage.store import FileDigest, Store
from transforms.codec import (
    TooManyPixelsError,
    UndecodableError,
    decode_image,
    encode_jpeg,
    encode_png,
)
from transforms.filters import Reason
from transforms.geometry import Pixels
from transforms.hashing import keyed_hash
from transforms.layers import Layer
from transforms.taxonomy import imagenet_index
from transforms.variants import EXTERNAL, MIXED, base_of, gaussian_noise, with_replicates

ReadBackground = Pixels | SourceBytes
"""A background: pixels of a scene, or of a tiled background from a tar, or the bytes of the source
image to cut it from with `LayerSource.cut_tiled`."""

_Decoded = TypeVar("_Decoded")


@dataclasses.dataclass(frozen=True)
class SelectedImage:
    """An image of an output shard that is part of the dataset.

    Attributes:
      row: its row in the record.
      planned: what the plan knows of it.
      backgrounds: what was drawn for each replicate of a mixed variant: another image, or for
        `mixed_external` a scene.
    """

    row: ImageRow
    planned: PlannedImage
    backgrounds: dict[str, PlannedImage | Scene]


@dataclasses.dataclass(eq=False)
class LayerSource:
    """Layers of planned images, read from tars, or cut again from the source images.

    They are cut again if `--layers drop` has removed the tars.

    Attributes:
      store: the dataset folder.
      cutter: cuts source images.
      scenes: the accepted scenes; None without `mixed_external`.
      recipe: the recipe that the dataset is made from; None without one.
    """

    store: Store
    cutter: Cutter
    scenes: DrawnScenes | None = None
    recipe: Recipe | None = None
    # Kept, like the files, because making them takes longer than a read from the system's cache.
    _paths: dict[str, str] = dataclasses.field(default_factory=dict, init=False)

    @functools.cached_property
    def _files(self) -> Files:
        return self.store.files

    def layers(
        self, images: Sequence[SelectedImage]
    ) -> Generator[tuple[SelectedImage, Layer, dict[str, ReadBackground]], None, None]:
        """Reads the layers of selected images, and the tiled backgrounds that were drawn for them.

        Yields:
          (image, layer, backgrounds by mixed variant), in the order of the images.

        Raises:
          JobError: a tar is damaged, or cutting an image again gives another layer than before. A
            background that is cut again is not compared.
          OSError: a file cannot be read.
        """
        ahead = REQUESTS_IN_FLIGHT * self.store.is_remote
        for image, (layer, backgrounds) in read_ahead(self._read, images, ahead):
            if isinstance(layer, SourceBytes):
                layer = self._cut(image, layer)
            yield image, layer, backgrounds

    def _read(self, image: SelectedImage) -> tuple[Layer | SourceBytes, dict[str, ReadBackground]]:
        """Reads the layer of an image, or the bytes to cut it from, and its backgrounds."""
        layer: Layer | SourceBytes
        if image.planned.tar is None:
            layer = _source(image.planned, image.planned.mask)
        else:
            decode = functools.partial(decode_layer, box=image.row.box or ())
            layer = self._decoded(image.planned.tar, layer_ranges(vars(image.row)), decode)
        drawn = image.backgrounds.items()
        return layer, {name: self._read_background(each) for name, each in drawn}

    def _read_background(self, background: PlannedImage | Scene) -> ReadBackground:
        if isinstance(background, Scene):
            assert self.scenes is not None
            return self.scenes.picture(background)
        if background.tar is None:
            # A recipe's boxes are enough to cut a background.
            return _source(background, None if self.recipe else background.mask)
        ranges = [(background.offset, background.length)]
        return self._decoded(background.tar, ranges, decode_image)

    def _decoded(
        self, tar: str, ranges: list[tuple[int, int]], decode: Callable[..., _Decoded]
    ) -> _Decoded:
        """Reads parts of a tar and decodes them.

        Raises JobError if they are damaged, or OSError if the same parts, read again, are others:
        they were corrupted on the way.
        """
        if tar not in self._paths:
            self._paths[tar] = self.store.path(tar)
        path = self._paths[tar]
        parts = self._files.read_ranges(path, ranges)
        try:
            return decode(*parts)
        except (UndecodableError, TooManyPixelsError) as error:
            if self._files.read_ranges(path, ranges) != parts:
                raise changed(path) from error
            raise JobError(
                f"{path} is damaged ({error}). Remove it and run the same command again"
            ) from error

    def _cut(self, image: SelectedImage, source: SourceBytes) -> Layer:
        """Cuts an image again."""
        layer: Layer | None
        if self.recipe is None:
            cuts = self.cutter.cut(source)
            layer = next((cut.layer for cut in cuts if cut.number == source.number), None)
        else:
            layer = self.cutter.cut_along(source.image, image.row, source.mask or b"")
        if layer is None or layer_digest(layer) != image.planned.layer_digest:
            raise self._changed(source)
        return layer

    def cropped(
        self, images: Sequence[SelectedImage]
    ) -> Generator[tuple[SelectedImage, Pixels], None, None]:
        """Yields (image, picture) for selected images that are not cut apart, in their order.

        Raises like `layers`.
        """
        # The number depends on the storage of the input, which may differ from the dataset's.
        ahead = reads_ahead(os.fsdecode(images[0].planned.source)) if images else 0
        for image, source in read_ahead(lambda image: _source(image.planned, None), images, ahead):
            whole = self.cutter.crop(source)
            if whole.image is None or whole.digest != image.planned.layer_digest:
                raise self._changed(source)
            yield image, whole.image

    def _changed(self, source: SourceBytes) -> JobError:
        if self.recipe is not None:
            return self.recipe.other_layer(source.location)
        return JobError(
            f"{shown(source.location)} gives another layer than before, because "
            "the file or a library has changed. Remove "
            f"{self.store.path('layers')} and run the same command again"
        )

    def cut_tiled(self, source: SourceBytes) -> Pixels:
        """Cuts a background again; returns (S, S, 3) uint8 RGB.

        S is the side of the dataset's pictures in pixels. Raises JobError if the source image
        cannot be cut any more.
        """
        try:
            return self.cutter.cut_background(source)
        except ValueError as error:
            raise self._changed(source) from error


def _source(planned: PlannedImage, its_mask: bytes | None) -> SourceBytes:
    """Reads the files that an accepted image was cut from, and the mask at a location."""
    files = (planned.annotation, its_mask)
    annotation, mask = (None if file is None else os.fsdecode(file) for file in files)
    return read_source(os.fsdecode(planned.source), annotation, mask, planned.object or 0)


def index_schema(replicates: int) -> pa.Schema:
    """Returns the schema of the index.

    The index has a row for every source image (with `--objects each`, for every object), accepted
    or not. A value is null where the image has no such value.

    Args:
      replicates: number of replicates of the mixed variants.
    """
    return pa.schema(
        [
            *(
                RECORD_SCHEMA.field(name)
                for name in (
                    *("key", "path", "wnid", "label", "status", "detail", "width", "height"),
                    *("source_md5", "native_box", "box", "mask_over_box", "fg_fraction"),
                    *("group", "object"),
                )
            ),
            pa.field("selected", pa.bool_(), nullable=False),
            *(
                pa.field(f"{variant}_bg_key", pa.string())
                for variant in with_replicates((*MIXED, EXTERNAL), replicates)
            ),
            pa.field("segmenter", pa.string()),
        ]
    )


class ComposeShard(JobStep):
    """Planned OutputShard -> the same shard, composed. One call does all the work on a shard."""

    def setup(self) -> None:
        cv2.setNumThreads(1)
        self._variants = find_variants(self.config.compose.variants)

    @timed("compose")
    def process(self, output: OutputShard) -> list[OutputShard]:
        store, config = self.outputs.store, self.config.compose
        cutter = Cutter(self.config.segment)
        plan = load_plan(store, output.plan, config, output.plan_digest)
        records = (read_image_rows(store, source.path) for source in output.sources)
        images = sorted((row for rows in records for row in rows), key=operator.attrgetter("rank"))
        scenes = None
        if output.scenes is not None:
            scenes = DrawnScenes(output.scenes, self.outputs, cutter, config)
        rows, selected = self._select(images, plan, scenes)
        checksum = self._fingerprint(output, rows, selected)
        index = index_file(output.totals.split, output.shard, output.totals.counts.output)
        record = self.outputs.find(index, checksum)
        name = f"{output.totals.split}-{output.shard:05d}"
        tally = Tally(self.job.progress, "compose", name)
        if record is None:
            is_new = True
            source = LayerSource(store, cutter, scenes, self.job.recipe)
            files = self.write_variants(output, source, list(selected.values()), tally)
            tally.add("images_composed", len(selected))
            tally.note()
            schema = index_schema(config.replicates)
            content = [{name: row.get(name) for name in schema.names} for row in rows]
            table = pa.Table.from_pylist(content, schema)
            record = self.outputs.write(index, table, checksum, files)
        else:
            is_new = tally.load()
            record = self.outputs.with_record(record, index, len(rows))
        count_shard("output_shards", record.files, is_new=is_new)
        tally.end()
        # Images that were not selected count as finished, too.
        tally.note_done(count_sources(images))
        return [output.with_result(record, rows, count_sources(images))]

    def _select(
        self, images: list[ImageRow], plan: Plan, scenes: DrawnScenes | None
    ) -> tuple[list[dict[str, Any]], dict[str, SelectedImage]]:
        """Returns (the rows of the shard's index, the selected images by key)."""
        segment = self.config.segment
        label = None if segment.keeps_image_whole else segment.describe_segmenter().label
        accepted = [row.key for row in images if row.status == ACCEPTED]
        planned = dict(zip(accepted, plan.find(accepted), strict=True))
        keys = [key for key in accepted if planned[key].selected]
        drawn: dict[str, Sequence[PlannedImage | Scene]]
        drawn = {**plan.backgrounds(keys), **(scenes.draw(keys) if scenes else {})}
        backgrounds = {
            key: {variant: column[number] for variant, column in drawn.items()}
            for number, key in enumerate(keys)
        }
        rows, selected = [], {}
        for row in images:
            columns: dict[str, Any] = {**vars(row), "selected": False, "segmenter": label}
            if row.status == ACCEPTED and row.key in backgrounds:
                own = backgrounds[row.key]
                selected[row.key] = SelectedImage(row, planned[row.key], own)
                columns["selected"] = True
                columns |= {f"{variant}_bg_key": each.key for variant, each in own.items()}
            elif row.status == ACCEPTED and planned[row.key].no_background:
                columns["status"] = str(Reason.NO_BACKGROUND)
                columns["detail"] = "no other image can give it a background"
            rows.append(columns)
        return rows, selected

    def _fingerprint(
        self, output: OutputShard, rows: list[dict[str, Any]], selected: dict[str, SelectedImage]
    ) -> str:
        """Identifies everything that the files of a shard depend on.

        This is the configuration, the classes, the number of the shard, the source shards, the
        selection, and the backgrounds that were drawn, with their pixels and classes.
        """
        backgrounds = {
            key: [[name, _fields_of(each), each.layer_digest] for name, each in drawn.items()]
            for key, drawn in ((key, image.backgrounds) for key, image in selected.items())
        }
        drawn = [
            [row["key"], row["status"], row["selected"], *backgrounds.get(row["key"], ())]
            for row in rows
        ]
        return fingerprint(
            self.config.compose.fingerprint(),
            [output.shard, output.totals.counts.output],
            [source.fingerprint for source in output.sources],
            drawn,
            self.job.taxonomy.description,
        )

    def write_variants(
        self,
        output: OutputShard,
        source: LayerSource,
        images: Sequence[SelectedImage],
        tally: Tally,
    ) -> tuple[FileDigest, ...]:
        """Writes all variants of a shard to the staging folder, in every format.

        Args:
          output: the shard, as planned.
          source: reads the layers.
          images: the selected images.
          tally: counts finished source images.

        Returns:
          Digests of the files, with their final paths.
        """
        with self.outputs.store.together() as store, contextlib.ExitStack() as stack:
            sinks = open_sinks(
                stack,
                store,
                self.outputs,
                variants=self.config.compose.composed,
                formats=self.config.compose.formats,
                schema=sample_schema(self.job.taxonomy.names),
                split=output.totals.split,
                shard=output.shard,
                num_shards=output.totals.counts.output,
            )
            composed = stack.enter_context(contextlib.closing(self._compose(source, images)))
            for image, pictures in composed:
                for variant, picture in pictures.items():
                    sample = self._sample(image, variant, picture)
                    for sink in sinks[variant]:
                        sink.add(sample)
                tally.advance(image.row.is_first)
        return digests_of(sinks)

    def _compose(
        self, source: LayerSource, images: Sequence[SelectedImage]
    ) -> Generator[tuple[SelectedImage, dict[str, Pixels]], None, None]:
        """Yields (image, pictures by variant) for each selected image."""
        names = self.config.compose.composed
        if self.config.segment.keeps_image_whole:
            for image, picture in source.cropped(images):
                yield image, dict.fromkeys(names, picture)
            return
        with_noise = any(variant.from_noise for variant in self._variants.values())
        for image, layer, backgrounds in source.layers(images):
            noise = None
            if with_noise:
                # All variants of an image share one noise picture, and each shows the part that it
                # needs.
                draw = keyed_hash(self.config.compose.seed, "noise", image.row.key)
                noise = gaussian_noise(draw, layer.image.shape)
            pictures = {}
            for name in names:
                tiled = backgrounds.get(name)
                if isinstance(tiled, SourceBytes):
                    tiled = source.cut_tiled(tiled)
                pictures[name] = self._variants[base_of(name)].compose(layer, tiled, noise)
            yield image, pictures

    def _sample(self, image: SelectedImage, variant: str, picture: Pixels) -> Sample:
        config, row = self.config.compose, image.row
        as_png = config.encoding == "png" or self._variants[base_of(variant)].lossless
        return Sample(
            key=row.key,
            image=encode_png(picture) if as_png else encode_jpeg(picture, config.jpeg_quality),
            suffix="png" if as_png else "jpg",
            fields={
                "label": row.label,
                "wnid": row.wnid,
                "imagenet_index": imagenet_index(row.wnid or ""),
                "fg_key": row.key,
                **_fields_of(image.backgrounds.get(variant)),
                "box": row.box,
                "fg_fraction": row.fg_fraction,
            },
        )


def _fields_of(background: PlannedImage | Scene | None) -> dict[str, Any]:
    """Returns the columns of a sample about its background.

    All are None if the variant draws no background; a scene has a key, but no class.
    """
    names = ("key", "label", "wnid")
    return {f"bg_{name}": background and getattr(background, name) for name in names}
