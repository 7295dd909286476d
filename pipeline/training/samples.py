"""Samples: the pictures that a network is trained on, copied into one local file.

At the start, every shard of the needed variants is read once, whatever its format and location.
After that, any process can load any batch by a few reads at known offsets of one file. The file has
no name, so it disappears however the training ends.

The file is not memory-mapped, because mapped pages would count as memory of every process, and
because a disk error would kill the process with a signal instead of raising an exception.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.errors import BrokenPictureError, JobError
from transforms.codec import UndecodableError, decode_image


class Samples:
    """Pictures in a fixed order, which can be read while `fetched` is active.

    Args:
      dataset: the dataset.
      split: split of the dataset.
      pictures: maps the key of each image to the variant to use; at least one key.
      labels: maps each of these keys to its label.

    Attributes:
      keys: (n,) str, keys of the images.
      labels: (n,) int64, labels of the images.
    """

    def __init__(
        self, dataset: Dataset, split: str, pictures: Mapping[str, str], labels: Mapping[str, int]
    ) -> None:
        self._dataset = dataset
        self._split = split
        self._pictures = pictures
        # Workers read arrays, not lists of objects, because counting the references of objects
        # would copy their memory pages into every forked process.
        self.keys = np.asarray(list(pictures), np.str_)
        self.labels = np.asarray([labels[key] for key in pictures], np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    @contextlib.contextmanager
    def fetched(self) -> Iterator[None]:
        """Copies the encoded pictures to a temporary file, which exists while the block runs.

        Raises:
          JobError: a shard cannot be read or contradicts the index, or the disk has no room for
            the file.
        """
        with tempfile.TemporaryFile(buffering=0, prefix="in9-") as file:
            try:
                # Closing `buffered` writes the last bytes, for which the disk may have no room
                # either. So it is closed inside the `try`.
                with open(file.fileno(), "wb", closefd=False) as buffered:
                    spans = self._copy(buffered)
            except OSError as error:
                raise JobError(
                    f"the pictures to train on do not fit into {tempfile.gettempdir()} ({error}): "
                    "free some space, or set TMPDIR to a folder with more"
                ) from error
            missing = next((key for key in self._pictures if key not in spans), None)
            if missing is not None:
                raise JobError(
                    f"the shards of {self._split} have no picture of {missing}; see: in9 verify"
                )
            self._spans = np.asarray([spans[key] for key in self._pictures], np.int64)
            self._file = file.fileno()
            yield

    def pixels(self, indices: NDArray[np.int64]) -> Iterator[NDArray[np.uint8]]:
        """Yields decoded pictures, (S, S, 3) uint8 RGB each, in the order of `indices`.

        Raises:
          BrokenPictureError: a picture cannot be decoded.
          OSError: the file cannot be read.
        """
        for index in indices:
            offset, length = self._spans[index]
            try:
                yield decode_image(os.pread(self._file, length, offset))
            except UndecodableError as error:
                raise BrokenPictureError(str(self.keys[index]), error) from error

    def _copy(self, file: IO[bytes]) -> dict[str, tuple[int, int]]:
        """Writes the pictures shard by shard; returns the (offset, length) of each key."""
        spans = {}
        offset = 0
        for variant in sorted(set(self._pictures.values())):
            for shard in self._dataset.shards(self._split):
                for sample in self._dataset.samples(self._split, shard, variant):
                    if self._pictures.get(sample.key) == variant:
                        spans[sample.key] = (offset, file.write(sample.image))
                        offset += len(sample.image)
        return spans
