"""Fits a linear probe on a variant: a new last layer for a frozen pretrained network.

The checkpoint holds the complete network with the new layer, so `--models ARCH=FILE` loads it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import timm
import torch

from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout, selected_rows, training_pictures
from pipeline.errors import UsageError
from pipeline.models.checkpoint import (
    SUFFIX,
    TrainedOn,
    digest_of_classes,
    read_metadata,
    save_checkpoint,
)
from pipeline.storage.store import Store
from pipeline.training.features import Backbone, Features
from pipeline.training.linear_probe import choose_penalty, fit_probes

PROBE_VERSION = 2
"""Incremented by hand whenever a change of the code makes the same features give another probe."""
MODELS = "models"
"""Folder of a dataset that holds the checkpoints trained on it."""


@dataclasses.dataclass(frozen=True)
class ProbePlan:
    """The pictures that a probe is fitted on.

    Attributes:
      dataset: the dataset.
      variant: variant of the dataset.
      split: split of the dataset.
      holdout: images of the split that are held out.
      seed: seed of the folds that choose the penalty.
      name: name that the checkpoint records instead of `variant`, such as `in9l`; None for the
        variant's own.
    """

    dataset: Dataset
    variant: str
    split: str
    holdout: Holdout
    seed: int = 0
    name: str | None = None


def probe_file(backbone: Backbone, plan: ProbePlan) -> str:
    """Returns the path of a probe's checkpoint in the folder of a dataset."""
    parts = ["probe", backbone.model.name.replace("/", "_"), plan.split]
    if plan.holdout.share:
        parts.append(f"holdout{plan.holdout.share:g}")
    parts.append(f"seed{plan.seed}")
    return f"{MODELS}/{'-'.join(parts)}/{plan.name or plan.variant}{SUFFIX}"


def fit_variant(backbone: Backbone, plan: ProbePlan, store: Store, path: str | None = None) -> str:
    """Fits a probe on a variant, unless a checkpoint of the same probe exists.

    Args:
      backbone: the frozen network.
      plan: the pictures to fit on.
      store: folder to write the checkpoint to.
      path: path of the checkpoint in the folder; None for the path that `probe_file` returns.

    Returns:
      Absolute path of the checkpoint.

    Raises:
      UsageError: there are no pictures to train on.
      ModelError, JobError: for the reasons of `Backbone.features`; also JobError if the checkpoint
        that exists has broken metadata.
    """
    path = path or probe_file(backbone, plan)
    chosen = training_pictures(plan.dataset, plan.split, plan.variant, plan.holdout)
    if not chosen:
        raise UsageError(f"no pictures of {plan.variant} in {plan.split} are left to train on")
    metadata = _metadata(backbone, plan, tuple(sorted(chosen)))
    if store.exists(path):
        existing = read_metadata(store.path(path))
        if existing and _without_penalty(existing) == _without_penalty(metadata):
            return store.path(path)
    features = _training_features(backbone, plan, chosen)
    rows = {row["key"]: row for row in selected_rows(plan.dataset, plan.split)}
    units = [rows[key].get("group") or key for key in features.keys]
    num_labels = plan.dataset.taxonomy.num_labels
    penalty = choose_penalty(features.values, features.labels, units, seed=plan.seed)
    (probe,) = fit_probes(features.values, features.labels, num_labels, [penalty])
    network: Any = timm.create_model(backbone.architecture, num_classes=num_labels)
    state = network.state_dict()
    layer = network.get_classifier()
    names = {id(value): name for name, value in network.named_parameters()}
    weight, bias = names[id(layer.weight)], names[id(layer.bias)]
    state |= {
        name: value
        for name, value in backbone.model.module.state_dict().items()
        if name not in (weight, bias)
    }
    state[weight] = torch.from_numpy(probe.weight.astype(np.float32))
    state[bias] = torch.from_numpy(probe.bias.astype(np.float32))
    settings = {**metadata.settings, "penalty": penalty}
    save_checkpoint(store, path, state, dataclasses.replace(metadata, settings=settings))
    return store.path(path)


def _metadata(backbone: Backbone, plan: ProbePlan, keys: tuple[str, ...]) -> TrainedOn:
    return TrainedOn(
        architecture=backbone.architecture,
        variant=plan.name or plan.variant,
        dataset=plan.dataset.manifest.fingerprint,
        split=plan.split,
        classes=digest_of_classes(plan.dataset.taxonomy),
        preprocessing=backbone.model.preprocessing,
        keys=keys,
        method="probe",
        seed=plan.seed,
        holdout=plan.holdout.share,
        holdout_seed=plan.holdout.seed,
        pretrained=backbone.model.name,
        settings={
            "probe_version": PROBE_VERSION,
            "weights_sha256": backbone.model.weights_sha256,
        },
    )


def _without_penalty(trained: TrainedOn) -> TrainedOn:
    settings = {name: value for name, value in trained.settings.items() if name != "penalty"}
    return dataclasses.replace(trained, settings=settings)


def _training_features(backbone: Backbone, plan: ProbePlan, chosen: dict[str, str]) -> Features:
    """Computes the features of the training pictures, which may come from several replicates."""
    parts = []
    for name in dict.fromkeys(chosen.values()):
        keys = [key for key, variant in chosen.items() if variant == name]
        # Evaluation will need the features of all pictures of `variant`, so all are cached.
        subset = None if name == plan.variant else keys
        parts.append(backbone.features(plan.dataset, plan.split, name, subset).select(keys))
    return Features.concatenate(parts)
