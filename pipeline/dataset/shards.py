"""Shards: hash buckets of the key, and the paths of their files.

Source and output shards use the same hash, and the number of output shards divides the number of
source shards. So an output shard is a union of whole source shards.
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
"""Folders that hold the files of shards and the table of scenes, and nothing else."""
CARD_FILES = ("README.md", "classes.txt", "croissant.json")
"""Files in the dataset folder itself that the manifest lists. They describe the dataset."""
_BELOW_DATA_FOLDERS = re.compile(rf"(?:{'|'.join(DATA_FOLDERS)})(?:/(?!\.)[^/\\\x00-\x1f]+)+")


def bucket_hash(key: str) -> int:
    """Returns the hash that decides a key's shard and its position there, in [0, 2**64)."""
    return keyed_hash(0, "shard", key)


def check_data_paths(files: Iterable[FileDigest]) -> None:
    """Checks that paths that were read from a file can belong to files of a dataset.

    Raises:
      ValueError: a path leads elsewhere.
    """
    for file in files:
        if file.path not in CARD_FILES and not _BELOW_DATA_FOLDERS.fullmatch(file.path):
            raise ValueError(f"{file.path!r} is not the path of a dataset's file")


@dataclasses.dataclass(frozen=True)
class ShardCounts:
    """Numbers of source and output shards of one split; `output` divides `source`.

    Raises:
      ValueError: `output` does not divide `source`, or there are too many shards.
    """

    source: int
    output: int

    def __post_init__(self) -> None:
        if not 1 <= self.output <= self.source <= MAX_SOURCE_SHARDS or self.source % self.output:
            raise ValueError(
                f"{self.source} source shards and {self.output} output shards: both must be 1 to "
                f"{MAX_SOURCE_SHARDS}, and the first must be a multiple of the second"
            )

    @classmethod
    def for_images(cls, images: int, images_per_shard: int) -> ShardCounts:
        """Chooses the counts from the number of images alone, never from the number of workers.

        Args:
          images: number of images listed in the split.
          images_per_shard: approximate number of images in an output shard.
        """
        output = max(1, min(round(images / images_per_shard), MAX_SOURCE_SHARDS))
        multiple = round(images / IMAGES_PER_SOURCE_SHARD / output)
        return cls(
            source=output * max(1, min(multiple, MAX_SOURCE_SHARDS // output)), output=output
        )

    def source_shard(self, key: str) -> int:
        """Returns the source shard of a key."""
        return bucket_hash(key) % self.source

    def sources_of(self, output_shard: int) -> range:
        """Returns the source shards that make up an output shard."""
        return range(output_shard, self.source, self.output)


def layer_tar(split: str, shard: int) -> str:
    """Returns the path of a source shard's layers."""
    return f"layers/{split}-{shard:05d}.tar"


def layer_record(split: str, shard: int) -> str:
    """Returns the path of a source shard's record, which commits the tar."""
    return f"layers/{split}-{shard:05d}.parquet"


def index_file(split: str, shard: int, count: int) -> str:
    """Returns the path of an output shard's index, which is its record and commits its files."""
    return f"index/{split}-{shard:05d}-of-{count:05d}.parquet"


def parquet_file(variant: str, split: str, shard: int, count: int) -> str:
    """Returns the path of the Parquet file of one variant's output shard."""
    return f"parquet/{variant}/{split}-{shard:05d}-of-{count:05d}.parquet"


def webdataset_file(variant: str, split: str, shard: int) -> str:
    """Returns the path of the WebDataset tar of one variant's output shard."""
    return f"webdataset/{variant}/{split}-{shard:06d}.tar"
