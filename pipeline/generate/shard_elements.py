"""The elements of the graph: shards, which hold paths, small records and numbers, but no pixels."""

from __future__ import annotations

import dataclasses
import operator
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.dataset.folder import sample_digests
from pipeline.dataset.records import (
    ACCEPTED,
    ImageRow,
    Record,
    Row,
    ShardCounts,
    chosen_images,
    layer_tar,
)
from pipeline.errors import JobError
from pipeline.generate.scenes import SceneTable
from pipeline.inputs.location import Location
from pipeline.inputs.source_images import Packed, SourceImage

SOURCE_SCHEMA = pa.schema(
    [
        pa.field("source", pa.binary()),
        pa.field("annotation", pa.binary()),
        pa.field("mask", pa.binary()),
    ]
)
"""Columns with the locations of the files that an accepted image is cut from; all null if its layer
is kept in a tar."""


@dataclasses.dataclass(frozen=True)
class SplitTotals:
    """Totals of a split. Every shard carries them, so that a lost shard is noticed.

    Attributes:
      listed: number of images in the source shards.
      outside: number of images of other classes, which are not used.
      other_files: number of files among the images that have no image suffix.
      unmatched: a line on classes that only the input has, or only the taxonomy; "" if none.
    """

    split: str
    counts: ShardCounts
    listed: int
    outside: int
    other_files: int
    unmatched: str = ""

    def check_complete(self, arrived: list[int], expected: int, images: int) -> None:
        """Raises JobError if shards or images were lost or repeated; `arrived` is ascending."""
        if arrived != list(range(expected)) or images != self.listed:
            raise JobError(
                f"{self.split}: {len(arrived)} of {expected} shards with {images} of "
                f"{self.listed} images arrived; the runner lost or repeated work, so there is no "
                "dataset. Run the same command again to go on"
            )


NO_RECORD = Record("", "")
"""The record of a shard that is not made yet."""


@dataclasses.dataclass(frozen=True)
class SourceShard:
    """A hash bucket of source images: List -> Segment -> Plan.

    >>> totals = SplitTotals("val", ShardCounts(4, 2), listed=1, outside=0, other_files=0)
    >>> image = SourceImage("cat_3", Location("/data/cat/cat_3.jpg"), "cat/cat_3.jpg", "cat", 0)
    >>> shard = SourceShard(totals, totals.counts.source_shard(image.key), (image,))
    >>> shard.shard, shard.segmented, shard.record == NO_RECORD
    (2, 0, True)

    Attributes:
      images: the images, in order of (key, name), packed, because the runner keeps all listed
        shards until they are segmented. Segment sorts images of one key by content (`by_content`),
        so the name decides only between equal ones; later it removes them.
      segmented: number of images in the record. Segment sets this and the following attributes.
      sources: locations of the source files, packed by `pack_sources`; empty if the layers are kept
        in a tar. Only Plan gets them.
    """

    totals: SplitTotals
    shard: int
    images: Sequence[SourceImage] = ()
    segmented: int = 0
    record: Record = NO_RECORD
    sources: bytes = b""

    @property
    def tar(self) -> str | None:
        """Current path of the tar of layers; None if there is no tar."""
        return self.record.locations.get(layer_tar(self.totals.split, self.shard))

    def for_plan(self) -> SourceShard:
        """Returns the shard without digests of files, which Plan would hold for a whole split."""
        locations = {
            path: current for path, current in self.record.locations.items() if current == self.tar
        }
        return dataclasses.replace(
            self, record=dataclasses.replace(self.record, files=(), locations=locations)
        )


