"""Trainers of a matrix's rows: they fit linear probes on a frozen network, or train whole networks.

Tests of a probe reuse the stored features of pictures. Whole networks are trained in the same way
as by `in9 train`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterable

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.analyses.matrix.plan import IN9L, MatrixPlan
from pipeline.evaluate.predict_shards import ShardPictures
from pipeline.models.checkpoint import read_metadata
from pipeline.models.loader import Batch
from pipeline.models.predict import Predictor, are_numbers, refuse_broken
from pipeline.models.registry import load_model
from pipeline.models.timm_names import read_state
from pipeline.runtime.lock import DATASET_LOCK, held
from pipeline.training.loop import MODEL, holds_other_training, train
from pipeline.training.probe_fit import MODELS, Backbone, ProbePlan, fit_variant
from pipeline.training.train_plan import TrainPlan


class ProbeTrainer:
    """A trainer that fits a linear probe on each variant.

    Args:
      backbone: the frozen network.
      plan: plan of the matrix.
    """

    def __init__(self, backbone: Backbone, plan: MatrixPlan) -> None:
        self._backbone, self._plan = backbone, plan
        self.arch = backbone.model.name
        self.name = f"probe-{self.arch.replace('/', '_')}{plan.suffix()}"

    def train(self, row: str) -> str:
        """Same as `Trainer.train`."""
        dataset, variant = self._plan.source(row)
        return fit_variant(
            self._backbone,
            ProbePlan(
                dataset, variant, self._plan.train_split, self._plan.holdout, self._plan.seed, row
            ),
            self._plan.dataset.store,
        )

    def scorer(self, entry: str) -> ProbeScorer:
        """Same as `Trainer.scorer`."""
        return ProbeScorer(self._backbone, entry.partition("=")[2], self._plan.predict.device)


class ProbeScorer:
    """A `Scorer` that computes a probe's logits from features of the frozen network. Features that
    are stored need no forward pass.

    Args:
      backbone: the frozen network.
      path: path of the probe's checkpoint.
      device: device that features are computed on.

    Attributes:
      device: device that features are computed on.
    """

    def __init__(self, backbone: Backbone, path: str, device: str) -> None:
        self._backbone = backbone
        self.device = torch.device(device)
        state = read_state(path)
        names = {id(value): name for name, value in backbone.model.module.named_parameters()}
        self._weight = state[names[id(backbone.layer.weight)]]
        self._bias = state[names[id(backbone.layer.bias)]]

    @torch.inference_mode()
    def _scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs = torch.from_numpy(features)
        outputs = torch.nn.functional.linear(inputs, self._weight, self._bias)
        refuse_broken(are_numbers(outputs))
        return np.asarray(outputs)

    def logits(
        self, parts: Iterable[ShardPictures], stored: int
    ) -> Generator[tuple[Batch[ShardPictures], NDArray[np.float32]], None, None]:
        """Same as `Predictor.logits`, but with all pictures of a part in one batch."""
        for part in parts:
            with contextlib.closing(part.tables(())) as reading:
                tables = list(reading)
            if not sum(map(len, tables)):
                continue
            rows = pa.concat_tables(tables)
            all_pictures = dataclasses.replace(part, keys=None)
            features = self._backbone.shard_features(all_pictures).select(rows["key"].to_pylist())
            # It has no pixels, and so never counts as decoded.
            batch = Batch(part, rows, np.empty((0, 0, 0, 3), np.uint8), is_new=False)
            yield batch, self._scores(features.values)


class NetworkTrainer:
    """A trainer that trains a network on each variant, from scratch or from pretrained weights.

    Args:
      plan: plan of the matrix.
      training: settings that are the same for all rows.
      overwrite: whether to start over if a row's folder holds a training with other flags.
    """

    def __init__(self, plan: MatrixPlan, training: TrainPlan, *, overwrite: bool = False) -> None:
        self._plan = plan
        self._training = dataclasses.replace(
            training, train_split=plan.train_split, holdout=plan.holdout.share, seed=plan.seed
        )
        self._overwrite = overwrite
        self.arch = training.arch
        kind = "pretrained-" if training.pretrained else ""
        suffix = f"-{training.epochs}ep{plan.suffix()}"
        self.name = f"{kind}{training.arch.replace('/', '_')}{suffix}"

    def train(self, row: str) -> str:
        """Same as `Trainer.train`, but resumes a training that was stopped.

        Raises:
          UsageError: the row's folder holds a training with other flags, without `overwrite`.
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
        existing = read_metadata(path) if store.exists(MODEL) else None
        # A model that was trained on another version of the dataset is trained again.
        is_stale = existing is not None and existing.dataset != dataset.manifest.fingerprint
        with held(store, DATASET_LOCK) as store:
            # A training with the same flags is resumed or kept, so that a matrix that was stopped
            # does not begin again with its first row.
            overwrite = is_stale or (
                self._overwrite and holds_other_training(dataset, training, store)
            )
            train(dataset, training, store, overwrite=overwrite)
        return path

    def scorer(self, entry: str) -> Predictor:
        """Same as `Trainer.scorer`; the scorer computes logits by forward passes of the network."""
        return Predictor(load_model(entry), self._plan.predict)
