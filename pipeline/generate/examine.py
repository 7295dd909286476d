"""Examine: what has changed since the dataset was made, and whether that may be made again.

    SourceShard -> Examine -> ExaminedShard -> (Hold) -> Segment

A schedule calls the same command for years. An input that was moved, mounted empty or written
anew would make it segment everything again, and replace a good dataset. So a job on top of a
dataset stops before it does anything if more than a tenth of the source shards would be made
again, unless it was told to go on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import apache_beam as beam

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.fingerprints import SEGMENT_VERSION
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.records import FoundShard, Staging, read_rows
from pipeline.dataset.shards import layer_record
from pipeline.errors import JobError
from pipeline.generate.cut_source import shard_fingerprint, source_digest
from pipeline.runner.counters import timed
from pipeline.sources.checksums import Checksums
from pipeline.sources.listing import SourceShard
from pipeline.storage.state_files import read_intact

REBUILT_SHARE = 0.1
"""Share of the source shards that is made again without being asked for; one always is."""


@dataclasses.dataclass(frozen=True)
class ExaminedShard:
    """A source shard with what identifies its content.

    Attributes:
      shard: the source shard.
      digests: of its images, in their order.
      fingerprint: of everything that goes into its layers.
      found: the layers that are up to date, None if they have to be made.
    """

    shard: SourceShard
    digests: tuple[str, ...]
    fingerprint: str
    found: FoundShard | None


@dataclasses.dataclass(frozen=True)
class LayersBefore:
    """How the layers of the dataset as it stands were made.

    Attributes:
      fingerprint: of their configuration, None if the manifest does not say it.
      version: `SEGMENT_VERSION` at the time.
    """

    fingerprint: str | None
    version: int

    @classmethod
    def of(cls, manifest: Manifest) -> LayersBefore:
        """Of a dataset's manifest."""
        stages = manifest.stages
        return cls(stages.get("segment_fingerprint"), stages.get("segment", SEGMENT_VERSION))

    def differ(self, config: SegmentConfig) -> bool:
        """Whether layers are known to be made in another way now."""
        now = config.fingerprint()
        return self.version != SEGMENT_VERSION or self.fingerprint not in (None, now)


@dataclasses.dataclass(frozen=True)
class Rebuild:
    """What would be made again, of any number of source shards.

    Attributes:
      shards: their number.
      to_make: those that are not up to date, neither in the dataset nor in staging.
      added, changed, removed: images, by what the records of `to_make` say; one that has
        changed in no way but how it is segmented counts as changed.
      lost: shards of `to_make` whose images are all as they were: their files are not.
    """

    shards: int = 0
    to_make: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    lost: int = 0


def add_up(parts: Iterable[Rebuild]) -> Rebuild:
    """The sum of some shards' `Rebuild`s."""
    total = (0,) * len(dataclasses.fields(Rebuild))
    for part in parts:
        total = tuple(map(sum, zip(total, dataclasses.astuple(part), strict=True)))
    return Rebuild(*total)


class Examine(beam.DoFn):
    """SourceShard -> ExaminedShard: checksums of what is not remembered, and a look at records.

    Args:
      config: of the layers.
      staging: where new shards go.
      layers: `keep`, or `drop`: then a shard is up to date without its tar.
    """

    def __init__(self, config: SegmentConfig, staging: Staging, layers: str) -> None:
        self._config = config
        self._staging = staging
        self._layers = layers

    def process(self, shard: SourceShard) -> Iterator[ExaminedShard]:
        with timed("examine"):
            examined = self._examine(shard)
        yield examined

    def _examine(self, shard: SourceShard) -> ExaminedShard:
        split = shard.totals.split
        checksums = Checksums.of_shard(self._staging.store, split, shard.shard)
        digests = [source_digest(image, self._config, checksums.of) for image in shard.images]
        checksums.save()
        checksum = shard_fingerprint(digests, self._config)
        found = self._staging.find(
            layer_record(split, shard.shard), checksum, need_files=self._layers == "keep"
        )
        return ExaminedShard(shard, tuple(digests), checksum, found)


class CountRebuild(beam.DoFn):
    """ExaminedShard -> its Rebuild, by the record that the dataset has of it now."""

    def __init__(self, staging: Staging) -> None:
        self._store = staging.store

    def process(self, examined: ExaminedShard) -> Iterator[Rebuild]:
        yield Rebuild(shards=1) if examined.found is not None else self._count(examined)

    def _count(self, examined: ExaminedShard) -> Rebuild:
        shard = examined.shard
        record = layer_record(shard.totals.split, shard.shard)
        columns = ["path", "source_digest"]
        rows = read_intact(self._store, record, lambda: read_rows(self._store, record, columns))
        before = {row["path"]: row["source_digest"] for row in rows or ()}
        names = [printable(image.name) for image in shard.images]
        after = dict(zip(names, examined.digests, strict=True))
        return Rebuild(
            shards=1,
            to_make=1,
            added=len(after.keys() - before.keys()),
            changed=sum(after[name] != before[name] for name in after.keys() & before.keys()),
            removed=len(before.keys() - after.keys()),
            lost=int(after == before),
        )


class Hold(beam.DoFn):
    """The sum of all Rebuilds -> the same, if it is little enough.

    Raises:
      JobError: too much would be made again; the message says why.
    """

    def __init__(self, config: SegmentConfig, before: LayersBefore) -> None:
        self._config = config
        self._before = before

    def process(self, rebuild: Rebuild) -> Iterator[Rebuild]:
        if rebuild.to_make > max(1, REBUILT_SHARE * rebuild.shards):
            raise JobError(
                f"{rebuild.to_make} of {rebuild.shards} source shards would be made again, more "
                f"than a tenth: {self._cause(rebuild)}. Nothing has been changed; if that is "
                "meant, add --allow_rebuild"
            )
        yield rebuild

    def _cause(self, rebuild: Rebuild) -> str:
        if self._before.differ(self._config):
            return (
                "layers are made in another way now (segment stage "
                f"{SEGMENT_VERSION}, the dataset has {self._before.version})"
            )
        counts = (
            f"{rebuild.added} images added, {rebuild.changed} changed, {rebuild.removed} removed"
        )
        return counts + (f"; files of {rebuild.lost} are missing" if rebuild.lost else "")


def printable(text: str) -> str:
    """Text that any file can hold: escapes what is not printable, and cuts what is long."""
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
    return escaped if len(escaped) <= 300 else escaped[:297] + "..."