@dataclasses.dataclass(frozen=True)
class ListedShard:
    """A source shard whose images are still in the list of its split, at the numbers in `rows`."""

    totals: SplitTotals
    shard: int
    listed: Sequence[SourceImage]
    rows: NDArray[np.int64]

    def make(self) -> SourceShard:
        images = sorted(
            (self.listed[row] for row in self.rows), key=operator.attrgetter("key", "name")
        )
        return SourceShard(self.totals, self.shard, tuple(images))

    def packed(self) -> SourceShard:
        """Does the same as `make`, with images that take little memory, for shards that wait."""
        made = self.make()
        return dataclasses.replace(made, images=Packed(made.images))


def make_shards(images: Sequence[SourceImage], totals: SplitTotals) -> list[ListedShard]:
    """Deals the images of a split to its source shards; returns all shards, even empty ones."""
    buckets = np.fromiter((totals.counts.source_shard(each.key) for each in images), np.int64)
    ends = np.bincount(buckets, minlength=totals.counts.source).cumsum()[:-1]
    rows = np.split(np.argsort(buckets, kind="stable"), ends)
    return [ListedShard(totals, shard, images, own) for shard, own in enumerate(rows)]


@dataclasses.dataclass(frozen=True)
class OutputShard:
    """A shard of the dataset: Plan -> Compose -> Commit.

    Attributes:
      plan, plan_digest: path of the split's plan in the dataset folder, and its SHA-256.
      sources: records, without their files, of the source shards that the output shard consists of,
        in order of their numbers. Compose removes these and the plan.
      scenes: the table of scenes, None without `--backgrounds`.
      record: the shard's index. Compose sets this and the following attributes.
      statuses: number of index rows by status.
      selected: number of selected images by label.
      of_sample: number of selected images whose files equal pictures of the embedded sample.
      chosen: `chosen_images` of its rows.
    """

    totals: SplitTotals
    shard: int
    plan: str = ""
    plan_digest: str = ""
    sources: tuple[Record, ...] = ()
    scenes: SceneTable | None = None
    record: Record = NO_RECORD
    images: int = 0
    statuses: dict[str, int] = dataclasses.field(default_factory=dict)
    selected: dict[int, int] = dataclasses.field(default_factory=dict)
    of_sample: int = 0
    chosen: str = ""

    def with_result(self, index: Record, rows: list[Row], images: int) -> OutputShard:
        """Returns the shard as it leaves Compose, which found or made its files.

        Raises JobError if a file does not hold as many samples as there are selected images.
        """
        selected, sample = Counter(r["label"] for r in rows if r["selected"]), sample_digests()
        for file in index.files[:-1]:
            if file.samples != selected.total():
                raise JobError(
                    f"{index.path} says that {file.path} has {file.samples} samples, of "
                    f"{selected.total()}; remove it"
                )
        return dataclasses.replace(
            self,
            plan="",
            plan_digest="",
            sources=(),
            record=index,
            images=images,
            statuses=dict(Counter(row["status"] for row in rows)),
            selected=dict(selected),
            # Imported rows have no MD5, because an import does not know its source images.
            of_sample=sum(row["selected"] and row.get("source_md5") in sample for row in rows),
            chosen=chosen_images(rows),
        )


def pack_sources(rows: list[ImageRow], source_of: Callable[[ImageRow], SourceImage]) -> bytes:
    """Packs the locations of accepted rows' files in a compressed table of `SOURCE_SCHEMA`."""
    accepted = (source_of(row) for row in rows if row.status == ACCEPTED)
    files = (
        # A text that is empty stands for a picture that no layer needs.
        {
            "source": image.location if image.location.line else Location(text=""),
            "annotation": image.annotation,
            "mask": image.mask,
        }
        for image in accepted
    )
    encoded = [{n: os.fsencode(p.line) if p else None for n, p in each.items()} for each in files]
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SOURCE_SCHEMA) as stream:
        stream.write_table(pa.Table.from_pylist(encoded, SOURCE_SCHEMA))
    return zlib.compress(sink.getvalue())


def unpack_sources(packed: bytes) -> pa.Table:
    return pa.ipc.open_stream(zlib.decompress(packed)).read_all()
