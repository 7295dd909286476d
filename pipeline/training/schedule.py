"""What a training does in which order: pictures, batches, learning rate.

All of it follows from the seed and the epoch, so that an epoch begins the same wherever the
one before it was done.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import keyed_hashes, substream

Indices = NDArray[np.int64]

TRAIN, VALIDATE = "train", "validate"


@dataclasses.dataclass(frozen=True)
class BatchOrder:
    """One batch that is to be loaded.

    Attributes:
      part: `TRAIN` or `VALIDATE`.
      epoch: from 0 on.
      indices: of the samples, in order.
    """

    part: str
    epoch: int
    indices: Indices


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The batches of a training.

    Attributes:
      order_hashes: (n,) uint64 of `order_hashes`, of the training images.
      validation: number of the images to validate on.
      batch_size: pictures in a batch, at most.
      epochs: which, in order.
    """

    order_hashes: NDArray[np.uint64]
    validation: int
    batch_size: int
    epochs: range

    @property
    def training_batches(self) -> int:
        """In an epoch."""
        return math.ceil(len(self.order_hashes) / self.batch_size)

    @property
    def validation_batches(self) -> int:
        """After an epoch."""
        return math.ceil(self.validation / self.batch_size)

    def __iter__(self) -> Iterator[BatchOrder]:
        for epoch in self.epochs:
            order = permutation(self.order_hashes, epoch)
            for batch in even_batches(order, self.batch_size):
                yield BatchOrder(TRAIN, epoch, batch)
            for batch in even_batches(np.arange(self.validation), self.batch_size):
                yield BatchOrder(VALIDATE, epoch, batch)

    def __len__(self) -> int:
        return len(self.epochs) * (self.training_batches + self.validation_batches)


def order_hashes(seed: int, keys: NDArray[np.str_]) -> NDArray[np.uint64]:
    """(n,) uint64: what the places of each image are derived from, in all epochs."""
    return keyed_hashes(seed, "order", keys.tolist())


def permutation(hashes: NDArray[np.uint64], epoch: int) -> Indices:
    """The order of the images in an epoch.

    Args:
      hashes: (n,) uint64 of `order_hashes`.
      epoch: from 0 on.

    Returns:
      (n,) int64, every index once.
    """
    return np.argsort(substream(hashes, epoch), kind="stable").astype(np.int64)


def even_batches(order: Indices, batch_size: int) -> list[Indices]:
    """Cuts an order into as few batches as there must be, whose sizes differ by 1 at most.

    A small rest would be a step of its own, as large as any, by a handful of pictures.

    >>> [batch.tolist() for batch in even_batches(np.arange(7), 3)]
    [[0, 1, 2], [3, 4], [5, 6]]
    """
    count = math.ceil(len(order) / batch_size)
    return [*np.array_split(order, count)] if count else []


def learning_rate(start: float, epoch: int, epochs: int) -> float:
    """The learning rate of an epoch: divided by 10 after each quarter of the epochs.

    Args:
      start: of the first epoch.
      epoch: from 0 on.
      epochs: in all; the paper's 200 are quarters of 50.

    >>> [learning_rate(0.1, epoch, 200) for epoch in (0, 49, 50, 199)]
    [0.1, 0.1, 0.01, 0.0001]
    """
    return float(start / 10 ** (4 * epoch // epochs))
