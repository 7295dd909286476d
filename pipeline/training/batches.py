"""The batches of a training: their schedule, the augmentation of pictures, and the loader.

    schedule -> orders of batches -> processes that decode and augment -> batches

The batches of an epoch follow from the seed, the images' keys and the epoch alone, so a resumed
training continues as if it had never stopped. Pictures are augmented by torchvision's transforms
(v2): random resized crop, flip and colour jitter. Torch's random generator is seeded for each
(seed, epoch, key), so that neither the number of workers nor the order in which they work changes a
picture.

One loader serves the whole training, including validation, so that its processes start only once
and are not idle between epochs. The processes take orders from a schedule and keep no state, so a
batch does not depend on the process that loads it.
"""

import contextlib
import dataclasses
import functools
import math
import os
import signal
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pipeline.errors import JobError, one_line
from pipeline.training.network import Learner
from pipeline.training.train_plan import Samples, TrainPlan
from transforms.hashing import keyed_hashes, substream


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of training pictures.

    Attributes:
      size: side of the augmented picture, in pixels.
      min_area: smallest share of the picture's area that a crop covers. The aspect ratio of a crop
        is between 3:4 and 4:3.
      jitter: brightness, contrast and saturation are each multiplied by a factor between
        1 - jitter and 1 + jitter, in random order. In [0, 1].
    """

    size: int
    min_area: float = 0.08
    flip: float = 0.5
    jitter: float = 0.1

    @functools.cached_property
    def _transform(self) -> v2.Transform:
        return v2.Compose(
            [
                v2.RandomResizedCrop(self.size, scale=(self.min_area, 1.0), antialias=True),
                v2.RandomHorizontalFlip(self.flip),
                v2.ColorJitter(*[self.jitter] * 3),
            ]
        )

    def apply(self, pixels: NDArray[np.uint8], seed: int) -> torch.Tensor:
        """Augments a picture, (H, W, 3) uint8 RGB, to (3, size, size) uint8 RGB."""
        picture = torch.from_numpy(pixels).permute(2, 0, 1)
        # Restores the generator's state, because without workers the network draws from it, too.
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPU's generators, which dropout uses.
            torch.default_generator.manual_seed(seed)
            augmented: torch.Tensor = self._transform(picture)
        return augmented


Indices = NDArray[np.int64]

TRAIN, VALIDATE = "train", "validate"


@dataclasses.dataclass(frozen=True)
class BatchOrder:
    """A request to load one batch.

    Attributes:
      phase: `TRAIN` or `VALIDATE`.
      epoch: number of the epoch, counted from 0.
      indices: positions of the batch's pictures among the samples of the phase.
    """

    phase: str
    epoch: int
    indices: Indices


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The batches of a training.

    Attributes:
      order_hashes: (n,) uint64, a hash of each of the n training images, from which `permutation`
        derives each epoch's order.
      batch_size: largest number of pictures in a batch.
    """

    order_hashes: NDArray[np.uint64]
    validation: int
    batch_size: int
    epochs: range

    @property
    def training_batches(self) -> int:
        return math.ceil(len(self.order_hashes) / self.batch_size)

    @property
    def validation_batches(self) -> int:
        return math.ceil(self.validation / self.batch_size)

    def __iter__(self) -> Iterator[BatchOrder]:
        for epoch in self.epochs:
            for batch in even_batches(permutation(self.order_hashes, epoch), self.batch_size):
                yield BatchOrder(TRAIN, epoch, batch)
            for batch in even_batches(np.arange(self.validation), self.batch_size):
                yield BatchOrder(VALIDATE, epoch, batch)


