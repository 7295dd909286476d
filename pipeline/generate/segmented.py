"""Segmented shards: what Segment hands on to Plan and Compose, paths and a small table each."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pyarrow as pa

from pipeline.dataset.records import ACCEPTED, FoundShard, source_key
from pipeline.dataset.shards import layer_tar
from pipeline.inputs.found import SourceImage
from pipeline.inputs.listing import SplitTotals

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
class SegmentedShard:
    """A source shard that is up to date, without its images.

    Attributes:
      totals: of its split.
      shard: its number.
      images: how many it is of.
      files: its layers, unless there are none, and its record.
      candidates: Arrow IPC stream of its accepted images, `CANDIDATE_SCHEMA`.
    """

    totals: SplitTotals
    shard: int
    images: int
    files: FoundShard
    candidates: bytes

    @property
    def tar(self) -> str | None:
        """Where its layers lie now, None if it has none."""
        return self.files.where.get(layer_tar(self.totals.split, self.shard))


def pack_candidates(rows: list[dict[str, Any]], sources: dict[str, SourceImage]) -> bytes:
    """Arrow IPC stream of the accepted rows, `CANDIDATE_SCHEMA`."""
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
