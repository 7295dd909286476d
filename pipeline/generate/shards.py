"""Shards on their way through the graph: paths, small records and numbers, never pixels."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from pipeline.dataset.records import ACCEPTED, Record, count_sources, source_key
from pipeline.dataset.sample import sample_digests
from pipeline.dataset.shards import ShardCounts, layer_tar
from pipeline.errors import JobError
from pipeline.generate.scenes import SceneTable
from pipeline.inputs.found import SourceImage

CANDIDATE_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("wnid", pa.string()),
        pa.field("layer_digest", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("source", pa.binary()),
        pa.field("annotation", pa.binary()),
        pa.field("mask", pa.binary()),
        pa.field("group", pa.string()),
        pa.field("object", pa.int32()),
    ]
)
"""What Plan needs of each accepted image: offset and length of its tiled background in the
layers, and, only where `--layers drop` has removed those, the files to cut it from again. Group
and object are null where there are none."""


@dataclasses.dataclass(frozen=True)
class SplitTotals:
    """What the whole of a split holds. It travels with every shard, so that nothing that
    gets lost on the way goes unnoticed.

    Attributes:
      split: its name.
      counts: its numbers of shards.
      listed: number of its images.
      outside: number of images of other classes, which are only counted.
      other_files: number of files beside the images that are no images by their name.
    """

    split: str
    counts: ShardCounts
    listed: int
    outside: int
    other_files: int

    def check_complete(self, arrived: list[int], expected: int, images: int) -> None:
        """Raises JobError if a runner lost or repeated shards or images of the split.

        Args:
          arrived: numbers of the shards, rising.
          expected: how many shards there are.
          images: that they are of.
        """
        if arrived != list(range(expected)) or images != self.listed:
            raise JobError(
                f"{self.split}: {len(arrived)} of {expected} shards with {images} of "
                f"{self.listed} images arrived; the runner lost or repeated work, so there is no "
                "dataset. Run the same command again to go on"
            )


@dataclasses.dataclass(frozen=True)
class SourceShard:
    """A hash bucket of source images: List -> Segment -> Plan.

    Attributes:
      totals: of its split.
      shard: number of the bucket.
      images: in order of (key, name): of equal keys, the lowest path comes first. They travel to
        Segment and no further.
      segmented: number of images that its record is of. This and what follows comes from Segment.
      records: its record.
      candidates: Arrow IPC stream of its accepted images, `CANDIDATE_SCHEMA`.
    """

    totals: SplitTotals
    shard: int
    images: tuple[SourceImage, ...] = ()
    segmented: int = 0
    records: tuple[Record, ...] = ()
    candidates: bytes = b""

    @property
    def tar(self) -> str | None:
        """Where its layers lie now, None if it has none."""
        name = layer_tar(self.totals.split, self.shard)
        return next((record.where.get(name) for record in self.records), None)


def make_shards(images: Iterable[SourceImage], totals: SplitTotals) -> list[SourceShard]:
    """Deals the images of a split into its source shards, empty ones included."""
    buckets: list[list[SourceImage]] = [[] for _ in range(totals.counts.source)]
    for image in images:
        buckets[totals.counts.source_shard(image.key)].append(image)
    return [
        SourceShard(totals, shard, tuple(sorted(bucket, key=lambda i: (i.key, i.name))))
        for shard, bucket in enumerate(buckets)
    ]


@dataclasses.dataclass(frozen=True)
class OutputShard:
    """A shard of the dataset: Plan -> Compose -> Commit.

    Attributes:
      totals: of its split.
      shard: its number.
      plan, plan_digest: relative path and SHA-256 of the split's plan.
      records: of the source shards that it is made of, in their order; once it is composed, its
        own as the last, the index.
      scenes: the table of scenes, if there are some.
      images: number of source images. This and what follows comes from Compose.
      statuses: number of rows of the index by status: of images, or of objects where each of an
        image's is one.
      selected: number of selected images by label.
      of_sample: how many of those are pictures of the embedded sample, byte for byte.
    """

    totals: SplitTotals
    shard: int
    plan: str = ""
    plan_digest: str = ""
    records: tuple[Record, ...] = ()
    scenes: SceneTable | None = None
    images: int = 0
    statuses: dict[str, int] = dataclasses.field(default_factory=dict)
    selected: dict[int, int] = dataclasses.field(default_factory=dict)
    of_sample: int = 0

    def composed(self, index: Record, rows: list[dict[str, Any]]) -> OutputShard:
        """The shard, once its files were found or made.

        Args:
          index: its record.
          rows: of the index.

        Raises:
          JobError: a file does not hold a sample of each selected image.
        """
        selected = Counter(row["label"] for row in rows if row["selected"])
        for file in index.files[:-1]:
            if file.samples != selected.total():
                raise JobError(
                    f"{index.path} says that {file.path} has {file.samples} samples, of "
                    f"{selected.total()}; remove it"
                )
        return dataclasses.replace(
            self,
            records=(*self.records, index),
            images=count_sources(rows),
            statuses=dict(Counter(row["status"] for row in rows)),
            selected=dict(selected),
            # An import does not know what its pictures were made of.
            of_sample=sum(
                row["selected"] and row.get("source_md5") in sample_digests() for row in rows
            ),
        )


def pack_candidates(rows: list[dict[str, Any]], sources: dict[str, SourceImage]) -> bytes:
    """Arrow IPC stream of the accepted rows, `CANDIDATE_SCHEMA`.

    Args:
      rows: of a source shard's record.
      sources: by key, what to cut layers from again; empty if they are kept.
    """
    accepted = []
    for row in rows:
        if row["status"] != ACCEPTED:
            continue
        source = sources.get(source_key(row))
        accepted.append(
            {
                "key": row["key"],
                "label": row["label"],
                "wnid": row["wnid"],
                "layer_digest": row["layer_digest"],
                "offset": row["only_bg_t_offset"],
                "length": row["only_bg_t_length"],
                "source": source and os.fsencode(source.path),
                "annotation": source and source.annotation and os.fsencode(source.annotation),
                "mask": source and source.mask and os.fsencode(source.mask),
                "group": row["group"],
                "object": row["object"],
            }
        )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, CANDIDATE_SCHEMA) as stream:
        stream.write_table(pa.Table.from_pylist(accepted, CANDIDATE_SCHEMA))
    return bytes(sink.getvalue())
