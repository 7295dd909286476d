"""Rows of the matrix by training whole networks, as `in9 train` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from pipeline.analyses.matrix.plan import IN9L, MatrixPlan
from pipeline.models.checkpoint import read_about
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model
from pipeline.runtime.lock import DATASET_LOCK, held
from pipeline.training.loop import MODEL, train
from pipeline.training.plan import TrainPlan
from pipeline.training.probe import MODELS


class NetworkTrainer:
    """Trains one architecture on each variant, from scratch or from its pretrained weights.

    Args:
      plan: of the matrix.
      training: of each row, but for what differs from row to row.
      overwrite: begin anew where a training of other flags is in the way.
      say: takes each line of what happens.
    """

    def __init__(
        self,
        plan: MatrixPlan,
        training: TrainPlan,
        *,
        overwrite: bool = False,
        say: Callable[[str], None] = print,
    ) -> None:
        self._plan = plan
        self._training = dataclasses.replace(
            training, train_split=plan.train_split, holdout=plan.holdout.share, seed=plan.seed
        )
        self._overwrite, self._say = overwrite, say
        self.arch = training.arch
        kind = "pretrained-" if training.pretrained else ""
        suffix = f"-{training.epochs}ep{plan.suffix()}"
        self.name = f"{kind}{training.arch.replace('/', '_')}{suffix}"

    def train(self, row: str) -> str:
        """As `Trainer.train`; one that was stopped goes on where it was.

        Raises:
          UsageError: the folder holds a training with other flags.
          JobError: the training failed.
        """
        dataset, variant = self._plan.source(row)
        splits = dataset.manifest.config.split
        validates = not self._plan.holdout.share and self._plan.split != self._plan.train_split
        training = dataclasses.replace(
            self._training,
            variant=variant,
            eval_split=self._plan.split if validates and self._plan.split in splits else None,
        )
        folder = f"{MODELS}/{self.name}/{row}" if row == IN9L else f"{MODELS}/{training.name}"
        store = self._plan.dataset.store.below(folder)
        path = store.path(MODEL)
        there = read_about(path) if store.exists(MODEL) else None
        # What was trained on another state of the dataset is of no use any more.
        is_stale = there is not None and there.dataset != dataset.manifest.fingerprint
        with held(store, DATASET_LOCK) as store:
            train(dataset, training, store, overwrite=is_stale or self._overwrite, say=self._say)
        return path

    def scorer(self, entry: str) -> Predictor:
        """As `Trainer.scorer`: by whole forward passes."""
        return Predictor(load_model(entry), self._plan.predict)
