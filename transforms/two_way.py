"""Two-way intervals of estimates from pictures that share foregrounds and backgrounds.

A picture of a mixed variant shows one image's foreground on another's background. Each foreground
has a background for each draw, and each background serves several foregrounds, so the errors of
pictures that share either are correlated. The variance of an estimate follows from the signed
contribution r of each picture, such as its distance from the mean divided by the number of
pictures: r is summed by foreground, the sums are squared and added; the same is done by background;
and since pictures that share both are in both terms, the term by pair is subtracted. Source:
Cameron, Gelbach and Miller 2011, "Robust inference with multiway clustering". The degrees of
freedom are the number of units of the rarer role, less one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.intervals import CONFIDENCE, score_interval, t_p_value, t_quantile, wilson

Floats = NDArray[np.float64]
Units = NDArray[np.integer]

_NONE = 1e-12
"""A smaller standard error is a rounding error."""
_ROUNDING = 1e-12
"""A smaller share of a variance is a rounding error; real differences exceed 1 / units."""


@dataclasses.dataclass(frozen=True, eq=False)
class Roles:
    """The units to which the foreground and the background of each of n pictures belong.

    Attributes:
      foregrounds: (n,) int64, unit of each foreground, numbered from 0.
      backgrounds: (n,) int64, unit of each background, numbered from 0; None if each picture has
        its own background, in which case only foregrounds matter.
    """

    foregrounds: NDArray[np.int64]
    backgrounds: NDArray[np.int64] | None

    @classmethod
    def from_units(cls, foregrounds: Units, backgrounds: Units | None = None) -> Roles:
        """Numbers the units.

        Args:
          foregrounds: (n,) integers that identify the unit of each foreground: an image, or a
            group of images.
          backgrounds: (n,) integers that identify the unit of each background; None if each
            picture has its own background.

        Raises:
          ValueError: the arrays have different lengths.
        """
        numbers = _numbered(foregrounds)
        if backgrounds is None:
            return cls(numbers, None)
        if len(backgrounds) != len(foregrounds):
            raise ValueError(f"{len(foregrounds)} foregrounds on {len(backgrounds)} backgrounds")
        return cls(numbers, _numbered(backgrounds))

    @functools.cached_property
    def pairs(self) -> NDArray[np.int64] | None:
        """(n,) int64, each picture's pair of units, numbered from 0; None without backgrounds."""
        if self.backgrounds is None:
            return None
        width = int(self.backgrounds.max(initial=0)) + 1
        return _numbered(self.foregrounds * width + self.backgrounds)

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of units of foregrounds and, unless there are none, of backgrounds."""
        roles = (self.foregrounds, self.backgrounds)
        return tuple(int(role.max(initial=-1)) + 1 for role in roles if role is not None)

    @property
    def units(self) -> int:
        """Number of units of the rarer role."""
        return min(self.counts)

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Roles:
        """Selects the roles of some of the pictures, by a mask or by positions."""
        backgrounds = None if self.backgrounds is None else self.backgrounds[chosen]
        return Roles.from_units(self.foregrounds[chosen], backgrounds)

    def sums(self, r: Floats) -> list[Floats]:
        """Sums contributions by unit.

        Args:
          r: (..., n) contribution of each picture to each estimate.

        Returns:
          Sums (..., units) by foreground and, unless there are none, by background and by pair.
          They are linear in r: the sums of a difference are the difference of the sums.
        """
        return [
            _sums_by(numbers, r)
            for numbers in (self.foregrounds, self.backgrounds, self.pairs)
            if numbers is not None
        ]

    def variance(self, r: Floats) -> Floats:
        """Computes the variance of estimates.

        Args:
          r: (..., n) contribution of each picture; they add up to 0.

        Returns:
          (...) float64, infinite if a role has a single unit.
        """
        return variance_of_sums(self.sums(r))


def _numbered(values: Units) -> NDArray[np.int64]:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _sums_by(numbers: NDArray[np.int64], r: Floats) -> Floats:
    units = int(numbers.max(initial=-1)) + 1
    rows = [np.bincount(numbers, row, units) for row in r.reshape(-1, len(numbers))]
    return np.asarray(rows, np.float64).reshape(*r.shape[:-1], units)


def variance_of_sums(sums: Sequence[Floats]) -> Floats:
    """Computes the variance of estimates, (...), from the result of `Roles.sums`."""
    by_foreground, *other_sums = sums
    variance = _role_variance(by_foreground)
    if other_sums:
        by_background, by_pair = other_sums
        of_backgrounds = _role_variance(by_background)
        added = of_backgrounds - np.square(by_pair).sum(axis=-1)
        # Equal sums may differ by a rounding error, whose square root would be far from negligible.
        is_rounding = np.isfinite(added) & (added <= _ROUNDING * of_backgrounds)
        variance = variance + np.where(is_rounding, 0.0, added)
    return variance


def _role_variance(sums: Floats) -> Floats:
    """Computes the variance that comes from the units of one role."""
    units = sums.shape[-1]
    if units < 2:
        return np.full(sums.shape[:-1], np.inf)
    squares: Floats = np.square(sums).sum(axis=-1) * (units / (units - 1))
    return squares


def difference_interval(
    estimate: Floats, variance: Floats, units: int, confidence: float = CONFIDENCE
) -> tuple[Floats, Floats]:
    """Computes intervals of differences between shares.

    Args:
      estimate: of any shape, in [-1, 1].
      variance: of that shape, from `Roles.variance`.
      units: from `Roles.units`.
      confidence: in (0, 1).

    Returns:
      (low, high) of that shape, in [-1, 1]. If all units agree, the variance says nothing. Then
      the share of other units that may disagree is the upper bound of Wilson's interval of 0 among
      `units`, and these may differ by the largest possible difference.
    """
    error = np.sqrt(variance)
    if units < 2:
        return np.full_like(error, -1.0), np.full_like(error, 1.0)
    reach = t_quantile(units - 1, confidence) * error
    differing = np.where(error < _NONE, wilson(0, units, confidence)[1], 0.0)
    low = estimate - reach - differing * (1 + estimate)
    high = estimate + reach + differing * (1 - estimate)
    return np.maximum(low, -1), np.minimum(high, 1)


def p_value(estimate: Floats, variance: Floats, units: int) -> Floats:
    """Computes two-sided p values of differences, or of other estimates whose mean would be 0.

    The arguments are those of `difference_interval`. If all units agree on a difference, the p
    value is that of the sign test.
    """
    error = np.sqrt(variance)
    agree = error < _NONE
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(agree, 0.0, np.abs(estimate) / error)
    sign = np.where(np.abs(estimate) < _NONE, 1.0, 2.0 ** (1 - max(units, 1)))
    return np.where(agree, sign, t_p_value(t, max(units - 1, 0)))


def wilson_of_pictures(
    correct: NDArray[np.bool_], roles: Roles, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Computes Wilson's interval of a share of pictures that may share foregrounds or backgrounds.

    The number of trials is the number of independent pictures that would have the same variance
    (Kish 1965; Korn and Graubard 1998).

    Args:
      correct: (n,) bool, the pictures whose share is estimated.
      roles: of the same pictures.
      confidence: in (0, 1).

    Returns:
      (low, high), fractions in [0, 1]; (0, 1) if there are no pictures, or all show one unit. If no
      pictures share a unit, it is the interval of `wilson`.
    """
    n = len(correct)
    if not n:
        return 0.0, 1.0
    counts = [np.bincount(roles.foregrounds)]
    if roles.backgrounds is not None:
        counts.append(np.bincount(roles.backgrounds))
    if all(len(role_counts) == n for role_counts in counts):
        return wilson(int(correct.sum()), n, confidence)
    share = float(correct.mean())
    return share_interval(
        share,
        float(roles.variance((correct - share) / n)),
        roles.units,
        fewest=min(n**2 / int(np.square(role_counts).sum()) for role_counts in counts),
        most=n,
        confidence=confidence,
    )


def share_interval(
    share: float,
    variance: float,
    units: int,
    *,
    fewest: float,
    most: float,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Computes Wilson's interval of a share, for the number of trials that has its variance.

    Args:
      share: in [0, 1].
      variance: of the share, infinite if it is unknown.
      units: number of units of the rarer role.
      fewest: number of trials if those that share a unit are copies of one. It is used if all
        trials have the same outcome, because the variance says nothing then.
      most: number of trials if none share a unit.
      confidence: in (0, 1).

    Returns:
      (low, high), fractions in [0, 1]; (0, 1) for a single unit.
    """
    if units < 2:
        return 0.0, 1.0
    effective = fewest
    if 0 < share < 1:
        effective = share * (1 - share) / variance if variance else most
    effective = min(max(effective, fewest), most)
    return score_interval(share, effective, t_quantile(units - 1, confidence))
