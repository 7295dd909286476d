"""Samples: the pictures that a network is trained on, each at a known place in a shard.

At the start every shard is read once, to note at which byte each picture begins: as a member of
a tar, or as a value of a Parquet column, which holds pictures as they are. From then on a batch
is a few reads at known places, in any order and by any process.
"""

from __future__ import annotations

import collections
import dataclasses
import struct
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.evaluate.predict import BrokenPictureError
from pipeline.storage.files import in_parallel
from pipeline.storage.store import Store
from transforms.codec import UndecodableError, decode_image

_IMAGE = "image.bytes"
_BEGINNING = 64
"""Bytes of a picture that it is found by; the rest is compared then."""


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """Pictures in a fixed order.

    Attributes:
      store: the dataset folder.
      files: paths of the shards that hold them.
      keys: (n,) str.
      labels: (n,) int64.
      file: (n,) int64, position in `files`.
      offset, length: (n,) int64, of the encoded picture in its file, in bytes.
    """

    # Arrays, not lists of objects: those would be copied into every forked worker, page by
    # page, whenever their references are counted.
    store: Store
    files: tuple[str, ...]
    keys: NDArray[np.str_]
    labels: NDArray[np.int64]
    file: NDArray[np.int64]
    offset: NDArray[np.int64]
    length: NDArray[np.int64]

    @classmethod
    def of(
        cls, dataset: Dataset, split: str, pictures: Mapping[str, str], labels: Mapping[str, int]
    ) -> Samples:
        """Finds the pictures.

        Args:
          dataset: the dataset.
          split: its split.
          pictures: key to the variant whose picture of it is wanted.
          labels: label of each of these keys.

        Raises:
          OSError: a shard cannot be read.
          JobError: a shard does not hold what the manifest and the index say.
        """
        digests = [
            (variant, digest)
            for variant in sorted(set(pictures.values()))
            for shard in dataset.shards(split)
            for digest in dataset.shard_files(split, shard, (variant,))
        ]
        files = [digest.path for _, digest in digests]
        found: dict[tuple[str, str], tuple[int, int, int]] = {}
        shards = in_parallel(lambda path: _places(dataset.store, path), files)
        for number, ((variant, _), places) in enumerate(zip(digests, shards, strict=True)):
            for key, (offset, length) in places.items():
                found[variant, key] = (number, offset, length)
        missing = [key for key, variant in pictures.items() if (variant, key) not in found]
        if missing:
            raise JobError(
                f"the shards of {split} have no picture of {missing[0]}; see: in9 verify"
            )
        table = np.asarray([found[variant, key] for key, variant in pictures.items()], np.int64)
        number_of, offset_of, length_of = table.reshape(-1, 3).T
        return cls(
            store=dataset.store,
            files=tuple(files),
            keys=np.asarray(list(pictures), np.str_),
            labels=np.asarray([labels[key] for key in pictures], np.int64),
            file=number_of,
            offset=offset_of,
            length=length_of,
        )

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, indices: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        """Encoded pictures, in the order of `indices`. Raises OSError if a file is broken."""
        at = collections.defaultdict(list)
        for position, index in enumerate(indices):
            at[int(self.file[index])].append((position, index))
        pictures = [b""] * len(indices)
        for number, members in at.items():
            ranges = [(int(self.offset[i]), int(self.length[i])) for _, i in members]
            parts = self.store.read_ranges(self.files[number], ranges)
            for (position, _), part in zip(members, parts, strict=True):
                pictures[position] = part
        return pictures

    def pixels(self, indices: Sequence[int] | NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Decoded pictures, (S, S, 3) uint8 RGB each, in the order of `indices`.

        Raises:
          BrokenPictureError: a picture cannot be decoded.
          OSError: a file cannot be read.
        """
        for index, data in zip(indices, self.read(indices), strict=True):
            try:
                yield decode_image(data)
            except UndecodableError as error:
                raise BrokenPictureError(str(self.keys[index]), error) from error


def _places(store: Store, path: str) -> dict[str, tuple[int, int]]:
    """Key to (offset, length) of each picture of a shard."""
    try:
        return dict(_in_tar(store, path) if path.endswith(".tar") else _in_parquet(store, path))
    except (OSError, tarfile.TarError, struct.error, ValueError) as error:
        raise JobError(
            f"{store.path(path)} is no shard as it was written: {error}; "
            f"see: in9 verify --dataset {store.root}"
        ) from error


def _in_tar(store: Store, path: str) -> Iterator[tuple[str, tuple[int, int]]]:
    with store.open(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            key, _, suffix = member.name.partition(".")
            if suffix not in ("cls", "json"):
                yield key, (member.offset_data, member.size)


def _in_parquet(store: Store, path: str) -> Iterator[tuple[str, tuple[int, int]]]:
    with store.open(path) as file:
        parquet = pq.ParquetFile(file)
        for group in range(parquet.num_row_groups):
            chunk = _column(parquet.metadata.row_group(group))
            file.seek(chunk.data_page_offset)
            raw = file.read(chunk.total_compressed_size)
            at = 0
            for batch in parquet.iter_batches(row_groups=[group], columns=["key", _IMAGE]):
                images = batch.column("image").field("bytes")
                for key, image in zip(batch.column("key"), images, strict=True):
                    data = image.as_py()
                    # A value follows its length; between two values may be the next page's head.
                    beginning = struct.pack("<I", len(data)) + data[:_BEGINNING]
                    at = raw.index(beginning, at) + 4
                    if raw[at : at + len(data)] != data:
                        raise ValueError(f"no place of the picture of {key}")
                    yield key.as_py(), (chunk.data_page_offset + at, len(data))
                    at += len(data)


def _column(group: Any) -> Any:
    """Metadata of the pictures' column in a row group. Raises ValueError if it is compressed."""
    chunks: Iterable[Any] = (group.column(number) for number in range(group.num_columns))
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == _IMAGE)
    if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
        raise ValueError("its pictures are compressed")
    return chunk
