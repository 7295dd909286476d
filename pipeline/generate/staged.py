"""Staged shards: those that are missing are made, and wait for Commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pipeline.dataset.config import SegmentConfig
from pipeline.dataset.records import FoundShard, Staging
from pipeline.dataset.shards import layer_record
from pipeline.generate.cut_source import shard_fingerprint
from pipeline.inputs.listing import SourceShard
from pipeline.runtime.counters import count, count_written


def find_layers(
    staging: Staging,
    shard: SourceShard,
    digests: Sequence[str | None],
    config: SegmentConfig,
    *,
    need_files: bool,
) -> FoundShard | None:
    """A source shard whose layers are up to date; None if they are not, or if that is not known.

    Args:
      staging: where new layers go.
      shard: the source shard.
      digests: of its images, in their order; None where it is not known.
      config: of the layers.
      need_files: whether the layers themselves have to be there.
    """
    known = [digest for digest in digests if digest is not None]
    if len(known) < len(digests):
        return None
    record = layer_record(shard.totals.split, shard.shard)
    return staging.find(record, shard_fingerprint(known, config), need_files=need_files)


def make_missing(
    staging: Staging,
    record: str,
    fingerprint: str,
    found: FoundShard | None,
    make: Callable[[], None],
    *,
    counter: str,
) -> FoundShard:
    """A shard that is up to date, made if it was not found.

    Args:
      staging: where new shards go.
      record: final path of its record.
      fingerprint: that the record holds.
      found: the shard, if it is there.
      make: writes its files and then its record.
      counter: `source_shards` or `output_shards`, of which `_made` or `_kept` is counted.

    Raises:
      OSError: it is not there after it was made.
    """
    if found is not None:
        count(f"{counter}_kept")
        return found
    make()
    return find_made(staging, record, fingerprint, counter=counter)


def find_made(staging: Staging, record: str, fingerprint: str, *, counter: str) -> FoundShard:
    """A shard that has just been made; the arguments are those of `make_missing`.

    Raises:
      OSError: it is not there.
    """
    found = staging.find(record, fingerprint)
    if found is None:
        raise OSError(f"{record} is not there after it was written")
    count(f"{counter}_made")
    count_written(found.files)
    return found
