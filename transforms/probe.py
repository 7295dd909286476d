"""A linear probe: can the class be told from a model's outputs at all?

On pictures of backgrounds alone, it bounds what a gap between backgrounds can show: where
backgrounds do not tell the class, a model that relies on them loses nothing by another one.
For probes that are trained once and then evaluated as models, see
`pipeline.training.linear_probe`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.analysis import constant_accuracy
from transforms.hashing import keyed_hashes
from transforms.intervals import (
    CONFIDENCE,
    Floats,
    bootstrap_hashes,
    bootstrap_means,
    percentile_interval,
)

FOLDS = 5
_PENALTIES = 10.0 ** np.arange(-3, 4)
"""Over the mean of the squared singular values of the features."""


@dataclasses.dataclass(frozen=True)
class Power:
    """What a probe says of pictures.

    Attributes:
      accuracy, low, high: its cross-validated accuracy, and the interval.
      chance: of a constant answer, which needs no features.
      images: number of pictures.
      units: number of groups of pictures that were held out together.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    images: int
    units: int

    @property
    def has_power(self) -> bool:
        """Whether the class can be told: the whole interval lies above chance."""
        return self.low > self.chance


def power_of_outputs(
    outputs: NDArray[np.floating],
    labels: NDArray[np.integer],
    units: Sequence[str] | NDArray[np.object_],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Power | None:
    """Accuracy of a linear classifier on outputs, on pictures it was not fitted to.

    Args:
      outputs: (n, k) of a model on n pictures; those that are no numbers count as 0.
      labels: (n,) true classes, >= 0.
      units: (n,) what each picture belongs to: those of one unit are held out together, and
        resampled together for the interval.
      seed: of the keyed hashes.
      confidence: in (0, 1).

    Returns:
      The accuracy with a percentile bootstrap interval over units, None where the units make
      no two folds. In simulations without any signal the whole interval lies above chance in
      1 to 3 % of cases, as it should in 2.5 %, with 2 to 9 equal classes and 45 to 600 pictures,
      alone or in units of 5; in fewer where the classes differ in size. Of fewer than 40
      pictures or so it is as much too narrow as `paired_bootstrap`'s.

    Raises:
      ValueError: sequences of different length.
    """
    if not len(outputs) == len(labels) == len(units):
        raise ValueError(f"{len(outputs)} outputs, {len(labels)} labels, {len(units)} units")
    names, unit_of = np.unique(np.asarray(units, object), return_inverse=True)
    folds = folds_of(names, seed=seed)[unit_of]
    if len(np.unique(folds)) < 2:
        return None
    correct = cross_validated(np.nan_to_num(outputs, posinf=0, neginf=0), labels, folds) == labels
    sums = np.bincount(unit_of, correct, len(names)).astype(np.float64)[:, np.newaxis]
    sizes = np.bincount(unit_of, minlength=len(names)).astype(np.float64)
    means = bootstrap_means(sums, sizes, bootstrap_hashes(names, seed))
    low, high = percentile_interval(means, confidence)
    return Power(
        accuracy=float(correct.mean()),
        low=float(low[0]),
        high=float(high[0]),
        chance=constant_accuracy(labels) or 0.0,
        images=len(labels),
        units=len(names),
    )


def folds_of(
    units: Sequence[str] | NDArray[np.object_], *, folds: int = FOLDS, seed: int = 0
) -> NDArray[np.int64]:
    """The fold of each unit, (n,) in [0, folds): by its own hash alone, so another unit moves
    none."""
    return (keyed_hashes(seed, "fold", units) % np.uint64(folds)).astype(np.int64)


def cross_validated(
    features: NDArray[np.floating], labels: NDArray[np.integer], folds: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Predictions for each fold by a classifier that is fitted to all others.

    The share of each class is that of all pictures: where a fold holds more of a class, the
    others hold less of it, and a classifier that learnt its share there would be wrong more
    often than by chance.

    Args:
      features: (n, k) finite.
      labels: (n,) classes, >= 0.
      folds: (n,) of at least two values.

    Returns:
      (n,) int64 classes, in [0, max(labels)].
    """
    indicators = np.eye(int(labels.max()) + 1)[labels]
    predicted = np.empty(len(labels), np.int64)
    for fold in np.unique(folds):
        held_out = folds == fold
        known = np.asarray(features[~held_out], np.float64)
        weights = fit_ridge(known, indicators[~held_out])
        scores = (features[held_out] - known.mean(axis=0)) @ weights
        predicted[held_out] = (scores + indicators.mean(axis=0)).argmax(axis=1)
    return predicted


def fit_ridge(features: Floats, targets: Floats) -> Floats:
    """Least squares with an L2 penalty, in closed form.

    The penalty is the one of `_PENALTIES` with the least squared error where each row is left
    out in turn, which is in closed form, too (Allen's PRESS, 1974).

    Args:
      features: (n, k) finite.
      targets: (n, m), such as indicators of classes.

    Returns:
      (k, m) weights of what features differ from their means.
    """
    x, y = features - features.mean(axis=0), targets - targets.mean(axis=0)
    left, right, variances = _principal_axes(x)
    if not len(variances):
        return np.zeros((x.shape[1], y.shape[1]))
    projected = left.T @ y
    squares = left**2
    best, chosen = np.inf, variances
    for penalty in _PENALTIES * variances.mean():
        shrunk = variances / (variances + penalty)
        leverage = squares @ shrunk + 1 / len(x)
        residual = (y - left @ (shrunk[:, np.newaxis] * projected)) / (1 - leverage)[:, np.newaxis]
        error = float((residual**2).sum())
        if error < best:
            best, chosen = error, variances + penalty
    weights: Floats = right @ (projected / chosen[:, np.newaxis])
    return weights


def _principal_axes(x: Floats) -> tuple[Floats, Floats, Floats]:
    """Left singular vectors (n, r) of a matrix, its right ones (k, r) times its singular values,
    and the squares (r,) of those.

    By the smaller of its two Gram matrices, much the faster where one side is the longer; no
    penalty keeps the digits that this costs.
    """
    is_wide = x.shape[0] <= x.shape[1]
    squares, vectors = np.linalg.eigh(x @ x.T if is_wide else x.T @ x)
    kept = squares > max(1e-10 * float(squares[-1]), 1e-300)
    squares, vectors = squares[kept], vectors[:, kept]
    if is_wide:
        return vectors, x.T @ vectors, squares
    lengths = np.sqrt(squares)
    return (x @ vectors) / lengths, vectors * lengths, squares
