"""A linear probe: multinomial logistic regression on features that stay as they are.

It is a classifier to evaluate; `probe`, which is refitted in each fold, only measures.
The penalised likelihood is convex, so what is found does not depend on where the search begins,
and there is nothing to draw: the same features give the same probe.

Source: Alain and Bengio 2016 (probes); L-BFGS as in Nocedal and Wright 2006, algorithm 7.5.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import keyed_hashes

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Weights of the L2 penalty that `choose_penalty` tries, the strongest first."""
FOLDS = 5
CHOICE_UNITS = 5000
"""Units that the penalty is chosen on, where there are more: it hardly changes beyond."""

_NEVER = -1e4
"""Logit of a class without training images."""
_MEMORY = 10
_STEPS = 200
_TOLERANCE = 1e-5
"""Largest entry of the gradient at which the search ends; the loss is of order 1."""


@dataclasses.dataclass(frozen=True, eq=False)
class LinearProbe:
    """A linear layer: logits = features @ weight.T + bias.

    Attributes:
      weight: (classes, features) float64.
      bias: (classes,) float64.
      penalty: that it was fitted with.
    """

    weight: Floats
    bias: Floats
    penalty: float

    def logits(self, features: NDArray[np.floating]) -> Floats:
        """(n, classes) float64 of (n, features) numbers."""
        found: Floats = np.asarray(features, np.float64) @ self.weight.T + self.bias
        return found


def fit_probe(
    features: NDArray[np.floating], labels: Labels, num_classes: int, penalty: float
) -> LinearProbe:
    """Fits a probe.

    Features are standardised for the fit, so that one penalty means the same for each; the
    result takes them as they are.

    Args:
      features: (n, features).
      labels: (n,) int64 in [0, num_classes).
      num_classes: outputs. One without images is never the answer.
      penalty: of half the squared weights, against the mean loss of an image; biases are free.

    Returns:
      The probe, for features as they are given here.

    Raises:
      ValueError: no images, or labels out of range.
    """
    if not len(labels):
        raise ValueError("a probe needs images to be fitted on")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"labels must be in 0 to {num_classes - 1}")
    scaled, mean, scale = _standardise(np.asarray(features, np.float64))
    present, targets = np.unique(labels, return_inverse=True)
    start = np.zeros((len(present), scaled.shape[1] + 1))
    return _finish(
        _minimise(scaled, targets, penalty, start), mean, scale, present, num_classes, penalty
    )


