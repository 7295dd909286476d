"""Intervals of what is counted on pictures that share foregrounds and backgrounds.

A picture of a mixed variant shows one image's foreground on another's background. The foreground
stands on one background for each draw, and a background serves several foregrounds, so pictures
that share either err together. The variance of an estimate follows from the signed contribution r
of each picture to it, such as its distance from the mean, divided by their number: sums of r by
foreground are squared and added, so are those by background, and those by pair, which are in both,
are taken off. Source: Cameron, Gelbach and Miller 2011, "Robust inference with multiway
clustering". There are as many degrees of freedom as the rarer role has units, less one.
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
"""A standard error below this is rounding."""
_ROUNDING = 1e-12
"""Share of a variance that is: a real difference is larger than 1 / units."""


@dataclasses.dataclass(frozen=True, eq=False)
class Roles:
    """Which unit the foreground of each of n pictures is of, and which its background.

    Attributes:
      foregrounds: (n,) int64, the unit of each, numbered from 0 on.
      backgrounds: (n,) int64, likewise; None where each picture has its own background: then
        foregrounds alone count.
    """

    foregrounds: NDArray[np.int64]
    backgrounds: NDArray[np.int64] | None

    @classmethod
    def from_units(cls, foregrounds: Units, backgrounds: Units | None = None) -> Roles:
        """Numbers the units.

        Args:
          foregrounds: (n,) integers that tell apart the units (images, or groups of such) of
            foregrounds.
          backgrounds: (n,) integers that tell apart those of backgrounds; None where each picture
            has its own.

        Raises:
          ValueError: of different length.
        """
        numbers = _numbered(foregrounds)
        if backgrounds is None:
            return cls(numbers, None)
        if len(backgrounds) != len(foregrounds):
            raise ValueError(f"{len(foregrounds)} foregrounds on {len(backgrounds)} backgrounds")
        return cls(numbers, _numbered(backgrounds))

    @functools.cached_property
    def pairs(self) -> NDArray[np.int64] | None:
        """(n,) int64, the pair of both units, likewise numbered; None without backgrounds."""
        if self.backgrounds is None:
            return None
        width = int(self.backgrounds.max(initial=0)) + 1
        return _numbered(self.foregrounds * width + self.backgrounds)

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of units of foregrounds, and if there are such of backgrounds."""
        roles = (self.foregrounds, self.backgrounds)
        return tuple(int(role.max(initial=-1)) + 1 for role in roles if role is not None)

    @property
    def units(self) -> int:
        """Number of units of the rarer role."""
        return min(self.counts)

    def of_pictures(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Roles:
        """Roles of some of the pictures, given by a mask or by positions."""
        grounds = None if self.backgrounds is None else self.backgrounds[chosen]
        return Roles.from_units(self.foregrounds[chosen], grounds)

    def sums(self, r: Floats) -> list[Floats]:
        """Contributions added up by unit.

        Args:
          r: (..., n) contribution of each picture to each of some estimates.

        Returns:
          (..., units) of foregrounds, and if there are such of backgrounds and of pairs. They are
          linear in r: the sums of a difference are the difference of the sums.
        """
        return [
            _sums_by(numbers, r)
            for numbers in (self.foregrounds, self.backgrounds, self.pairs)
            if numbers is not None
        ]

    def variance(self, r: Floats) -> Floats:
        """Variance of estimates, (...) float64, of (..., n) contributions of each picture, which
        add up to 0; infinite where a role has a single unit."""
        return variance_of_sums(self.sums(r))


def _numbered(values: Units) -> NDArray[np.int64]:
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _sums_by(numbers: NDArray[np.int64], r: Floats) -> Floats:
    units = int(numbers.max(initial=-1)) + 1
    rows = [np.bincount(numbers, row, units) for row in r.reshape(-1, len(numbers))]
    return np.asarray(rows, np.float64).reshape(*r.shape[:-1], units)


def variance_of_sums(sums: Sequence[Floats]) -> Floats:
    """The variance of estimates, (...), from what `Roles.sums` returns."""
    by_foreground, *others = sums
    variance = _squares(by_foreground)
    if others:
        by_background, by_pair = others
        of_backgrounds = _squares(by_background)
        shared = of_backgrounds - np.square(by_pair).sum(axis=-1)
        # Equal sums may differ by rounding, whose root is far larger than it.
        is_rounding = np.isfinite(shared) & (shared <= _ROUNDING * of_backgrounds)
        variance = variance + np.where(is_rounding, 0.0, shared)
    return variance


def _squares(sums: Floats) -> Floats:
    """The variance that units of one role bring."""
    units = sums.shape[-1]
    if units < 2:
        return np.full(sums.shape[:-1], np.inf)
    squares: Floats = np.square(sums).sum(axis=-1) * (units / (units - 1))
    return squares


def difference_interval(
    estimate: Floats, variance: Floats, units: int, confidence: float = CONFIDENCE
) -> tuple[Floats, Floats]:
    """Intervals of differences between shares.

    Args:
      estimate: of any shape, in [-1, 1].
      variance: of that shape, of `Roles.variance`.
      units: of `Roles.units`.
      confidence: in (0, 1).

    Returns:
      (low, high) of that shape, in [-1, 1]. Where all units agree there is no variance to go by:
      then as many others may differ as Wilson's interval of none among `units` leaves room for,
      by as much as a difference can.
    """
    error = np.sqrt(variance)
    if units < 2:
        return np.full_like(error, -1.0), np.full_like(error, 1.0)
    reach = t_quantile(units - 1, confidence) * error
    others = np.where(error < _NONE, wilson(0, units, confidence)[1], 0.0)
    low = estimate - reach - others * (1 + estimate)
    high = estimate + reach + others * (1 - estimate)
    return np.maximum(low, -1), np.minimum(high, 1)


def p_value(estimate: Floats, variance: Floats, units: int) -> Floats:
    """How often chance gives as large a difference where there is none.

    Arguments are those of `difference_interval`, and the estimate may be any whose mean would be 0.
    Where all units agree on a difference, it is that of the sign test.
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
    """Wilson's interval of a share of pictures, of which some share a foreground or a background.

    They count as fewer: as many as would have the share's variance if they shared nothing (Kish
    1965; Korn and Graubard 1998).

    Args:
      correct: (n,) which pictures count.
      roles: of the same pictures.
      confidence: in (0, 1).

    Returns:
      (low, high), fractions in [0, 1]; (0, 1) for no pictures, and where they all show one unit.
      Where none share anything it is `wilson`.
    """
    n = len(correct)
    if not n:
        return 0.0, 1.0
    counts = [np.bincount(roles.foregrounds)]
    if roles.backgrounds is not None:
        counts.append(np.bincount(roles.backgrounds))
    if all(len(of_role) == n for of_role in counts):
        return wilson(int(correct.sum()), n, confidence)
    share = float(correct.mean())
    return share_interval(
        share,
        float(roles.variance((correct - share) / n)),
        roles.units,
        fewest=min(n**2 / int(np.square(of_role).sum()) for of_role in counts),
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
    """Wilson's interval of a share, for as many trials as would have its variance.

    Args:
      share: in [0, 1].
      variance: of it, infinite if nothing is known of that.
      units: of the rarer role.
      fewest: trials that are left if those that share something are copies of one: what remains
        where all end alike, which leaves no variance to go by.
      most: trials if none share anything.
      confidence: in (0, 1).

    Returns:
      (low, high), fractions in [0, 1]; (0, 1) of a single unit.
    """
    if units < 2:
        return 0.0, 1.0
    effective = fewest
    if 0 < share < 1:
        effective = share * (1 - share) / variance if variance else most
    effective = min(max(effective, fewest), most)
    return score_interval(share, effective, t_quantile(units - 1, confidence))
