"""Samples: the pictures that a network is trained on, side by side in a file of this machine.

At the start every shard is read once, wherever and in whatever format it is. From then on a batch
is a few reads at known places of one file, in any order and by any process. The file has no name,
so nothing is left of it, however the training ends.

Mapped into memory, all of it would count as each process's own, and a disk that fails would end
the process without a word.
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
    """Pictures in a fixed order, to be had within `fetched`.

    Args:
      dataset: the dataset.
      split: its split.
      pictures: key to the variant whose picture of it is wanted; at least one.
      labels: label of each of these keys.

    Attributes:
      keys: (n,) str.
      labels: (n,) int64.
    """

    def __init__(
        self, dataset: Dataset, split: str, pictures: Mapping[str, str], labels: Mapping[str, int]
    ) -> None:
        self._dataset = dataset
        self._split = split
        self._pictures = pictures
        # What workers look at is arrays, not lists of objects: those would be copied into every
        # forked one, page by page, whenever their references are counted.
        self.keys = np.asarray(list(pictures), np.str_)
        self.labels = np.asarray([labels[key] for key in pictures], np.int64)

    def __len__(self) -> int:
        return len(self.keys)

    @contextlib.contextmanager
    def fetched(self) -> Iterator[None]:
        """Copies the pictures, encoded as they are, to the file, which is there while the block
        runs.

        Raises:
          JobError: a shard cannot be read, or does not hold what the index says; or there is no
            room for the file.
        """
        with tempfile.TemporaryFile(buffering=0, prefix="in9-") as file:
            try:
                # Closed in here, as that writes what is left and finds no room, too.
                with open(file.fileno(), "wb", closefd=False) as buffered:
                    spans = self._copy(buffered)
            except OSError as error:
                raise JobError(
                    f"the pictures to train on have no room in {tempfile.gettempdir()} ({error}): "
                    "free some, or set TMPDIR to a folder that has it"
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
        """Decoded pictures, (S, S, 3) uint8 RGB each, in the order of `indices`.

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
        """Writes the pictures, a shard after the other; key to (offset, length)."""
        spans = {}
        offset = 0
        for variant in sorted(set(self._pictures.values())):
            for shard in self._dataset.shards(self._split):
                for sample in self._dataset.samples(self._split, shard, variant):
                    if self._pictures.get(sample.key) == variant:
                        spans[sample.key] = (offset, file.write(sample.image))
                        offset += len(sample.image)
        return spans
