"""Compose: writes all variants of an output shard from its layers, and then its index."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import apache_beam as beam
import cv2
import pyarrow as pa

from pipeline.dataset.config import ComposeConfig, SegmentConfig
from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    Record,
    Staging,
    count_sources,
    is_first,
    read_rows,
)
from pipeline.dataset.shards import bucket_hash, index_file
from pipeline.dataset.sinks import Sample, digests_of, open_sinks, sample_schema
from pipeline.generate.custom_variants import find_variants
from pipeline.generate.layer_source import Backgrounds, LayerSource
from pipeline.generate.plan import Plan, load_plan
from pipeline.generate.scenes import DrawnScenes
from pipeline.generate.shard_elements import OutputShard
from pipeline.runtime.counters import UnitTally, count_shard, timed
from pipeline.runtime.progress import Meter, Progress
from pipeline.storage.store import FileDigest
from transforms.codec import encode_jpeg, encode_png
from transforms.filters import Reason
from transforms.geometry import Pixels
from transforms.hashing import keyed_hash
from transforms.taxonomy import Taxonomy, imagenet_index
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


class VariantFiles:
    """Writes the variants of output shards, in every format.

    Args:
      segment: configuration of the layers.
      config: configuration of the variants.
      staging: staging folder that the files are written to.
      taxonomy: classes whose names the files hold.
    """

    def __init__(
        self, segment: SegmentConfig, config: ComposeConfig, staging: Staging, taxonomy: Taxonomy
    ) -> None:
        self._segment = segment
        self._config = config
        self._staging = staging
        self._schema = sample_schema(taxonomy.names)
        self._variants = find_variants(config.variants)
        self._with_noise = any(variant.from_noise for variant in self._variants.values())

    def write(
        self,
        output: OutputShard,
        backgrounds: Backgrounds,
        rows: list[dict[str, Any]],
        meter: Meter,
    ) -> tuple[FileDigest, ...]:
        """Writes all variants of a shard to the staging folder.

        Args:
          output: the shard, as planned.
          backgrounds: the backgrounds that were drawn for the selected images.
          rows: all rows of the shard's index.
          meter: counts finished source images.

        Returns:
          Digests of the files, with their final paths.
        """
        source = LayerSource(self._staging.store, backgrounds, self._segment)
        selected = [row for row in rows if row["selected"]]
        with self._staging.store.together() as store, contextlib.ExitStack() as stack:
            sinks = open_sinks(
                stack,
                store,
                self._staging,
                variants=self._config.composed,
                formats=self._config.formats,
                schema=self._schema,
                split=output.totals.split,
                shard=output.shard,
                num_shards=output.totals.counts.output,
            )
            composed = stack.enter_context(contextlib.closing(self._compose(source, selected)))
            for row, pictures in composed:
                for variant, picture in pictures.items():
                    background = backgrounds.fields(row["key"], variant)
                    sample = self._sample(row, variant, picture, background)
                    for sink in sinks[variant]:
                        sink.add(sample)
                meter.add(is_first(row))
        return digests_of(sinks)

    def _compose(
        self, source: LayerSource, rows: list[dict[str, Any]]
    ) -> Generator[tuple[dict[str, Any], dict[str, Pixels]], None, None]:
        """Yields (row, pictures by variant) for each selected image."""
        names = self._config.composed
        if self._segment.is_whole:
            for row, picture in source.cropped(rows):
                yield row, dict.fromkeys(names, picture)
            return
        for row, layer, backgrounds in source.layers(rows):
            noise = None
            if self._with_noise:
                # All variants of an image share one noise picture, and each shows the part that it
                # needs.
                draw = keyed_hash(self._config.seed, "noise", row["key"])
                noise = gaussian_noise(draw, layer.image.shape)
            pictures = {}
            for name in names:
                tiled = source.tiled(backgrounds[name]) if name in backgrounds else None
                pictures[name] = self._variants[base_of(name)].compose(layer, tiled, noise)
            yield row, pictures

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


class ComposeShard(beam.DoFn):
    """Planned OutputShard -> the same shard, composed. One call does all the work on a shard."""

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
        self._progress = progress

    def setup(self) -> None:
        cv2.setNumThreads(1)
        self._files = VariantFiles(self._segment, self._config, self._staging, self._taxonomy)

    @timed("compose")
    def process(self, output: OutputShard) -> list[OutputShard]:
        store = self._staging.store
        plan = load_plan(store, output.plan, self._config, output.plan_digest)
        rows = _source_rows(self._staging, output.sources)
        scenes = None
        if output.scenes is not None:
            scenes = DrawnScenes(output.scenes, self._staging, self._segment, self._config)
        drawn = self._plan_rows(plan, scenes, rows)
        checksum = self._fingerprint(output, drawn, rows)
        index = index_file(output.totals.split, output.shard, output.totals.counts.output)
        record = self._staging.find(index, checksum)
        name = f"{output.totals.split}-{output.shard:05d}"
        meter = Meter(self._progress, "compose", name)
        tally = UnitTally(self._progress, "compose", name)
        if record is None:
            is_new = True
            record = self._make(output, drawn, rows, index, checksum, meter, tally)
        else:
            is_new = tally.recall()
            record = self._staging.with_record(record, index, len(rows))
        count_shard("output_shards", record.files, is_new=is_new)
        tally.end()
        # Images that were not selected count as finished, too.
        meter.end(count_sources(rows))
        return [output.composed(record, rows)]

    def _make(
        self,
        output: OutputShard,
        drawn: Backgrounds,
        rows: list[dict[str, Any]],
        index: str,
        checksum: str,
        meter: Meter,
        tally: UnitTally,
    ) -> Record:
        """Writes the variants of a shard, and then its index."""
        files = self._files.write(output, drawn, rows, meter)
        tally.add("images_composed", sum(row["selected"] for row in rows))
        tally.note()
        schema = index_schema(self._config.replicates)
        label = None if self._segment.is_whole else self._segment.describe_segmenter().label
        for row in rows:
            row["segmenter"] = label
        table = pa.Table.from_pylist([{n: r.get(n) for n in schema.names} for r in rows], schema)
        return self._staging.write(index, table, checksum, files)

    def _plan_rows(
        self, plan: Plan, scenes: DrawnScenes | None, rows: list[dict[str, Any]]
    ) -> Backgrounds:
        """Completes the index rows of a shard from the plan and the scenes; returns the drawn
        backgrounds."""
        selected = []
        for row in rows:
            is_accepted = row["status"] == ACCEPTED
            position = plan.position(row["key"]) if is_accepted else 0
            row["selected"] = is_accepted and plan.value("selected", position)
            if row["selected"]:
                selected.append(row)
            elif is_accepted and plan.value("no_background", position):
                row["status"] = str(Reason.NO_BACKGROUND)
                row["detail"] = "no other image can give it a background"
        keys = [row["key"] for row in selected]
        drawn = plan.backgrounds(keys) | (scenes.draw(keys) if scenes else {})
        positions = {
            key: {variant: int(column[number]) for variant, column in drawn.items()}
            for number, key in enumerate(keys)
        }
        backgrounds = Backgrounds(plan, scenes, positions)
        for row in selected:
            for variant, position in positions[row["key"]].items():
                row[f"{variant}_bg_key"] = backgrounds.key(variant, position)
        return backgrounds

    def _fingerprint(
        self, output: OutputShard, backgrounds: Backgrounds, rows: list[dict[str, Any]]
    ) -> str:
        """Identifies everything that the files of a shard depend on: configuration, classes, number
        of the shard, source shards, selection, and the backgrounds that were drawn, with their
        pixels and classes."""
        drawn = [
            [row["key"], row["status"], row["selected"]]
            + [
                [variant, backgrounds.fields(row["key"], variant), backgrounds.content(variant, at)]
                for variant, at in backgrounds.positions.get(row["key"], {}).items()
            ]
            for row in rows
        ]
        return fingerprint(
            self._config.fingerprint(),
            [output.shard, output.totals.counts.output],
            [source.fingerprint for source in output.sources],
            drawn,
            self._taxonomy.description,
        )


def _source_rows(staging: Staging, records: tuple[Record, ...]) -> list[dict[str, Any]]:
    """Reads the record rows of an output shard's source images; returns them in the order of its
    index."""
    rows = [row for record in records for row in read_rows(staging.store, record.path)]
    return sorted(rows, key=lambda row: (bucket_hash(row["key"]), row["key"]))
