"""The loader of training: processes that prepare batches before the network needs them.

One loader serves the whole training, including validation, so that its processes start only once
and are not idle between epochs. The processes take orders from a schedule and keep no state, so a
batch does not depend on the process that loads it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pipeline.errors import JobError, UsageError, in_short
from pipeline.training.augment import Augmentation, augmentation_hashes, epoch_seeds
from pipeline.training.learner import Learner
from pipeline.training.samples import Samples
from pipeline.training.schedule import TRAIN, BatchOrder, Schedule, order_hashes
from pipeline.training.train_plan import TrainPlan

_AHEAD = 2
"""Number of batches that each process prepares in advance."""
_NICENESS = 10
"""Added to the niceness of processes that share the CPU with the network. Of a core that other
processes want, too, it leaves them a tenth, and of an idle one all."""
_SHARED_MEMORY = "/dev/shm"

Batch = tuple[torch.Tensor, torch.Tensor]
"""The n pictures of a batch, (n, 3, S, S) uint8 RGB, and their labels, (n,) int64."""


@dataclasses.dataclass(frozen=True)
class LoadFailure:
    """The message of an error, returned in place of a batch. If the error were raised, it would
    reach the main process as a traceback instead of one line."""

    message: str


class PictureBatches(Dataset[Batch | LoadFailure]):
    """A map from orders to batches, as torch's DataLoader takes it.

    Args:
      training: pictures to train on, which are augmented.
      validation: pictures to validate on, which are not augmented; None without validation.
      augmentation: augmentation of the training pictures.
      seed: seed of the augmentation.
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
            seeds = epoch_seeds(self._hashes[order.indices], order.epoch).tolist()
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
        for out, picture in zip(batch, pictures, strict=True):
            out.copy_(picture)
        return batch, torch.from_numpy(samples.labels[order.indices])


class _Orders(Sampler[BatchOrder]):
    """A schedule as a sampler for torch's DataLoader."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def __iter__(self) -> Iterator[BatchOrder]:
        return iter(self._schedule)

    def __len__(self) -> int:
        return len(self._schedule)


@contextlib.contextmanager
def training_batches(
    plan: TrainPlan,
    learner: Learner,
    training: Samples,
    validation: Samples | None,
    epochs: range,
) -> Iterator[tuple[Schedule, Iterator[Batch]]]:
    """Loads batches while the block runs, which gets their schedule and an iterator over them.

    Args:
      plan: settings of the training.
      learner: the learner that the batches are for.
      training: pictures to train on.
      validation: pictures to validate on after each epoch, None without validation.
      epochs: the epochs to train.

    Raises:
      JobError: the pictures cannot be read, or the disk has no room for them.
    """
    schedule = Schedule(
        order_hashes(plan.seed, training.keys),
        len(validation) if validation is not None else 0,
        plan.batch_size,
        epochs,
    )
    batches = load_batches(
        PictureBatches(training, validation, Augmentation(learner.size), plan.seed),
        schedule,
        workers=plan.workers,
        device=learner.device,
    )
    with contextlib.ExitStack() as stack:
        for samples in (training, validation):
            if samples is not None:
                stack.enter_context(samples.fetched())
        stack.enter_context(contextlib.closing(batches))
        yield schedule, batches


def load_batches(
    pictures: PictureBatches, schedule: Schedule, *, workers: int, device: torch.device
) -> Generator[Batch, None, None]:
    """Yields the batches of a schedule, in order.

    Args:
      pictures: prepares the batches. Its samples must stay `fetched` until the last batch.
      schedule: the orders of the batches.
      workers: number of loader processes, 0 to load in this process.
      device: device of the network. For a GPU, memory is pinned; beside a network on the CPU, the
        processes have a lower priority.

    Raises:
      JobError: a picture is broken, the file cannot be read, or a process has died.
    """
    options: dict[str, Any] = {}
    if workers:
        options = {
            "multiprocessing_context": "fork",
            "prefetch_factor": _AHEAD,
            "worker_init_fn": functools.partial(_init_worker, device.type == "cpu"),
        }
    loader: DataLoader[Batch | LoadFailure] = DataLoader(
        pictures,
        batch_size=None,
        sampler=_Orders(schedule),
        num_workers=workers,
        collate_fn=_identity,
        pin_memory=device.type == "cuda",
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
                f"a process that loads pictures has died ({in_short(error)}); "
                "check that there is enough memory, or use fewer --workers"
            ) from error
        raise


def check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Raises UsageError if the batches of the loader's processes do not fit into shared memory.

    Without this check, the processes would be killed at the first batch without an explanation.
    Containers often have only 64 MB of shared memory.

    Args:
      workers: number of loader processes.
      batch_bytes: size of the largest batch, in bytes.
    """
    if not workers or not os.path.isdir(_SHARED_MEMORY):
        return
    needed = batch_bytes * (workers * _AHEAD + 1)
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise UsageError(
            f"{workers} processes need {needed >> 20} MB of shared memory for their batches, but "
            f"{_SHARED_MEMORY} has {free >> 20} MB: use fewer --workers (0 for none) or a smaller "
            "--batch_size, or give the container more (docker run --shm-size)"
        )


def _identity(batch: Any) -> Any:
    return batch


def _init_worker(is_network_on_cpu: bool, _: int) -> None:
    """Limits a loader process to one thread, and lets the main process handle Ctrl-C."""
    torch.set_num_threads(1)
    if is_network_on_cpu:
        # A step takes as long as its slowest thread. With equal priority, this process would take a
        # core from one thread, and all others would wait.
        os.nice(_NICENESS)
    # Ctrl-C reaches all processes of a terminal; the main process decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The handlers that are inherited from the main process would print a traceback.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def batch_bytes(samples: Samples, batch_size: int, side: int) -> int:
    """Returns the size of the largest batch, in bytes."""
    return int(np.prod((min(batch_size, len(samples)), 3, side, side)))
