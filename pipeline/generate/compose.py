"""Compose: writes all variants of an output shard from its layers, and then its index."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Generator, Sequence
from typing import Any

import cv2
import pyarrow as pa

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    ImageRow,
    count_sources,
    read_image_rows,
)
from pipeline.dataset.shards import index_file
from pipeline.dataset.sinks import Sample, digests_of, open_sinks, sample_schema
from pipeline.generate.custom_variants import find_variants
from pipeline.generate.cut_source import Cutter, SourceBytes
from pipeline.generate.job import JobStep
from pipeline.generate.layer_source import LayerSource, SelectedImage
from pipeline.generate.plan import Plan, PlannedImage, load_plan
from pipeline.generate.scenes import DrawnScenes, Scene
from pipeline.generate.shard_elements import OutputShard
from pipeline.runtime.counters import UnitTally, count_shard, timed
from pipeline.storage.store import FileDigest
from transforms.codec import encode_jpeg, encode_png
from transforms.filters import Reason
from transforms.geometry import Pixels
from transforms.hashing import keyed_hash
from transforms.taxonomy import imagenet_index
from transforms.variants import EXTERNAL, MIXED, base_of, gaussian_noise, with_replicates


def index_schema(replicates: int) -> pa.Schema:
    """Returns the schema of the index, which has a row for every source image (with `--objects
    each`, for every object), accepted or not; a value is null where the image has no such value.

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
        images = sorted(itertools.chain(*records), key=operator.attrgetter("rank"))
        scenes = None
        if output.scenes is not None:
            scenes = DrawnScenes(output.scenes, self.outputs, cutter, config)
        rows, selected = self._select(images, plan, scenes)
        checksum = self._fingerprint(output, rows, selected)
        index = index_file(output.totals.split, output.shard, output.totals.counts.output)
        record = self.outputs.find(index, checksum)
        name = f"{output.totals.split}-{output.shard:05d}"
        tally = UnitTally(self.job.progress, "compose", name)
        if record is None:
            is_new = True
            source = LayerSource(store, cutter, scenes)
            files = self.write_variants(output, source, list(selected.values()), tally)
            tally.add("images_composed", len(selected))
            tally.note()
            schema = index_schema(config.replicates)
            content = [{name: row.get(name) for name in schema.names} for row in rows]
            table = pa.Table.from_pylist(content, schema)
            record = self.outputs.write(index, table, checksum, files)
        else:
            is_new = tally.recall()
            record = self.outputs.with_record(record, index, len(rows))
        count_shard("output_shards", record.files, is_new=is_new)
        tally.end()
        # Images that were not selected count as finished, too.
        tally.note_done(count_sources(images))
        return [output.composed(record, rows, count_sources(images))]

    def _select(
        self, images: list[ImageRow], plan: Plan, scenes: DrawnScenes | None
    ) -> tuple[list[dict[str, Any]], dict[str, SelectedImage]]:
        """Returns (the rows of the shard's index, the selected images by key)."""
        segment = self.config.segment
        label = None if segment.is_whole else segment.describe_segmenter().label
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
        """Identifies everything that the files of a shard depend on: configuration, classes, number
        of the shard, source shards, selection, and the backgrounds that were drawn, with their
        pixels and classes."""
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
        tally: UnitTally,
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
        if self.config.segment.is_whole:
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
    """Returns the columns of a sample about its background. All are None if the variant draws no
    background; a scene has a key, but no class."""
    names = ("key", "label", "wnid")
    return {f"bg_{name}": background and getattr(background, name) for name in names}