def permutation(hashes: NDArray[np.uint64], epoch: int) -> Indices:
    """Returns the order of n images in an epoch, counted from 0: (n,) int64, each index once."""
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

    `epoch` counts from 0. The paper trains for 200, so its quarters are 50 epochs long.

    >>> [learning_rate(0.1, epoch, 200) for epoch in (0, 49, 50, 199)]
    [0.1, 0.1, 0.01, 0.0001]
    """
    return float(start / 10 ** (4 * epoch // epochs))


_AHEAD = 2
"""Number of batches that each process prepares in advance."""
_NICENESS = 10
"""Added to the niceness of processes that share the CPU with the network. Of a core that other
processes want, too, it leaves them a tenth, and of an idle one all."""

Batch = tuple[torch.Tensor, torch.Tensor]
"""The n pictures of a batch, (n, 3, S, S) uint8 RGB, and their labels, (n,) int64."""


@dataclasses.dataclass(eq=False)
class PictureBatches(Dataset[Batch | JobError]):
    """A map from orders to batches, as torch's DataLoader takes it.

    Attributes:
      training: pictures to train on, which are augmented.
      validation: pictures to validate on, which are not augmented; None without validation.
    """

    training: Samples
    validation: Samples | None
    augmentation: Augmentation
    seed: int

    def __post_init__(self) -> None:
        self._hashes = keyed_hashes(self.seed, "augmentation", self.training.keys.tolist())

    def __getitem__(self, order: BatchOrder) -> Batch | JobError:
        samples = self.training if order.phase == TRAIN else self.validation
        assert samples is not None
        pixels = samples.pixels(order.indices)
        try:
            if order.phase == TRAIN:
                seeds = substream(self._hashes[order.indices], order.epoch).tolist()
                pictures = list(map(self.augmentation.apply, pixels, seeds))
            else:
                pictures = [torch.from_numpy(each).permute(2, 0, 1) for each in pixels]
        except (JobError, OSError) as error:
            # Raised here, it would reach the main process as a traceback instead of one line.
            return JobError(str(error))
        batch = torch.empty(
            (len(pictures), *pictures[0].shape),
            dtype=torch.uint8,
            memory_format=torch.channels_last,
        )
        for out, picture in zip(batch, pictures, strict=True):
            out.copy_(picture)
        return batch, torch.from_numpy(samples.labels[order.indices])


@contextlib.contextmanager
def training_batches(
    plan: TrainPlan,
    learner: Learner,
    training: Samples,
    validation: Samples | None,
    epochs: range,
) -> Iterator[tuple[Schedule, Iterator[Batch]]]:
    """Loads batches while the block runs, which gets their schedule and an iterator over them.

    The `validation` pictures, if any, follow each epoch. Raises JobError if the pictures cannot be
    read, or the disk has no room for them.
    """
    schedule = Schedule(
        keyed_hashes(plan.seed, "order", training.keys.tolist()),
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
    with (
        training.fetched(),
        contextlib.nullcontext() if validation is None else validation.fetched(),
        contextlib.closing(batches),
    ):
        yield schedule, batches


def load_batches(
    pictures: PictureBatches, schedule: Schedule, *, workers: int, device: torch.device
) -> Generator[Batch, None, None]:
    """Yields the batches of a schedule, in order.

    Args:
      pictures: prepares the batches. Its samples must stay `fetched` until the last batch.
      workers: number of loader processes, 0 to load in this process.
      device: device of the network. For a GPU, memory is pinned; beside a network on the CPU, the
        processes have a lower priority.

    Raises:
      JobError: a picture is broken, the file cannot be read, or a process has died.
    """
    options: dict[str, Any] = {
        "multiprocessing_context": "fork",
        "prefetch_factor": _AHEAD,
        "worker_init_fn": functools.partial(_init_worker, device.type == "cpu"),
    }
    loader: DataLoader[Batch | JobError] = DataLoader(
        pictures,
        batch_size=None,
        sampler=schedule,
        num_workers=workers,
        collate_fn=lambda batch: batch,
        pin_memory=device.type == "cuda",
        **(options if workers else {}),
    )
    try:
        for batch in loader:
            if isinstance(batch, JobError):
                raise batch
            yield batch
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            raise JobError(
                f"a process that loads pictures has died ({one_line(error)}); "
                "check that there is enough memory, or use fewer --workers"
            ) from error
        raise


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
