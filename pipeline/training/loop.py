"""Train: the loop over epochs, which can be stopped and goes on after the last whole one.

OUTPUT/model.safetensors   the weights after the last epoch, for --models ARCH=FILE
OUTPUT/state.pth           the same with the optimizer's, and what was trained how
OUTPUT/log.csv             a row for each epoch

The state of a training after an epoch: all that going on needs, in one file.

Epoch: every batch of training once, then those of validation, and what the log says of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipeline.dataset.folder import Dataset
from pipeline.errors import JobError
from pipeline.models.checkpoint import TrainedOn, digest_of_classes, save_checkpoint
from pipeline.runtime.machine import usable_cores
from pipeline.storage.store import WORK_FOLDER, Store
from pipeline.training.augment import Augmentation
from pipeline.training.batches import (
    Batch,
    PictureBatches,
    batch_bytes,
    check_shared_memory,
    load_batches,
)
from pipeline.training.learner import Learner
from pipeline.training.network import Network, build_network
from pipeline.training.samples import Samples
from pipeline.training.schedule import Schedule, learning_rate, order_hashes
from pipeline.training.train_plan import TrainPlan, check_same, find_samples
from pipeline.training.training_log import EpochLog, TrainingLog, epoch_bar, say_now
from transforms.hashing import keyed_hash

MODEL = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """A training that is done.

    Attributes:
      entry: of `--models`, that evaluates it.
      is_new: whether there was anything to do.
    """

    entry: str
    is_new: bool


def train(
    dataset: Dataset,
    plan: TrainPlan,
    store: Store,
    *,
    overwrite: bool = False,
    say: Callable[[str], None] = say_now,
) -> TrainingResult:
    """Trains a network, or goes on where the folder's state ends.

    What is trained depends on the plan's `identity` alone, as far as the device computes the
    same twice: on the CPU of one machine with the same number of threads, byte by byte. That
    holds for any number of loader processes, and wherever it was stopped in between.

    Args:
      dataset: what to train on.
      plan: what to train, and how.
      store: folder of the training, which this job alone may write to.
      overwrite: begin anew, whatever the folder holds.
      say: takes each line of what happens.

    Raises:
      UsageError: the plan does not fit the dataset or the machine, or the folder holds another
        training.
      JobError: the training failed; what was done up to the last whole epoch is kept.
      OSError: files cannot be read or written.
    """
    with _settings(plan):
        state = None if overwrite else read_state_file(store)
        if state is not None:
            check_same(state["identity"], plan.identity(dataset), store.root)
        training, validation = find_samples(dataset, plan)
        network = build_network(
            plan.arch,
            dataset.taxonomy,
            seed=plan.seed,
            pretrained=plan.pretrained,
            weights=plan.weights,
        )
        job = _TrainingRun(dataset, plan, store, network, training, validation)
        return job.run(state, say)


class _TrainingRun:
    """A training. Arguments as of `train`, and what it begins with."""

    def __init__(
        self,
        dataset: Dataset,
        plan: TrainPlan,
        store: Store,
        network: Network,
        training: Samples,
        validation: Samples | None,
    ) -> None:
        self._dataset = dataset
        self._plan = plan
        self._store = store
        self._network = network
        self._training = training
        self._validation = validation
        given = network.preprocessing
        stored = dataset.manifest.config.segment.image_size
        size = given.input_size if given.fixed_size else stored
        self._check_sizes(size, stored)
        self._learner = Learner(network, plan, size)

    def _check_sizes(self, size: int, stored: int) -> None:
        needed = max(
            batch_bytes(samples, self._plan.batch_size, side)
            for samples, side in ((self._training, size), (self._validation, stored))
            if samples is not None
        )
        check_shared_memory(self._plan.workers, needed)

    def run(self, state: dict[str, Any] | None, say: Callable[[str], None]) -> TrainingResult:
        """Trains the epochs that the state has not."""
        plan = self._plan
        if state is not None:
            self._learner.restore(state)
        done = state["epoch"] if state is not None else 0
        rows = state["rows"] if state is not None else []
        entry = f"{self._network.architecture}={self._store.path(MODEL)}"
        if done == plan.epochs:
            if not self._store.exists(MODEL):
                self._write_model(done)
            return TrainingResult(entry, is_new=False)
        say(self._begin(done))
        schedule = Schedule(
            order_hashes(plan.seed, self._training.keys),
            len(self._validation) if self._validation is not None else 0,
            plan.batch_size,
            range(done, plan.epochs),
        )
        batches = load_batches(
            PictureBatches(
                self._training,
                self._validation,
                Augmentation(self._learner.size),
                plan.seed,
            ),
            schedule,
            workers=plan.workers,
            pin=self._learner.device.type == "cuda",
        )
        log = TrainingLog(self._store, plan.epochs, rows, say)
        with contextlib.ExitStack() as stack:
            for samples in (self._training, self._validation):
                if samples is not None:
                    stack.enter_context(samples.fetched())
            stack.enter_context(contextlib.closing(batches))
            for epoch in schedule.epochs:
                log.add(run_epoch(epoch, plan, self._learner, schedule, batches))
                self._write(epoch + 1, log)
        return TrainingResult(entry, is_new=True)

    def _begin(self, done: int) -> str:
        """What is about to happen, in a line."""
        plan = self._plan
        text = (
            f"{plan.arch} on {len(self._training)} images of {plan.train_split}, {plan.variant}; "
        )
        if self._validation is None:
            text += "no validation"
        else:
            where = "held out" if plan.holdout else f"of {plan.eval_split}"
            text += f"validation on {len(self._validation)} {where}"
        text += f"; {self._learner.device.type}, {plan.precision}"
        return text + (f"; going on after epoch {done} of {plan.epochs}" if done else "")

    def _write(self, epochs: int, log: TrainingLog) -> None:
        """Model, log and state, in this order: with the state, the others are there."""
        self._write_model(epochs)
        log.write()
        write_state(
            self._store,
            {
                "identity": self._plan.identity(self._dataset),
                "epoch": epochs,
                **self._learner.state(),
                "rows": log.rows,
            },
        )
        self._store.prune(WORK_FOLDER)

    def _write_model(self, epochs: int) -> None:
        plan = self._plan
        settings = plan.identity(self._dataset)
        save_checkpoint(
            self._store,
            MODEL,
            self._learner.weights(),
            TrainedOn(
                architecture=self._network.architecture,
                variant=plan.variant,
                dataset=self._dataset.manifest.fingerprint,
                split=plan.train_split,
                classes=digest_of_classes(self._dataset.taxonomy),
                preprocessing=self._network.preprocessing,
                keys=tuple(sorted(self._training.keys.tolist())),
                method="train",
                seed=plan.seed,
                epochs=epochs,
                holdout=plan.holdout,
                pretrained=self._network.pretrained,
                settings={name: settings[name] for name in _SETTINGS},
            ),
        )


@contextlib.contextmanager
def _settings(plan: TrainPlan) -> Iterator[None]:
    """What holds for all of torch, while the block runs."""
    threads, tries = torch.get_num_threads(), torch.backends.cudnn.benchmark
    torch.set_num_threads(usable_cores())
    # Batches have two sizes at most, so trying kernels pays.
    torch.backends.cudnn.benchmark = True
    allow_tf32 = plan.precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = tries


_SETTINGS = ("batch_size", "lr", "weight_decay", "precision")


STATE = "state.pth"
_FORMAT = "imagenet9 training"
_VERSION = 1


def write_state(store: Store, content: dict[str, Any]) -> None:
    """Writes the state: whole, or the last one stays.

    Args:
      store: the training's folder.
      content: tensors, numbers, text, and lists and dictionaries of them.
    """
    data = io.BytesIO()
    torch.save({"format": _FORMAT, "version": _VERSION, **content}, data)
    with store.create(STATE) as file:
        file.write(data.getbuffer())  # type: ignore[arg-type]


def read_state_file(store: Store) -> dict[str, Any] | None:
    """What `write_state` wrote, on the CPU; None if there is nothing.

    Raises:
      JobError: it cannot be read.
    """
    if not store.exists(STATE):
        return None
    path = store.path(STATE)
    try:
        with store.open(STATE) as file:
            content = torch.load(file, map_location="cpu", weights_only=True)
        found = (content["format"], content["version"])
    except Exception as error:  # Whatever the bytes provoke.
        raise JobError(
            f"{path} cannot be read ({type(error).__name__}); begin anew with --overwrite"
        ) from error
    if found != (_FORMAT, _VERSION):
        raise JobError(
            f"{path} is {found[0]!r} of version {found[1]}, which is not read here; begin anew "
            "with --overwrite"
        )
    state: dict[str, Any] = content
    return state


def run_epoch(
    epoch: int,
    plan: TrainPlan,
    learner: Learner,
    schedule: Schedule,
    batches: Iterator[Batch],
) -> EpochLog:
    """Trains one epoch, and then validates.

    Args:
      epoch: counted from 0.
      plan: how.
      learner: that learns.
      schedule: of the batches.
      batches: those of this epoch come next.

    Raises:
      JobError: the loss is not a finite number any more.
    """
    started = time.perf_counter()
    lr = learning_rate(plan.lr, epoch, plan.epochs)
    # Dropout knows no generator but torch's own; each epoch begins with one of its own, so
    # that it does not matter which were done before in this process. The 0 is this process, one
    # of one.
    torch.manual_seed(keyed_hash(plan.seed, "dropout", f"{epoch} 0") >> 1)
    learner.begin_training(lr)
    sums = learner.nothing()
    waited = 0.0
    name = f"epoch {epoch + 1} of {plan.epochs}"
    with epoch_bar(name, len(schedule.order_hashes)) as advance:
        for _ in range(schedule.training_batches):
            asked = time.perf_counter()
            pictures, labels = next(batches)
            waited += time.perf_counter() - asked
            sums += learner.step(pictures, labels)
            advance(len(labels))
    loss, right, count = sums.tolist()
    seconds = time.perf_counter() - started
    if not math.isfinite(loss):
        raise JobError(
            f"the loss is not a finite number any more in epoch {epoch + 1}; what was done "
            f"before is kept. Try a smaller --lr than {plan.lr:g}"
        )
    val_loss, val_right, val_count = _validate(learner, schedule, batches)
    return EpochLog(
        epoch=epoch + 1,
        lr=lr,
        loss=loss / count,
        accuracy=right / count,
        val_loss=val_loss / val_count if val_count else None,
        val_accuracy=val_right / val_count if val_count else None,
        images_per_second=count / seconds,
        data_wait=waited / seconds,
        seconds=time.perf_counter() - started,
    )


def _validate(
    learner: Learner, schedule: Schedule, batches: Iterator[Batch]
) -> tuple[float, float, float]:
    """(summed loss, right answers, pictures)."""
    learner.begin_validation()
    sums = learner.nothing()
    for _ in range(schedule.validation_batches):
        pictures, labels = next(batches)
        sums += learner.test(pictures, labels)
    loss, right, count = sums.tolist()
    return loss, right, count
