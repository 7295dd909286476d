"""Linear probes: multinomial logistic regression on frozen features.

A probe of this module is a classifier that is kept and evaluated, whereas `transforms.power` fits
throw-away classifiers to measure an accuracy. The penalised loss is convex, so the result does not
depend on the starting point, and fitting uses no randomness: the same features give the same probe.

Source: Alain and Bengio 2016 (probes). `torch.optim.LBFGS` minimises the loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from pipeline.training.penalty import PENALTIES
from transforms.hashing import keyed_hashes

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

FOLDS = 5
CHOICE_UNITS = 5000
"""Largest number of units that the penalty is chosen on; more units hardly change the choice."""

_ABSENT_LOGIT = -1e4
"""Logit of a class without training images."""
_STEPS = 200
"""Largest number of the optimizer's iterations."""
_TOLERANCE = 1e-5
"""The optimizer stops once no entry of the gradient exceeds this value; the loss is of order 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear layer: logits = features @ weight.T + bias.

    Attributes:
      weight: (classes, features) float64.
      bias: (classes,) float64.
      penalty: penalty that the probe was fitted with.
    """

    weight: Floats
    bias: Floats
    penalty: float

    def logits(self, features: NDArray[np.floating]) -> Floats:
        """Computes the (n, classes) float64 logits of (n, features) features."""
        logits: Floats = np.asarray(features, np.float64) @ self.weight.T + self.bias
        return logits


def fit_probe(
    features: NDArray[np.floating], labels: Labels, num_classes: int, penalty: float
) -> LinearProbe:
    """Fits a probe.

    Features are standardised for the fit, so that the penalty has the same effect on each. The
    resulting probe takes features without standardisation.

    Args:
      features: (n, features).
      labels: (n,) int64 in [0, num_classes).
      num_classes: number of outputs; a class without images is never predicted.
      penalty: factor of the penalty, which is half the sum of the squared weights and is added to
        the mean loss of an image. Biases are not penalised.

    Returns:
      The probe.

    Raises:
      ValueError: there are no images, or labels are out of range.
    """
    if not len(labels):
        raise ValueError("a probe needs images to be fitted on")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be in 0 to {num_classes - 1}")
    scaled, mean, scale = _standardise(np.asarray(features, np.float64))
    present, targets = np.unique(labels, return_inverse=True)
    start = np.zeros((len(present), scaled.shape[1] + 1))
    parameters = _minimise(scaled, targets, penalty, start)
    # Builds the standardisation into the layer, and adds the classes that have no images.
    weight = np.zeros((num_classes, len(mean)))
    bias = np.full(num_classes, _ABSENT_LOGIT)
    weight[present] = parameters[:, :-1] / scale
    bias[present] = parameters[:, -1] - weight[present] @ mean
    return LinearProbe(weight, bias, penalty)


def choose_penalty(
    features: NDArray[np.floating],
    labels: Labels,
    units: Sequence[str],
    *,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> float:
    """Chooses the penalty with the smallest cross-validated loss.

    Args:
      features: (n, features).
      labels: (n,) int64.
      units: (n,) unit of each image: its group, or its key. All images of a unit are in the same
        fold. Keyed hashes select at most `CHOICE_UNITS` units and assign them to folds.
      seed: seed of the keyed hashes.
      penalties: penalties to try, in descending order.

    Returns:
      The best penalty; the strongest of equally good penalties, or of all if there are too few
      images to compare them.
    """
    names, unit_of = np.unique(np.asarray(units, object), return_inverse=True)
    order = np.argsort(keyed_hashes(seed, "probe folds", names), kind="stable")
    rank = np.empty(len(names), np.int64)
    rank[order] = np.arange(len(names))
    rank = rank[unit_of]
    selected = rank < CHOICE_UNITS
    folds = np.where(selected, rank % FOLDS, -1)
    losses = np.zeros(len(penalties))
    tested = 0
    values = np.asarray(features, np.float64)
    for fold in range(FOLDS):
        train, test = selected & (folds != fold), folds == fold
        # An image whose class is missing in `train` would not help to compare penalties.
        test &= np.isin(labels, labels[train])
        if not train.any() or not test.any():
            continue
        scaled, mean, scale = _standardise(values[train])
        present, targets = np.unique(labels[train], return_inverse=True)
        test_features = torch.from_numpy((values[test] - mean) / scale)
        test_targets = torch.from_numpy(np.searchsorted(present, labels[test]))
        parameters = np.zeros((len(present), scaled.shape[1] + 1))
        for index, penalty in enumerate(penalties):
            parameters = _minimise(scaled, targets, penalty, parameters)
            logits = _logits(torch.from_numpy(parameters), test_features)
            losses[index] += float(cross_entropy(logits, test_targets, reduction="sum"))
        tested += len(test_targets)
    return float(penalties[int(np.argmin(losses))] if tested else penalties[0])


def _standardise(features: Floats) -> tuple[Floats, Floats, Floats]:
    mean = features.mean(axis=0)
    scale = features.std(axis=0)
    # A constant feature becomes 0 everywhere, instead of 0 / 0.
    scale = np.where(scale > 1e-12, scale, 1.0)
    return (features - mean) / scale, mean, scale


def _minimise(
    features: Floats, targets: NDArray[np.integer], penalty: float, start: Floats
) -> Floats:
    """Finds the parameters that minimise the mean loss plus the penalty.

    Returns:
      (classes, features + 1) float64, the weights and the bias of each class.
    """
    inputs, classes = torch.from_numpy(features), torch.from_numpy(targets)
    parameters = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=_STEPS,
        tolerance_grad=_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(_logits(parameters, inputs), classes)
        loss = loss + penalty / 2 * (parameters[:, :-1] ** 2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    threads = torch.get_num_threads()
    # Uses one thread, because sums must not depend on the number of cores, and because several
    # threads would mostly wait for each other.
    torch.set_num_threads(1)
    try:
        optimizer.step(evaluate)  # type: ignore[no-untyped-call]
    finally:
        torch.set_num_threads(threads)
    return parameters.detach().numpy()


def _logits(parameters: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return features @ parameters[:, :-1].T + parameters[:, -1]
