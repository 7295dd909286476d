"""Fits the head of a frozen encoder on a variant: a linear probe, or nearest neighbours.

The checkpoint holds the head alone and names the encoder, so `--models probe:FILE` loads both. The
encoder's features of each picture are computed once (`pipeline.evaluate.features`).
"""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
import torch

from pipeline.dataset.folder import selected_rows
from pipeline.dataset.records import write_table
from pipeline.errors import ModelError
from pipeline.evaluate.features import FeatureFiles, Features, HeadPlan, encode, is_fitted
from pipeline.evaluate.predict_shards import ShardPictures
from pipeline.models.checkpoint import PROBE, TrainedOn, head_file, save_checkpoint
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model
from pipeline.storage.store import Store
from pipeline.training.linear_probe import choose_penalty, fit_probes

State = Mapping[str, torch.Tensor]


def fit_head(plan: HeadPlan, trained: TrainedOn, features: Features) -> tuple[State, TrainedOn]:
    """Fits a head on features of all of a plan's pictures; returns its tensors and its metadata.

    Raises JobError for the reasons of `fit_probes`.
    """
    values = np.stack([features[key] for key in trained.keys])
    rows = {row["key"]: row for row in selected_rows(plan.dataset, plan.split)}
    labels = np.asarray([rows[key]["label"] for key in trained.keys], np.int64)
    if trained.method == "knn":
        return {"features": torch.from_numpy(values), "labels": torch.from_numpy(labels)}, trained
    units = [rows[key].get("group") or key for key in trained.keys]
    penalty = choose_penalty(values, labels, units)
    (probe,) = fit_probes(values, labels, plan.dataset.taxonomy.num_labels, [penalty])
    state = {"weight": torch.from_numpy(probe.weight), "bias": torch.from_numpy(probe.bias)}
    settings = {**trained.settings, "penalty": penalty}
    return {name: value.float() for name, value in state.items()}, dataclasses.replace(
        trained, settings=settings
    )


class Encoder:
    """A frozen encoder whose features are kept in a dataset's folder.

    Args:
      entry: the encoder's entry of `--models`, such as a timm network with weights.
      cache: the folder of the dataset.

    Raises:
      UsageError, JobError: for the reasons of `load_model`.
    """

    def __init__(
        self, entry: str, predict: PredictConfig, cache: Store, weights: str | None = None
    ) -> None:
        self.model = load_model(PROBE + entry, weights)
        self._files = FeatureFiles(cache, self.model.identity, predict)

    @functools.cached_property
    def _predictor(self) -> Predictor:
        return Predictor(self.model, self._files.predict)

    def features(self, pictures: ShardPictures, part: str = "") -> Features:
        """Computes the features of pictures, or reads them; they are kept as a `part`.

        Raises:
          ModelError: the encoder's forward pass fails, or a feature is NaN or infinite.
          JobError: a stored picture cannot be decoded.
        """
        files = dataclasses.replace(self._files, part=part)
        if not files.is_done(pictures):
            try:
                table = encode(self._predictor, pictures, pictures.dataset)
            except ModelError as error:
                raise ModelError(f"{self.model.name}: {error}") from error
            of = files.fingerprint(pictures.name)
            write_table(files.store, files.path(pictures), table, of)
        return files.read(pictures)

    def fit(self, plan: HeadPlan, store: Store, path: str | None = None) -> str:
        """Fits a probe on a variant, unless it has a checkpoint; returns its full path.

        `path` is the checkpoint's in the folder, by default what `path_of` returns. Raises the
        errors of `HeadPlan.pictures`, `features`, `fit_head` and `is_fitted`.
        """
        path, of = path or self.path_of(plan), self.model
        trained = plan.trained_on(of.name, of, self._files.predict)
        if not is_fitted(store, path, trained):
            features = plan.read(functools.partial(self.features, part=plan.part))
            state, trained = fit_head(plan, trained, features)
            save_checkpoint(store, path, state, trained)
        return store.path(path)

    def path_of(self, plan: HeadPlan) -> str:
        """Returns the path of a probe's checkpoint in the folder of a dataset."""
        return head_file(self.model.name, plan.split, plan.holdout, plan.name or plan.variant)
