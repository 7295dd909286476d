"""Which shards are up to date, in place or staged, and which had to be made."""

from __future__ import annotations

from collections.abc import Sequence

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


def count_shard(counter: str, shard: FoundShard, *, is_new: bool) -> None:
    """Counts a shard that is up to date.

    Args:
      counter: `source_shards` or `output_shards`, of which `_made` or `_kept` is counted.
      shard: with its record.
      is_new: whether it has been made; then its files count, too, but for the record.
    """
    count(f"{counter}_made" if is_new else f"{counter}_kept")
    if is_new:
        count_written(shard.files[:-1])
