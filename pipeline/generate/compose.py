"""Compose: writes all variants of an output shard from its layers, and then its index."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

import cv2
import pyarrow as pa

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
from pipeline.generate.job import JobStep
from pipeline.generate.layer_source import Backgrounds, LayerSource
from pipeline.generate.plan import Plan, load_plan
from pipeline.generate.scenes import DrawnScenes
from pipeline.generate.shard_elements import OutputShard
from pipeline.runtime.counters import UnitTally, count_shard, timed
from pipeline.runtime.progress import Meter
from pipeline.storage.store import FileDigest
from transforms.codec import encode_jpeg, encode_png
from transforms.filters import Reason
from transforms.geometry import Pixels
from transforms.hashing import keyed_hash
from transforms.noise import gaussian_noise
from transforms.taxonomy import imagenet_index
from transforms.variants import EXTERNAL, MIXED, base_of, with_replicates


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
        store = self.outputs.store
        plan = load_plan(store, output.plan, self.config.compose, output.plan_digest)
        rows = _source_rows(self.outputs, output.sources)
        scenes = None
        if output.scenes is not None:
            scenes = DrawnScenes(
                output.scenes, self.outputs, self.config.segment, self.config.compose
            )
        drawn = self._plan_rows(plan, scenes, rows)
        checksum = self._fingerprint(output, drawn, rows)
        index = index_file(output.totals.split, output.shard, output.totals.counts.output)
        record = self.outputs.find(index, checksum)
        name = f"{output.totals.split}-{output.shard:05d}"
        meter = Meter(self.job.progress, "compose", name)
        tally = UnitTally(self.job.progress, "compose", name)
        if record is None:
            is_new = True
            record = self._make(output, drawn, rows, index, checksum, meter, tally)
        else:
            is_new = tally.recall()
            record = self.outputs.with_record(record, index, len(rows))
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
        files = self.write_variants(output, drawn, rows, meter)
        tally.add("images_composed", sum(row["selected"] for row in rows))
        tally.note()
        schema = index_schema(self.config.compose.replicates)
        label = (
            None if self.config.segment.is_whole else self.config.segment.describe_segmenter().label
        )
        for row in rows:
            row["segmenter"] = label
        table = pa.Table.from_pylist([{n: r.get(n) for n in schema.names} for r in rows], schema)
        return self.outputs.write(index, table, checksum, files)

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
            self.config.compose.fingerprint(),
            [output.shard, output.totals.counts.output],
            [source.fingerprint for source in output.sources],
            drawn,
            self.job.taxonomy.description,
        )

    def write_variants(
        self,
        output: OutputShard,
        backgrounds: Backgrounds,
        rows: list[dict[str, Any]],
        meter: Meter,
    ) -> tuple[FileDigest, ...]:
        """Writes all variants of a shard to the staging folder, in every format.

        Args:
          output: the shard, as planned.
          backgrounds: the backgrounds that were drawn for the selected images.
          rows: all rows of the shard's index.
          meter: counts finished source images.

        Returns:
          Digests of the files, with their final paths.
        """
        source = LayerSource(self.outputs.store, backgrounds, self.config.segment)
        selected = [row for row in rows if row["selected"]]
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
        names = self.config.compose.composed
        if self.config.segment.is_whole:
            for row, picture in source.cropped(rows):
                yield row, dict.fromkeys(names, picture)
            return
        with_noise = any(variant.from_noise for variant in self._variants.values())
        for row, layer, backgrounds in source.layers(rows):
            noise = None
            if with_noise:
                # All variants of an image share one noise picture, and each shows the part that it
                # needs.
                draw = keyed_hash(self.config.compose.seed, "noise", row["key"])
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
        as_png = self.config.compose.encoding == "png" or self._variants[base_of(variant)].lossless
        return Sample(
            key=row["key"],
            image=encode_png(picture)
            if as_png
            else encode_jpeg(picture, self.config.compose.jpeg_quality),
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


def _source_rows(staging: Staging, records: tuple[Record, ...]) -> list[dict[str, Any]]:
    """Reads the record rows of an output shard's source images; returns them in the order of its
    index."""
    rows = [row for record in records for row in read_rows(staging.store, record.path)]
    return sorted(rows, key=lambda row: (bucket_hash(row["key"]), row["key"]))
