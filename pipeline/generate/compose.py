"""Compose: all variants of an output shard from the layers, and its index rows."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import apache_beam as beam
import cv2
import pyarrow as pa

from pipeline.dataset.config import ComposeConfig, SegmentConfig
from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    FoundShard,
    Staging,
    count_sources,
    read_rows,
)
from pipeline.dataset.sample import sample_digests
from pipeline.dataset.shards import bucket_hash, index_file
from pipeline.errors import JobError
from pipeline.generate.layer_source import Backgrounds
from pipeline.generate.plan import OutputShard, Plan, load_plan
from pipeline.generate.scenes import DrawnScenes
from pipeline.generate.staged import count_shard
from pipeline.generate.variant_files import VariantFiles
from pipeline.runtime.counters import timed
from pipeline.runtime.progress import Meter, Progress
from transforms.filters import Reason
from transforms.taxonomy import Taxonomy
from transforms.variants import EXTERNAL, MIXED, with_replicates


def index_schema(replicates: int) -> pa.Schema:
    """Columns of the index, which has one row for every source image (with `--objects each`, for
    every object), accepted or not; null where there is no such thing.

    Args:
      replicates: of the mixed variants.
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


@dataclasses.dataclass(frozen=True)
class ComposedShard:
    """An output shard that is up to date.

    Attributes:
      output: the shard, as planned.
      files: its own, the index last.
      images: number of source images.
      statuses: number of rows of the index by status: of images, or of objects where each of an
        image's is one.
      selected: number of selected images by label.
      of_sample: how many of those are pictures of the embedded sample, byte for byte.
    """

    output: OutputShard
    files: FoundShard
    images: int
    statuses: dict[str, int]
    selected: dict[int, int]
    of_sample: int = 0

    @classmethod
    def of(
        cls, output: OutputShard, files: FoundShard, rows: list[dict[str, Any]]
    ) -> ComposedShard:
        """A shard that was found or made.

        Args:
          output: the shard, as planned.
          files: its own, the index last.
          rows: of the index.

        Raises:
          JobError: a file does not hold a sample of each selected image.
        """
        selected = Counter(row["label"] for row in rows if row["selected"])
        for file in files.files[:-1]:
            if file.samples != selected.total():
                raise JobError(
                    f"{files.record} says that {file.path} has {file.samples} samples, of "
                    f"{selected.total()}; remove it"
                )
        return cls(
            output=output,
            files=files,
            images=count_sources(rows),
            statuses=dict(Counter(row["status"] for row in rows)),
            selected=dict(selected),
            # An import does not know what its pictures were made of.
            of_sample=sum(
                row["selected"] and row.get("source_md5") in sample_digests() for row in rows
            ),
        )

    @property
    def parts(self) -> tuple[FoundShard, ...]:
        """The source shards that it is made of, and its own files."""
        return (*self.output.sources, self.files)


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
        self._progress = progress

    def setup(self) -> None:
        cv2.setNumThreads(1)
        self._files = VariantFiles(self._segment, self._config, self._staging, self._taxonomy)

    @timed("compose")
    def process(self, output: OutputShard) -> list[ComposedShard]:
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
        meter = Meter(self._progress, "compose", f"{output.totals.split}-{output.shard:05d}")
        if found is None:
            files = self._make(output, drawn, rows, index, checksum, meter)
        else:
            files = self._staging.with_record(found, index, len(rows))
        count_shard("output_shards", files, is_new=found is None)
        # Those that are not composed, too.
        meter.end(count_sources(rows))
        return [ComposedShard.of(output, files, rows)]

    def _make(
        self,
        output: OutputShard,
        drawn: Backgrounds,
        rows: list[dict[str, Any]],
        index: str,
        checksum: str,
        meter: Meter,
    ) -> FoundShard:
        """Writes the shard's variants, and then its index."""
        files = self._files.write(output, drawn, rows, meter)
        schema = index_schema(self._config.replicates)
        label = None if self._segment.is_whole else self._segment.describe_segmenter().label
        for row in rows:
            row["segmenter"] = label
        table = pa.Table.from_pylist([{n: r.get(n) for n in schema.names} for r in rows], schema)
        return self._staging.write(index, table, checksum, files)

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
            self._taxonomy.about,
        )


def _source_rows(staging: Staging, sources: tuple[FoundShard, ...]) -> list[dict[str, Any]]:
    """Record rows of all source images of an output shard, in their final order."""
    rows = [row for source in sources for row in read_rows(staging.store, source.record)]
    return sorted(rows, key=lambda row: (bucket_hash(row["key"]), row["key"]))
