"""A linear probe, which tests whether a model's outputs tell the class at all.

On pictures of backgrounds alone, the test limits what a gap between backgrounds can show: if
backgrounds do not tell the class, a model that relies on them loses nothing when they are
exchanged. For probes that are trained once and then evaluated as models, see
`pipeline.training.probe_fit`.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.analysis import constant_accuracy
from transforms.hashing import keyed_hashes
from transforms.intervals import Floats, bootstrap_interval

FOLDS = 5
_PENALTIES = 10.0 ** np.arange(-3, 4)
"""Candidate penalties, as multiples of the mean squared singular value of the features."""


@dataclasses.dataclass(frozen=True)
class Power:
    """The accuracy of a probe.

    Attributes:
      accuracy: cross-validated accuracy, a fraction.
      low, high: percentile bootstrap interval of the accuracy, over units.
      chance: accuracy of the best constant answer.
      units: number of units, which are groups of pictures that are held out together.
    """

    accuracy: float
    low: float
    high: float
    chance: float
    images: int
    units: int

    @property
    def has_power(self) -> bool:
        """Whether the outputs tell the class: the whole interval lies above chance."""
        return self.low > self.chance


def power_of_outputs(
    outputs: NDArray[np.floating],
    labels: NDArray[np.integer],
    units: Sequence[str] | NDArray[np.object_],
) -> Power | None:
    """Measures the accuracy of a linear classifier of outputs, on pictures it was not fitted to.

    In simulations without any signal, the whole interval should lie above chance in 2.5 % of cases.
    With 5 to 9 classes of equal size and 45 to 600 pictures, single or in units of 5, it lies above
    chance in 1 to 3 % of cases, and in fewer cases if classes differ in size. With 2 or 3 classes
    it does so in 3 to 7 % of cases, because each picture carries information about every other
    picture, so that they are right or wrong together. With fewer than about 40 pictures, the
    interval is too narrow, like any interval of `bootstrap_interval`.

    Args:
      outputs: (n, k) outputs of a model on n pictures; NaN and infinite values count as 0.
      labels: (n,) true class of each picture, >= 0.
      units: (n,) unit of each picture; pictures of one unit are held out together, and resampled
        together for the interval.

    Returns:
      The accuracy with its interval; None if all units are in the same fold.

    Raises:
      ValueError: sequences have different lengths.
    """
    if not len(outputs) == len(labels) == len(units):
        raise ValueError(f"{len(outputs)} outputs, {len(labels)} labels, {len(units)} units")
    names, unit_of = np.unique(np.asarray(units, object), return_inverse=True)
    folds = folds_of(names)[unit_of]
    if len(np.unique(folds)) < 2:
        return None
    correct = cross_validated(np.nan_to_num(outputs, posinf=0, neginf=0), labels, folds) == labels
    low, high = bootstrap_interval(correct[:, np.newaxis], units)
    return Power(
        accuracy=float(correct.mean()),
        low=float(low[0]),
        high=float(high[0]),
        chance=constant_accuracy(labels) or 0.0,
        images=len(labels),
        units=len(names),
    )


def folds_of(units: Sequence[str] | NDArray[np.object_]) -> NDArray[np.int64]:
    """Assigns each of n units to a fold: (n,) int64 in [0, FOLDS).

    The fold depends on the unit's own hash alone, so adding a unit moves no other unit.
    """
    return (keyed_hashes(0, "fold", units) % np.uint64(FOLDS)).astype(np.int64)


def cross_validated(
    features: NDArray[np.floating], labels: NDArray[np.integer], folds: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Predicts the classes of each fold by a classifier that is fitted to all other folds.

    The classifier fits indicators of the classes by least squares with an L2 penalty. One
    eigendecomposition serves all folds and penalties. Let H be the hat matrix of all pictures, and
    y the indicators, set to 0 on a fold F. Then the classifier that is fitted to the other folds
    predicts (1 - H_FF)^-1 H_F y on F, like Allen's PRESS (1974) for a single row that is left out.
    The penalty for a fold is chosen from `_PENALTIES`: it has the least squared error on the other
    folds, whose pictures are left out one at a time. The features of the fold itself take part in
    this choice, but its classes do not.

    The classifier always assumes the class shares of all pictures. If a fold holds more pictures of
    a class, the other folds hold fewer. So a classifier that learned the shares from the other
    folds would be wrong more often than by chance.

    Takes finite (n, k) features, (n,) labels >= 0, and the (n,) fold of each picture, of which at
    least two differ. Returns (n,) int64, the predicted classes, in [0, max(labels)].
    """
    indicators = np.eye(int(labels.max()) + 1)[labels]
    shares = indicators.mean(axis=0)
    axes, variances = _principal_axes(features)
    predicted = np.full(len(labels), shares.argmax(), np.int64)
    if not len(variances):
        return predicted
    shrunk = variances / (variances + variances.mean() * _PENALTIES[:, np.newaxis])
    diagonals = 1 - 1 / len(labels) - axes**2 @ shrunk.T  # Diagonal of 1 - H for each penalty.
    known = (folds[:, np.newaxis] != np.unique(folds))[..., np.newaxis]
    # The axes of these arrays are (pictures, folds that are left out, classes).
    means = (indicators[:, np.newaxis] * known).sum(axis=0) / known.sum(axis=0)
    targets = (indicators[:, np.newaxis] - means) * known
    projected = np.tensordot(axes, targets, (0, 0))
    errors = []
    for factors, diagonal in zip(shrunk, diagonals.T, strict=True):
        fitted = np.tensordot(axes, factors[:, np.newaxis, np.newaxis] * projected, 1)
        residuals = (targets - fitted) * known / diagonal[:, np.newaxis, np.newaxis]
        errors.append((residuals**2).sum(axis=(0, 2)))
    for fold, best in enumerate(np.argmin(errors, axis=0)):
        held_out, roots = ~known[:, fold, 0], np.sqrt(shrunk[best])
        rows = axes[held_out] * roots
        complement = np.eye(len(rows)) - 1 / len(labels) - rows @ rows.T  # 1 - H_FF.
        scores = np.linalg.solve(complement, rows @ (roots[:, np.newaxis] * projected[:, fold]))
        predicted[held_out] = (scores + shares).argmax(axis=1)
    return predicted


def _principal_axes(features: NDArray[np.floating]) -> tuple[Floats, Floats]:
    """Computes left singular vectors (n, r) and squared singular values (r,) of centred features.

    Values that are 0 up to rounding are left out. The smaller of the two Gram matrices is
    decomposed, which is much faster than a singular value decomposition if n and the number of
    features differ. The loss of precision does not matter, because every penalty is larger.
    """
    x = np.array(features, np.float64)
    x -= x.mean(axis=0)
    is_wide = x.shape[0] <= x.shape[1]
    squares, vectors = np.linalg.eigh(x @ x.T if is_wide else x.T @ x)
    kept = squares > max(1e-10 * float(squares[-1]), 1e-300)
    squares, vectors = squares[kept], vectors[:, kept]
    return (vectors if is_wide else x @ (vectors / np.sqrt(squares))), squares
