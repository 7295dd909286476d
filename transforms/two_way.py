"""Two-way intervals of estimates from pictures that share foregrounds and backgrounds.

A picture of a mixed variant shows one image's foreground on another image's background. A
foreground is shown on one background in each draw, and a background serves several foregrounds, so
the errors of pictures that share a foreground or a background are correlated.

The variance of an estimate follows from the signed contribution r of each picture. For a mean, r is
(value - mean) / (number of pictures). The term by foreground is computed by summing r over the
pictures of each foreground, then squaring these sums and adding them up. The term by background is
computed in the same way, and added. Pictures that share foreground and background are in both
terms, so the term by pair of foreground and background is subtracted from the term by background;
a negative difference counts as 0. To correct for small numbers, the terms by foreground and by
background are multiplied by G / (G - 1), where G is the number of foregrounds or of backgrounds.
Source: Cameron, Gelbach and Miller 2011, "Robust inference with multiway clustering".

A unit is an image, or a group of images that must count as one. A picture has a unit in two roles,
as foreground and as background; the foregrounds and backgrounds of the sums above are these units.
The degrees of freedom of Student's t are the number of units in the role that has fewer units, less
one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from transforms.intervals import CONFIDENCE, score_interval, t_p_value, t_quantile, wilson

Floats = NDArray[np.float64]
Units = NDArray[np.integer]

POWER = 0.8
"""Share of the draws of images in which the smallest difference should show."""
_NONE = 1e-12
"""A standard error or an estimate whose absolute value is smaller is a rounding error of 0."""
_ROUNDING = 1e-12
"""A difference that is a smaller share of the variance from which it was subtracted is a rounding
error of 0. If each background is in a single pair, the real difference is a share of 1 / units."""


@dataclasses.dataclass(frozen=True, eq=False)
class Roles:
    """The units to which the foreground and the background of each of n pictures belong.

    Attributes:
      foregrounds: (n,) int64, unit of each foreground, numbered from 0.
      backgrounds: (n,) int64, unit of each background, numbered from 0; None if different
        foregrounds do not share backgrounds, in which case only foregrounds matter.
    """

    foregrounds: NDArray[np.int64]
    backgrounds: NDArray[np.int64] | None

    @classmethod
    def from_units(cls, foregrounds: Units, backgrounds: Units | None = None) -> Roles:
        """Returns the roles of pictures whose units may be identified by any integers.

        Args:
          foregrounds: (n,) integers that identify the unit of each foreground: an image, or a
            group of images.
          backgrounds: (n,) integers that identify the unit of each background; None if different
            foregrounds do not share backgrounds.

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
        """(n,) int64, number of each picture's pair of units, from 0; None without backgrounds."""
        if self.backgrounds is None:
            return None
        width = int(self.backgrounds.max(initial=0)) + 1
        return _numbered(self.foregrounds * width + self.backgrounds)

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of units of the foregrounds and of the backgrounds, if there are any."""
        roles = (self.foregrounds, self.backgrounds)
        return tuple(int(role.max(initial=-1)) + 1 for role in roles if role is not None)

    @property
    def units(self) -> int:
        """Number of units in the role that has fewer units."""
        return min(self.counts)

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Roles:
        """Returns the roles of the pictures that a mask or an array of positions selects."""
        backgrounds = None if self.backgrounds is None else self.backgrounds[chosen]
        return Roles.from_units(self.foregrounds[chosen], backgrounds)

    def sums(self, r: Floats) -> list[Floats]:
        """Sums contributions by unit.

        Args:
          r: (..., n) contribution of each picture to each estimate.

        Returns:
          Arrays (..., units) of sums by foreground and, unless `backgrounds` is None, by background
          and by pair. They are linear in r: the sums of a difference are the difference of the
          sums.
        """
        return [
            _sums_by(numbers, r)
            for numbers in (self.foregrounds, self.backgrounds, self.pairs)
            if numbers is not None
        ]

    def variance(self, r: Floats) -> Floats:
        """Computes the variance of estimates.

        Args:
          r: (..., n) contribution of each picture to each estimate; the contributions to an
            estimate add up to 0.

        Returns:
          (...) float64, the variance of each estimate; infinite if a role has a single unit.
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
        # A negative difference counts as 0, and so does one that is 0 in theory but positive by a
        # rounding error, whose square root would not be negligible. An infinite variance stays
        # infinite.
        counts_as_zero = np.isfinite(added) & (added <= _ROUNDING * of_backgrounds)
        variance = variance + np.where(counts_as_zero, 0.0, added)
    return variance


