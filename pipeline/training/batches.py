"""Loader: batches of pictures, by processes that work ahead of the network.

One loader serves the whole training, validation included, so that its processes start once and
are never idle between two epochs. What they have to do is said by the orders of a schedule;
they have no state of their own, and a batch is the same whoever loads it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.errors import JobError, UsageError, in_short
from pipeline.training.augment import Augmentation, augmentation_hashes, seeds_of
from pipeline.training.samples import Samples
from pipeline.training.schedule import TRAIN, BatchOrder, Schedule

_AHEAD = 2
"""Batches that each process has ready."""
_SHARED_MEMORY = "/dev/shm"

Batch = tuple[torch.Tensor, torch.Tensor]
"""Pictures (n, 3, S, S) uint8 and labels (n,) int64."""


@dataclasses.dataclass(frozen=True)
class LoadFailure:
    """Why there is no batch. As an error, it would reach the other process as its traceback."""

    message: str


class PictureBatches(Dataset[Batch | LoadFailure]):
    """Orders to batches.

    Args:
      training: pictures that are augmented.
      validation: pictures that are shown as they are, None without any.
      augmentation: of the training pictures.
      seed: of the augmentation.
    """

    def __init__(
        self,
        training: Samples,
        validation: Samples | None,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        self._training = training
        self._validation = validation
        self._augmentation = augmentation
        self._hashes = augmentation_hashes(seed, training.keys.tolist())

    def __getitem__(self, order: BatchOrder) -> Batch | LoadFailure:
        try:
            return self._batch(order)
        except (JobError, OSError) as error:
            return LoadFailure(str(error))

    def _batch(self, order: BatchOrder) -> Batch:
        if order.part == TRAIN:
            samples = self._training
            seeds = seeds_of(self._hashes[order.indices], order.epoch).tolist()
            pictures = [
                self._augmentation.apply(pixels, seed)
                for pixels, seed in zip(samples.pixels(order.indices), seeds, strict=True)
            ]
        else:
            assert self._validation is not None
            samples = self._validation
            pictures = [
                torch.from_numpy(pixels).permute(2, 0, 1)
                for pixels in samples.pixels(order.indices)
            ]
        batch = torch.empty(
            (len(pictures), *pictures[0].shape),
            dtype=torch.uint8,
            memory_format=torch.channels_last,
        )
        for place, picture in zip(batch, pictures, strict=True):
            place.copy_(picture)
        return batch, torch.from_numpy(samples.labels[order.indices])


class _Orders(Sampler[BatchOrder]):
    """A schedule, as a loader takes it."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def __iter__(self) -> Iterator[BatchOrder]:
        return iter(self._schedule)

    def __len__(self) -> int:
        return len(self._schedule)


def load_batches(
    pictures: PictureBatches, schedule: Schedule, *, workers: int, pin: bool
) -> Generator[Batch, None, None]:
    """The batches of a schedule, in order.

    Args:
      pictures: what gives them; its samples are fetched while batches are loaded.
      schedule: the orders.
      workers: processes, 0 to load in this one.
      pin: whether the batches are to be copied to a GPU.

    Raises:
      JobError: a picture is broken, the file cannot be read, or a process has gone.
    """
    options: dict[str, Any] = {}
    if workers:
        options = {
            "multiprocessing_context": "fork",
            "prefetch_factor": _AHEAD,
            "worker_init_fn": _begin,
        }
    loader: DataLoader[Batch | LoadFailure] = DataLoader(
        pictures,
        batch_size=None,
        sampler=_Orders(schedule),
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        **options,
    )
    try:
        for batch in loader:
            if isinstance(batch, LoadFailure):
                raise JobError(batch.message)
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise JobError(
                f"a process that loads pictures has ended ({in_short(error)}); "
                "see if there is memory for it, or use fewer: --workers"
            ) from error
        raise


def check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Raises UsageError if batches do not fit where the loader's processes leave them.

    Without this check they would be killed at the first one, with no word about why. Containers
    often have 64 MB.
    """
    if not workers or not os.path.isdir(_SHARED_MEMORY):
        return
    needed = batch_bytes * (workers * _AHEAD + 1)
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise UsageError(
            f"{workers} processes need {needed >> 20} MB of shared memory for their batches, and "
            f"{_SHARED_MEMORY} has {free >> 20} MB: use fewer with --workers (0 for none), a "
            "smaller --batch_size, or give the container more (docker run --shm-size)"
        )


def _as_it_is(batch: Any) -> Any:
    return batch


def _begin(_: int) -> None:
    """At the start of a process: it is one of several, and ends with the one that started it."""
    torch.set_num_threads(1)
    # Ctrl-C reaches all processes of a terminal; the first one says what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def batch_bytes(samples: Samples, batch_size: int, side: int) -> int:
    """Bytes of the largest batch."""
    return int(np.prod((min(batch_size, len(samples)), 3, side, side)))
