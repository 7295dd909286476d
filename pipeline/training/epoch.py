"""Epoch: every batch of training once, then those of validation, and what the log says of it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import torch

from pipeline.errors import JobError
from pipeline.training.learner import Learner
from pipeline.training.loader import Batch
from pipeline.training.log import Epoch, Ticker
from pipeline.training.plan import TrainPlan
from pipeline.training.schedule import Schedule, learning_rate
from transforms.hashing import keyed_hash


def run_epoch(
    epoch: int,
    plan: TrainPlan,
    learner: Learner,
    schedule: Schedule,
    batches: Iterator[Batch],
) -> Epoch:
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
    ticker = Ticker(f"epoch {epoch + 1} of {plan.epochs}")
    shown = 0
    for _ in range(schedule.training_batches):
        asked = time.perf_counter()
        pictures, labels = next(batches)
        waited += time.perf_counter() - asked
        sums += learner.step(pictures, labels)
        shown += len(labels)
        ticker.show(shown, len(schedule.order_hashes))
    loss, right, count = sums.tolist()
    seconds = time.perf_counter() - started
    if not math.isfinite(loss):
        raise JobError(
            f"the loss is not a finite number any more in epoch {epoch + 1}; what was done "
            f"before is kept. Try a smaller --lr than {plan.lr:g}"
        )
    val_loss, val_right, val_count = _validate(learner, schedule, batches)
    ticker.clear()
    return Epoch(
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