def _role_variance(sums: Floats) -> Floats:
    """Computes the term of the variance by the units of one role; infinite for a single unit.

    The term is corrected for small numbers.
    """
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
      estimate: the differences, of any shape, in [-1, 1].
      variance: variance of each difference, from `Roles.variance`.
      units: number of units, from `Roles.units`.
      confidence: probability with which an interval should cover the truth, in (0, 1).

    Returns:
      (low, high), both of the shape of `estimate`, in [-1, 1]. If all units show the same
      difference, the variance is 0 and says nothing about other units. Then the interval allows
      for a share of other units whose difference is -1 or 1. This share is the upper bound of
      Wilson's interval for 0 successes among `units`.
    """
    error = np.sqrt(variance)
    if units < 2:
        return np.full_like(error, -1.0), np.full_like(error, 1.0)
    reach = t_quantile(units - 1, confidence) * error
    differing = np.where(error < _NONE, wilson(0, units, confidence)[1], 0.0)
    low = estimate - reach - differing * (1 + estimate)
    high = estimate + reach + differing * (1 - estimate)
    return np.maximum(low, -1), np.minimum(high, 1)


def smallest_difference(variance: Floats, units: int, confidence: float = CONFIDENCE) -> Floats:
    """Computes the smallest true difference whose interval excludes 0 in 8 of 10 draws of images.

    It counts as a difference from any other limit, too. The variance is assumed to be the same in
    all draws.

    Args:
      variance: variance of each difference, from `Roles.variance`, of any shape.
      units: number of units, from `Roles.units`.
      confidence: probability with which the interval should cover the truth, in (0, 1).

    Returns:
      The differences, > 0, of the shape of `variance`; infinite for fewer than two units. If all
      units show the same difference, the variance is that of a difference at which one unit in so
      many differs by 1.
    """
    df = max(units - 1, 0)
    errors = t_quantile(df, confidence) + t_quantile(df, 2 * POWER - 1)
    error = np.sqrt(variance)
    # A share s of units that differ by 1 has the variance s (1 - s) / units.
    rare = 1 / (1 + units / errors**2)
    return np.where(error < _NONE, rare, errors * error)


def p_value(estimate: Floats, variance: Floats, units: int) -> Floats:
    """Computes two-sided p values of estimates, such as differences.

    Under the null hypothesis, the mean of the estimates is 0.

    The arguments are the same as for `difference_interval`. If all units show the same difference,
    the p value is the sign test's; it is 1 if this difference is 0.
    """
    error = np.sqrt(variance)
    agree = error < _NONE
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(agree, 0.0, np.abs(estimate) / error)
    sign = np.where(np.abs(estimate) < _NONE, 1.0, 2.0 ** (1 - max(units, 1)))
    return np.where(agree, sign, t_p_value(t, max(units - 1, 0)))


def wilson_of_pictures(
    correct: NDArray[np.bool_],
    roles: Roles,
    confidence: float = CONFIDENCE,
    growth: float = 1.0,
) -> tuple[float, float]:
    """Computes Wilson's interval of a share of pictures that may share foregrounds or backgrounds.

    The number of trials is the number of independent pictures that would have the same variance
    (Kish 1965; Korn and Graubard 1998).

    Args:
      correct: (n,) bool, True for the pictures whose share is estimated.
      roles: units of the same n pictures.
      confidence: probability with which the interval should cover the truth, in (0, 1).
      growth: gives the interval that so many times as many images would have if their share and
        its variance, by image, stayed the same; > 0.

    Returns:
      (low, high), fractions in [0, 1]; (0, 1) without pictures, or if there are several pictures
      and all of them share one unit in a role. If no two pictures share a unit, the interval is
      that of `wilson`.
    """
    n = len(correct)
    if not n:
        return 0.0, 1.0
    counts = [np.bincount(roles.foregrounds)]
    if roles.backgrounds is not None:
        counts.append(np.bincount(roles.backgrounds))
    share = float(correct.mean())
    if all(len(role_counts) == n for role_counts in counts):
        return score_interval(share, n * growth, NormalDist().inv_cdf(0.5 + confidence / 2))
    return share_interval(
        share,
        float(roles.variance((correct - share) / n)) / growth,
        int(roles.units * growth),
        fewest=min(n**2 / int(np.square(role_counts).sum()) for role_counts in counts) * growth,
        most=n * growth,
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
    """Computes Wilson's interval of a share with a given variance.

    It is the interval for the number of independent trials whose share would have this variance.

    Args:
      share: the share, in [0, 1].
      variance: variance of the share, infinite if it is unknown.
      units: number of units in the role that has fewer units.
      fewest: number of independent trials if all trials that share a unit were copies of one trial.
        This number is used if all trials have the same outcome, because their variance is then 0
        and says nothing.
      most: number of independent trials if no two trials share a unit.
      confidence: probability with which the interval should cover the truth, in (0, 1).

    Returns:
      (low, high), fractions in [0, 1]; (0, 1) for fewer than two units.
    """
    if units < 2:
        return 0.0, 1.0
    effective = fewest
    if 0 < share < 1:
        # Trials with different outcomes have a variance of 0 only if their contributions cancel.
        effective = share * (1 - share) / variance if variance else most
    effective = min(max(effective, fewest), most)
    return score_interval(share, effective, t_quantile(units - 1, confidence))
