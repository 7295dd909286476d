"""Shards: hash buckets of the key, and where their files lie.

Source and output shards use the same hash, and the number of output shards divides the
number of source shards, so an output shard is a union of whole source shards.
"""

from __future__ import annotations

import dataclasses

from transforms.hashing import keyed_hash

IMAGES_PER_SOURCE_SHARD = 32
MAX_SOURCE_SHARDS = 100_000
DATA_FOLDERS = ("index", "layers", "parquet", "webdataset", "backgrounds")
"""What holds files of shards; nothing else does, and they hold nothing else."""


def bucket_hash(key: str) -> int:
    """The hash that decides a key's shard, and its place inside: in [0, 2**64)."""
    return keyed_hash(0, "shard", key)


@dataclasses.dataclass(frozen=True)
class ShardCounts:
    """Number of shards of one split. `output` divides `source`."""

    source: int
    output: int

    @classmethod
    def of(cls, images: int, images_per_shard: int) -> ShardCounts:
        """Chooses the counts from the number of images alone, never from the workers.

        Args:
          images: listed in the split.
          images_per_shard: wanted in an output shard, about.
        """
        output = max(1, min(round(images / images_per_shard), MAX_SOURCE_SHARDS))
        multiple = round(images / IMAGES_PER_SOURCE_SHARD / output)
        return cls(
            source=output * max(1, min(multiple, MAX_SOURCE_SHARDS // output)), output=output
        )

    def source_shard(self, key: str) -> int:
        """Source shard of a key."""
        return bucket_hash(key) % self.source

    def sources_of(self, output_shard: int) -> range:
        """The source shards that make up an output shard."""
        return range(output_shard, self.source, self.output)


def layer_tar(split: str, shard: int) -> str:
    """Layers of a source shard."""
    return f"layers/{split}-{shard:05d}.tar"


def layer_record(split: str, shard: int) -> str:
    """Record of a source shard; it commits the tar."""
    return f"layers/{split}-{shard:05d}.parquet"


def index_file(split: str, shard: int, count: int) -> str:
    """Index rows of an output shard; its record: it commits the shard's other files."""
    return f"index/{split}-{shard:05d}-of-{count:05d}.parquet"


def parquet_file(variant: str, split: str, shard: int, count: int) -> str:
    """Parquet file of one variant's output shard."""
    return f"parquet/{variant}/{split}-{shard:05d}-of-{count:05d}.parquet"


def webdataset_file(variant: str, split: str, shard: int) -> str:
    """WebDataset tar of one variant's output shard."""
    return f"webdataset/{variant}/{split}-{shard:06d}.tar"
