"""A linear probe: multinomial logistic regression on features that stay as they are.

It is a classifier to evaluate; `transforms.power`, which is refitted in each fold, only measures.
The penalised likelihood is convex, so what is found does not depend on where the search begins,
and there is nothing to draw: the same features give the same probe.

Source: Alain and Bengio 2016 (probes); the minimum by `torch.optim.LBFGS`.
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
"""Units that the penalty is chosen on, where there are more: it hardly changes beyond."""

_NEVER = -1e4
"""Logit of a class without training images."""
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
        test = torch.from_numpy((values[outside] - mean) / scale)
        wanted = torch.from_numpy(np.searchsorted(present, labels[outside]))
        found = np.zeros((len(present), scaled.shape[1] + 1))
        for number, penalty in enumerate(penalties):
            found = _minimise(scaled, targets, penalty, found)
            logits = _logits(torch.from_numpy(found), test)
            losses[number] += float(cross_entropy(logits, wanted, reduction="sum"))
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


def _minimise(
    features: Floats, targets: NDArray[np.integer], penalty: float, start: Floats
) -> Floats:
    """The minimum of the mean loss with the penalty: (classes, features + 1), the bias last."""
    inputs, classes = torch.from_numpy(features), torch.from_numpy(targets)
    parameters = torch.tensor(start, requires_grad=True)
    search = torch.optim.LBFGS(
        [parameters],
        max_iter=_STEPS,
        tolerance_grad=_TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def evaluate() -> torch.Tensor:
        search.zero_grad()
        loss = cross_entropy(_logits(parameters, inputs), classes)
        loss = loss + penalty / 2 * (parameters[:, :-1] ** 2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    threads = torch.get_num_threads()
    # Sums do not depend on how many cores there are, and threads do not wait for each other.
    torch.set_num_threads(1)
    try:
        search.step(evaluate)  # type: ignore[no-untyped-call]
    finally:
        torch.set_num_threads(threads)
    return parameters.detach().numpy()


def _logits(parameters: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    return features @ parameters[:, :-1].T + parameters[:, -1]
