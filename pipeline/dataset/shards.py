"""Shards: hash buckets of the key, and where their files lie.

Source and output shards use the same hash, and the number of output shards divides the
number of source shards, so an output shard is a union of whole source shards.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from pipeline.storage.store import FileDigest
from transforms.hashing import keyed_hash

IMAGES_PER_SOURCE_SHARD = 32
MAX_SOURCE_SHARDS = 100_000
DATA_FOLDERS = ("index", "layers", "parquet", "webdataset", "backgrounds")
"""What holds files of shards; nothing else does, and they hold nothing else."""


def bucket_hash(key: str) -> int:
    """The hash that decides a key's shard, and its place inside: in [0, 2**64)."""
    return keyed_hash(0, "shard", key)


CARD_FILES = ("README.md", "classes.txt", "croissant.json")
"""The other files of a dataset that its manifest lists: they describe it."""
_BELOW_DATA_FOLDERS = re.compile(rf"(?:{'|'.join(DATA_FOLDERS)})(?:/(?!\.)[^/\\\x00-\x1f]+)+")


def check_data_paths(files: Iterable[FileDigest]) -> None:
    """Makes sure that paths which were read from a file are those of a dataset's files.

    Raises:
      ValueError: one leads elsewhere.
    """
    for file in files:
        if file.path not in CARD_FILES and not _BELOW_DATA_FOLDERS.fullmatch(file.path):
            raise ValueError(f"{file.path!r} is no path of a dataset's file")


@dataclasses.dataclass(frozen=True)
class ShardCounts:
    """Number of shards of one split. `output` divides `source`.

    Raises:
      ValueError: it does not, or there are too many.
    """

    source: int
    output: int

    def __post_init__(self) -> None:
        if not 1 <= self.output <= self.source <= MAX_SOURCE_SHARDS or self.source % self.output:
            raise ValueError(
                f"{self.source} source shards and {self.output} output shards: there are 1 to "
                f"{MAX_SOURCE_SHARDS}, and the one is a multiple of the other"
            )

    @classmethod
    def for_images(cls, images: int, images_per_shard: int) -> ShardCounts:
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