def choose_penalty(
    features: NDArray[np.floating],
    labels: Labels,
    units: Sequence[str],
    *,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> float:
    """The penalty with the smallest loss on images that were not fitted on.

    Args:
      features: (n, features).
      labels: (n,) int64.
      units: (n,) the unit of each image; a unit is in one fold alone. Keyed hashes decide in
        which, and which `CHOICE_UNITS` of them take part.
      seed: of these hashes.
      penalties: to try, falling.

    Returns:
      The first of the best; the strongest, if there are too few images to tell.
    """
    names, unit_of = np.unique(np.asarray(units, object), return_inverse=True)
    order = np.argsort(keyed_hashes(seed, "probe folds", names), kind="stable")
    place = np.empty(len(names), np.int64)
    place[order] = np.arange(len(names))
    place = place[unit_of]
    kept = place < CHOICE_UNITS
    folds = np.where(kept, place % FOLDS, -1)
    losses = np.zeros(len(penalties))
    tested = 0
    values = np.asarray(features, np.float64)
    for fold in range(FOLDS):
        inside, outside = kept & (folds != fold), folds == fold
        # Classes that the fit does not know cannot tell penalties apart.
        outside &= np.isin(labels, labels[inside])
        if not inside.any() or not outside.any():
            continue
        scaled, mean, scale = _standardise(values[inside])
        present, targets = np.unique(labels[inside], return_inverse=True)
        test = (values[outside] - mean) / scale
        wanted = np.searchsorted(present, labels[outside])
        found = np.zeros((len(present), scaled.shape[1] + 1))
        for number, penalty in enumerate(penalties):
            found = _minimise(scaled, targets, penalty, found)
            losses[number] -= _log_softmax(_logits(found, test))[
                np.arange(len(wanted)), wanted
            ].sum()
        tested += len(wanted)
    return float(penalties[int(np.argmin(losses))] if tested else penalties[0])


def _standardise(features: Floats) -> tuple[Floats, Floats, Floats]:
    mean = features.mean(axis=0)
    scale = features.std(axis=0)
    # One that never changes says nothing.
    scale = np.where(scale > 1e-12, scale, 1.0)
    return (features - mean) / scale, mean, scale


def _finish(
    found: Floats,
    mean: Floats,
    scale: Floats,
    present: NDArray[np.integer],
    num_classes: int,
    penalty: float,
) -> LinearProbe:
    """Folds the standardisation into the layer, and adds the classes that have no images."""
    weight = np.zeros((num_classes, len(mean)))
    bias = np.full(num_classes, _NEVER)
    weight[present] = found[:, :-1] / scale
    bias[present] = found[:, -1] - weight[present] @ mean
    return LinearProbe(weight, bias, penalty)


def _logits(parameters: Floats, features: Floats) -> Floats:
    logits: Floats = features @ parameters[:, :-1].T + parameters[:, -1]
    return logits


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: Floats = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


def _loss(
    parameters: Floats, features: Floats, targets: NDArray[np.integer], penalty: float
) -> tuple[float, Floats]:
    """Mean loss with the penalty, and its gradient."""
    log_shares = _log_softmax(_logits(parameters, features))
    rows = np.arange(len(targets))
    weight = parameters[:, :-1]
    loss = -log_shares[rows, targets].mean() + penalty / 2 * float((weight**2).sum())
    errors = np.exp(log_shares)
    errors[rows, targets] -= 1
    errors /= len(targets)
    gradient = np.column_stack([errors.T @ features + penalty * weight, errors.sum(axis=0)])
    return float(loss), gradient


def _minimise(
    features: Floats, targets: NDArray[np.integer], penalty: float, start: Floats
) -> Floats:
    """The minimum of `_loss`, by L-BFGS."""
    found = start
    loss, gradient = _loss(found, features, targets, penalty)
    pairs: list[tuple[Floats, Floats, float]] = []
    for _ in range(_STEPS):
        if np.abs(gradient).max() <= _TOLERANCE:
            break
        direction = _direction(gradient, pairs)
        slope = float((gradient * direction).sum())
        # The first step has no curvature to go by.
        length = 1.0 if pairs else 1.0 / max(1.0, float(np.sqrt((gradient**2).sum())))
        while True:
            step = length * direction
            new_loss, new_gradient = _loss(found + step, features, targets, penalty)
            if new_loss <= loss + 1e-4 * length * slope or length < 1e-12:
                break
            length /= 2
        if new_loss >= loss:
            # Nothing smaller can be told from it.
            break
        change = new_gradient - gradient
        curvature = float((step * change).sum())
        if curvature > 1e-14:
            pairs = [*pairs[-_MEMORY + 1 :], (step, change, 1 / curvature)]
        found, loss, gradient = found + step, new_loss, new_gradient
    return found


def _direction(gradient: Floats, pairs: Sequence[tuple[Floats, Floats, float]]) -> Floats:
    """Where to go, by the curvature that the last steps met."""
    direction = -gradient
    weights = []
    for step, change, inverse in reversed(pairs):
        weights.append(inverse * float((step * direction).sum()))
        direction = direction - weights[-1] * change
    if pairs:
        step, change, inverse = pairs[-1]
        direction = direction / (inverse * float((change**2).sum()))
    for (step, change, inverse), weight in zip(pairs, reversed(weights), strict=True):
        direction = direction + (weight - inverse * float((change * direction).sum())) * step
    return direction
