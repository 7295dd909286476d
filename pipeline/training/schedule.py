"""The schedule of a training: the order of pictures, the batches and the learning rate.

The batches of an epoch follow from the seed, the images' keys and the epoch alone, so a resumed
training continues as if it had never stopped.
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
    """A request to load one batch.

    Attributes:
      part: `TRAIN` or `VALIDATE`.
      epoch: number of the epoch, counted from 0.
      indices: positions of the batch's pictures among the samples of the part.
    """

    part: str
    epoch: int
    indices: Indices


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The batches of a training.

    Attributes:
      order_hashes: (n,) uint64, a hash of each of the n training images, from `order_hashes`.
      validation: number of images to validate on.
      batch_size: largest number of pictures in a batch.
      epochs: the epochs to train, in order.
    """

    order_hashes: NDArray[np.uint64]
    validation: int
    batch_size: int
    epochs: range

    @property
    def training_batches(self) -> int:
        """Number of training batches in an epoch."""
        return math.ceil(len(self.order_hashes) / self.batch_size)

    @property
    def validation_batches(self) -> int:
        """Number of validation batches after an epoch."""
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
    """Returns a hash for each image, (n,) uint64, from which `permutation` derives each epoch's
    order."""
    return keyed_hashes(seed, "order", keys.tolist())


def permutation(hashes: NDArray[np.uint64], epoch: int) -> Indices:
    """Returns the order of the images in an epoch.

    Args:
      hashes: (n,) uint64, from `order_hashes`.
      epoch: number of the epoch, counted from 0.

    Returns:
      (n,) int64, the index of each image once.
    """
    return np.argsort(substream(hashes, epoch), kind="stable").astype(np.int64)


def even_batches(order: Indices, batch_size: int) -> list[Indices]:
    """Splits an order into as few batches as possible, whose sizes differ by at most 1.

    A small last batch would let a handful of pictures decide a whole step of the optimizer.

    >>> [batch.tolist() for batch in even_batches(np.arange(7), 3)]
    [[0, 1, 2], [3, 4], [5, 6]]
    """
    count = math.ceil(len(order) / batch_size)
    return [*np.array_split(order, count)] if count else []


def learning_rate(start: float, epoch: int, epochs: int) -> float:
    """Computes the learning rate of an epoch. It is divided by 10 after each quarter of the epochs.

    Args:
      start: learning rate of the first epoch.
      epoch: number of the epoch, counted from 0.
      epochs: number of epochs; the paper trains for 200, so its quarters are 50 epochs long.

    >>> [learning_rate(0.1, epoch, 200) for epoch in (0, 49, 50, 199)]
    [0.1, 0.1, 0.01, 0.0001]
    """
    return float(start / 10 ** (4 * epoch // epochs))
