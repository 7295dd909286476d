"""Staged shards: those that are missing are made, and wait for Commit."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.dataset.records import FoundShard, Staging
from pipeline.runner.counters import count, count_written


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
    found = staging.find(record, fingerprint)
    if found is None:
        raise OSError(f"{record} is not there after it was written")
    count(f"{counter}_made")
    count_written(found.files)
    return found
