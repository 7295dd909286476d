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
      1 to 3 % of cases, as it should in 2.5 %, with 5 to 9 equal classes and 45 to 600 pictures,
      alone or in units of 5; in fewer where the classes differ in size. With 2 or 3 classes it
      does in 3 to 7 %: what a picture tells of another, that one tells of it, so that the two are
      right or wrong together. Of fewer than 40 pictures or so it is as much too narrow as
      `paired_bootstrap`'s.

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
    """Predictions for each fold by a classifier that is fitted to all others: least squares with an
    L2 penalty on indicators of the classes.

    One eigendecomposition does for all folds and penalties. With the hat matrix H of all pictures,
    what a fit to the others says of a fold F is (1 - H_FF)^-1 H_F y, where y is 0 on F, as it is
    when single rows are left out (Allen's PRESS, 1974). By that the penalty of a fold is chosen
    among `_PENALTIES`: the one with the least squared error on the others, each left out in turn,
    while the fold takes part without its classes.

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
    shares = indicators.mean(axis=0)
    axes, variances = _principal_axes(features)
    predicted = np.full(len(labels), shares.argmax(), np.int64)
    if not len(variances):
        return predicted
    shrunk = variances / (variances + variances.mean() * _PENALTIES[:, np.newaxis])
    left = 1 - 1 / len(labels) - axes**2 @ shrunk.T  # The diagonals of 1 - H.
    known = (folds[:, np.newaxis] != np.unique(folds))[..., np.newaxis]
    # Of each fold, (pictures, folds, classes).
    means = (indicators[:, np.newaxis] * known).sum(axis=0) / known.sum(axis=0)
    targets = (indicators[:, np.newaxis] - means) * known
    projected = np.tensordot(axes, targets, (0, 0))
    errors = []
    for factors, of_each in zip(shrunk, left.T, strict=True):
        fitted = np.tensordot(axes, factors[:, np.newaxis, np.newaxis] * projected, 1)
        residuals = (targets - fitted) * known / of_each[:, np.newaxis, np.newaxis]
        errors.append((residuals**2).sum(axis=(0, 2)))
    for fold, best in enumerate(np.argmin(errors, axis=0)):
        held_out, roots = ~known[:, fold, 0], np.sqrt(shrunk[best])
        rows = axes[held_out] * roots
        of_others = np.eye(len(rows)) - 1 / len(labels) - rows @ rows.T
        scores = np.linalg.solve(of_others, rows @ (roots[:, np.newaxis] * projected[:, fold]))
        predicted[held_out] = (scores + shares).argmax(axis=1)
    return predicted


def _principal_axes(features: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Left singular vectors (n, r) of features less their means, and the squared singular values
    (r,).

    By the smaller of the two Gram matrices, much the faster where one side is the longer; no
    penalty keeps the digits that this costs.
    """
    x = np.array(features, np.float64)
    x -= x.mean(axis=0)
    is_wide = x.shape[0] <= x.shape[1]
    squares, vectors = np.linalg.eigh(x @ x.T if is_wide else x.T @ x)
    kept = squares > max(1e-10 * float(squares[-1]), 1e-300)
    squares, vectors = squares[kept], vectors[:, kept]
    return (vectors if is_wide else x @ (vectors / np.sqrt(squares))), squares
