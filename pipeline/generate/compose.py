"""Compose: all variants of an output shard from the layers, and its index rows."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import cv2
import pyarrow as pa

from pipeline.dataset.config import ComposeConfig, SegmentConfig
from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.records import (
    ACCEPTED,
    GROUP_FIELD,
    OBJECT_FIELD,
    RECORD_SCHEMA,
    FoundShard,
    ShardFiles,
    Staging,
    count_sources,
    read_rows,
    with_labels,
    write_table,
)
from pipeline.dataset.shards import bucket_hash, index_file, parquet_file, webdataset_file
from pipeline.dataset.sinks import ParquetSink, Sample, Sink, WebDatasetSink, sample_schema
from pipeline.errors import JobError
from pipeline.generate.layer_source import Backgrounds, LayerSource
from pipeline.generate.own_variants import find_variants
from pipeline.generate.plan import OutputShard, Plan, load_plan
from pipeline.generate.scenes import DrawnScenes
from pipeline.generate.segmented import SourceFiles
from pipeline.runner.counters import count, count_written, timed
from pipeline.runner.progress import Progress
from pipeline.storage.store import FileDigest, Store
from transforms.codec import encode_jpeg, encode_png
from transforms.filters import Reason
from transforms.geometry import Pixels
from transforms.taxonomy import Taxonomy, imagenet9, imagenet_index
from transforms.variants import EXTERNAL, MIXED, base_of, with_replicates


def index_schema(
    replicates: int,
    with_segmenter: bool = False,
    *,
    with_groups: bool = False,
    with_objects: bool = False,
    with_scenes: bool = False,
) -> pa.Schema:
    """Columns of the index, which has one row for every source image, accepted or not.

    Args:
      replicates: of the mixed variants.
      with_segmenter: whether rows name it: they do unless it is GrabCut, whose indices were
        made before there were others.
      with_groups, with_objects: as for `record_schema`.
      with_scenes: whether there is `mixed_external`.
    """
    mixed = (*MIXED, EXTERNAL) if with_scenes else MIXED
    return pa.schema(
        [
            *(
                RECORD_SCHEMA.field(name)
                for name in (
                    *("key", "path", "wnid", "label", "status", "detail", "width", "height"),
                    *("box", "mask_over_box", "fg_fraction"),
                )
            ),
            pa.field("selected", pa.bool_(), nullable=False),
            *(
                pa.field(f"{variant}_bg_key", pa.string())
                for variant in with_replicates(mixed, replicates)
            ),
            *[GROUP_FIELD] * with_groups,
            *[OBJECT_FIELD] * with_objects,
            *([pa.field("segmenter", pa.string(), nullable=False)] if with_segmenter else []),
        ]
    )


@dataclasses.dataclass(frozen=True)
class ComposedShard:
    """An output shard that is up to date.

    Attributes:
      output: the shard, as planned.
      fingerprint: of everything that went into it.
      moves: (where a file lies now, its final path), the index last.
      files: digests under final paths, source shards' records and layers included.
      images: number of source images.
      statuses: number of rows of the index by status: of images, or of objects where each of an
        image's is one.
      selected: number of selected images by label.
    """

    output: OutputShard
    fingerprint: str
    moves: tuple[tuple[str, str], ...]
    files: tuple[FileDigest, ...]
    images: int
    statuses: dict[str, int]
    selected: dict[int, int]


class ComposeShard(beam.DoFn):
    """OutputShard -> ComposedShard. The whole of a shard's work is one element's."""

    def __init__(
        self,
        segment: SegmentConfig,
        config: ComposeConfig,
        staging: Staging,
        taxonomy: Taxonomy,
        progress: Progress,
    ) -> None:
        self._segment = segment
        self._config = config
        self._staging = staging
        self._taxonomy = taxonomy
        # Its names are in the files; ImageNet-9's were there before there were others.
        self._own = [] if taxonomy == imagenet9() else [taxonomy.about]
        self._progress = progress

    def setup(self) -> None:
        cv2.setNumThreads(1)
        self._variants = find_variants(self._config.variants)

    def process(self, output: OutputShard) -> Iterator[ComposedShard]:
        with timed("compose"):
            composed = self._compose(output)
        yield composed

    def _compose(self, output: OutputShard) -> ComposedShard:
        store = self._staging.store
        plan = load_plan(store, output.plan, self._config, output.plan_digest)
        rows = _source_rows(self._staging, output.sources)
        scenes = None
        if output.scenes is not None:
            scenes = DrawnScenes(output.scenes, self._staging, self._segment, self._config)
        drawn = self._plan_rows(plan, scenes, rows)
        checksum = self._fingerprint(output, drawn, rows)
        index = index_file(output.totals.split, output.shard, output.totals.counts.output)
        found = self._staging.find(index, checksum)
        if found is None:
            files = self._write_variants(output, drawn, rows)
            segmenter = self._segment.find_segmenter()
            by_object = self._segment.objects == "each"
            schema = with_labels(
                index_schema(
                    self._config.replicates,
                    segmenter.method != "grabcut" and not self._segment.is_whole,
                    with_groups=by_object or output.totals.has_groups,
                    with_objects=by_object,
                    with_scenes=scenes is not None,
                ),
                self._taxonomy.num_labels,
            )
            for row in rows:
                row["segmenter"] = segmenter.label
            table = pa.Table.from_pylist(
                [{n: r.get(n) for n in schema.names} for r in rows], schema
            )
            write_table(store, self._staging.staged(index), table, ShardFiles(checksum, files))
            found = self._staging.find(index, checksum)
            if found is None:
                raise OSError(f"{index} is not there after it was written")
            count("output_shards_made")
            count_written(found.files)
        else:
            count("output_shards_kept")
        name = f"{output.totals.split}-{output.shard:05d}"
        self._progress.note_done("compose", name, count_sources(rows))
        return self._composed(output, found, checksum, index, rows)

    def _plan_rows(
        self, plan: Plan, scenes: DrawnScenes | None, rows: list[dict[str, Any]]
    ) -> Backgrounds:
        """Completes index rows by the plan; returns what was drawn for the selected ones."""
        chosen = []
        for row in rows:
            accepted = row["status"] == ACCEPTED
            place = plan.place(row["key"]) if accepted else 0
            row["selected"] = accepted and plan.value("selected", place)
            if row["selected"]:
                chosen.append(row)
            elif accepted and plan.value("no_background", place):
                row["status"] = str(Reason.NO_BACKGROUND)
                row["detail"] = "no other image can give it a background"
        keys = [row["key"] for row in chosen]
        drawn = plan.backgrounds(keys) | (scenes.draw(keys) if scenes else {})
        places = {
            key: {name: int(of_variant[position]) for name, of_variant in drawn.items()}
            for position, key in enumerate(keys)
        }
        backgrounds = Backgrounds(plan, scenes, places)
        for row in chosen:
            for variant, place in places[row["key"]].items():
                row[f"{variant}_bg_key"] = backgrounds.key(variant, place)
        return backgrounds

    def _fingerprint(
        self, output: OutputShard, backgrounds: Backgrounds, rows: list[dict[str, Any]]
    ) -> str:
        """Everything that the shard's files depend on: configuration, own source shards,
        what was selected, and which backgrounds with which pixels were drawn."""
        drawn = [
            [row["key"], row["status"], row["selected"]]
            + [
                [variant, backgrounds.key(variant, place), backgrounds.content(variant, place)]
                for variant, place in backgrounds.places.get(row["key"], {}).items()
            ]
            for row in rows
        ]
        return fingerprint(
            self._config.fingerprint(),
            [output.shard, output.totals.counts.output],
            [source.fingerprint for source in output.sources],
            drawn,
            *self._own,
            # An index has the column if images elsewhere in the split have groups.
            *(["groups"] if output.totals.has_groups else []),
        )

    def _write_variants(
        self, output: OutputShard, backgrounds: Backgrounds, rows: list[dict[str, Any]]
    ) -> tuple[FileDigest, ...]:
        source = LayerSource(self._staging.store, backgrounds, self._segment)
        selected = [row for row in rows if row["selected"]]
        with self._staging.store.together() as store, contextlib.ExitStack() as stack:
            sinks = {
                variant: self._open_sinks(stack, store, output, variant)
                for variant in self._config.composed
            }
            if self._segment.is_whole:
                whole = stack.enter_context(contextlib.closing(source.whole(selected)))
                self._write_whole(backgrounds, whole, sinks)
                selected = []
            layers = stack.enter_context(contextlib.closing(source.layers(selected)))
            for row, layer, encoded in layers:
                for variant, variant_sinks in sinks.items():
                    background = backgrounds.fields(row["key"], variant)
                    tiled = source.tiled(encoded[variant]) if variant in encoded else None
                    picture = self._variants[base_of(variant)].compose(layer, tiled)
                    sample = self._sample(row, variant, picture, background)
                    for sink in variant_sinks:
                        sink.add(sample)
                count("images_composed")
        digests = [sink.digest() for variant_sinks in sinks.values() for sink in variant_sinks]
        return tuple(digest for digest in digests if digest is not None)

    def _write_whole(
        self,
        backgrounds: Backgrounds,
        pictures: Iterable[tuple[dict[str, Any], Pixels]],
        sinks: dict[str, list[Sink]],
    ) -> None:
        """Writes images that are not cut apart."""
        for row, picture in pictures:
            for variant, variant_sinks in sinks.items():
                background = backgrounds.fields(row["key"], variant)
                sample = self._sample(row, variant, picture, background)
                for sink in variant_sinks:
                    sink.add(sample)
            count("images_composed")

    def _open_sinks(
        self, stack: contextlib.ExitStack, store: Store, output: OutputShard, variant: str
    ) -> list[Sink]:
        sinks: list[Sink] = []
        if "parquet" in self._config.formats:
            path = parquet_file(
                variant, output.totals.split, output.shard, output.totals.counts.output
            )
            schema = sample_schema(self._taxonomy.names, boxes=not self._segment.is_whole)
            sinks.append(
                stack.enter_context(
                    ParquetSink.open(store, self._staging.staged(path), path, schema)
                )
            )
        if "webdataset" in self._config.formats:
            path = webdataset_file(variant, output.totals.split, output.shard)
            sinks.append(
                stack.enter_context(WebDatasetSink.open(store, self._staging.staged(path), path))
            )
        return sinks

    def _sample(
        self,
        row: dict[str, Any],
        variant: str,
        picture: Pixels,
        background: dict[str, Any],
    ) -> Sample:
        as_png = self._config.encoding == "png" or self._variants[base_of(variant)].lossless
        return Sample(
            key=row["key"],
            image=encode_png(picture)
            if as_png
            else encode_jpeg(picture, self._config.jpeg_quality),
            suffix="png" if as_png else "jpg",
            fields={
                "label": row["label"],
                "wnid": row["wnid"],
                "imagenet_index": imagenet_index(row["wnid"]),
                "fg_key": row["key"],
                **background,
                "box": row["box"],
                "fg_fraction": row["fg_fraction"],
            },
        )

    def _composed(
        self,
        output: OutputShard,
        found: FoundShard,
        checksum: str,
        index: str,
        rows: list[dict[str, Any]],
    ) -> ComposedShard:
        moves: list[tuple[str, str]] = []
        files: list[FileDigest] = []
        for source in output.sources:
            *tars, record = (file.path for file in source.digests)
            moves += [(source.tar, tar) for tar in tars if source.tar is not None]
            moves.append((source.record, record))
            files += source.digests
        selected = Counter(row["label"] for row in rows if row["selected"])
        for file in found.files:
            if file.samples != selected.total():
                raise JobError(f"{file.path}: {file.samples} of {selected.total()} samples")
        moves += [(found.where[file.path], file.path) for file in found.files]
        moves.append((found.record, index))
        files += [*found.files, self._staging.digest_of(found.record, index, len(rows))]
        return ComposedShard(
            output=output,
            fingerprint=checksum,
            moves=tuple(moves),
            files=tuple(files),
            images=count_sources(rows),
            statuses=dict(Counter(row["status"] for row in rows)),
            selected=dict(selected),
        )


def _source_rows(staging: Staging, sources: tuple[SourceFiles, ...]) -> list[dict[str, Any]]:
    """Record rows of all source images of an output shard, in their final order."""
    rows = [row for source in sources for row in read_rows(staging.store, source.record)]
    return sorted(rows, key=lambda row: (bucket_hash(row["key"]), row["key"], row["path"]))
