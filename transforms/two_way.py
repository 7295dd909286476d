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
background are multiplied by E / (E - 1), where E is the effective number of foregrounds or of
backgrounds.
Source: Cameron, Gelbach and Miller 2011, "Robust inference with multiway clustering".

A unit is an image, or a group of images that must count as one. A picture has a unit in two roles,
as foreground and as background; the foregrounds and backgrounds of the sums above are these units.
Their effective number is 1 / the sum of the squares of their shares of the pictures (Kish 1965), so
that many small groups beside a large one do not count as many. The degrees of freedom of Student's
t are this number in the role in which it is smaller, less one.

If two models, or two variants, differ on few pictures, the estimate of their difference and its
variance are small together. So a difference is tested with the variance that it would have if the
value to test were the true one (`EstimateSpread.variance_at`), and its interval holds the values
that this test does not reject.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from transforms.intervals import CONFIDENCE, Floats, score_interval, t_p_value, t_quantile

Units = NDArray[np.integer]

POWER = 0.8
"""Share of the draws of images in which the smallest difference should show."""
_NONE = 1e-12
"""A standard error that is smaller is a rounding error of 0."""
_LEAST = 1e-24
"""A smaller variance is a rounding error of 0, and says nothing of degrees of freedom."""
_HALVINGS = 32
"""Number of times that the search for an end of an interval halves its range."""
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
      differences: (n,) int64, the paired difference to which each picture belongs, numbered from 0:
        in a gap, the two pictures of a foreground in a draw are one; else each picture by itself.
    """

    foregrounds: NDArray[np.int64]
    backgrounds: NDArray[np.int64] | None
    differences: NDArray[np.int64]

    @classmethod
    def from_units(
        cls, foregrounds: Units, backgrounds: Units | None = None, differences: Units | None = None
    ) -> Roles:
        """Returns the roles of pictures whose units may be identified by any (n,) integers.

        A unit is an image, or a group of images. `backgrounds` may be None, as in `Roles`; without
        `differences`, each picture is one by itself. Raises ValueError if the arrays have different
        lengths.
        """
        if backgrounds is not None and len(backgrounds) != len(foregrounds):
            raise ValueError(f"{len(foregrounds)} foregrounds on {len(backgrounds)} backgrounds")
        return cls(
            _numbered(foregrounds),
            None if backgrounds is None else _numbered(backgrounds),
            np.arange(len(foregrounds)) if differences is None else _numbered(differences),
        )

    @functools.cached_property
    def pairs(self) -> NDArray[np.int64] | None:
        """(n,) int64, number of each picture's pair of units, from 0; None without backgrounds."""
        if self.backgrounds is None:
            return None
        width = int(self.backgrounds.max(initial=0)) + 1
        return _numbered(self.foregrounds * width + self.backgrounds)

    @functools.cached_property
    def effective(self) -> tuple[float, ...]:
        """Effective number of units of the foregrounds and of the backgrounds, if there are any."""
        n = len(self.foregrounds)
        roles = (self.foregrounds, self.backgrounds)
        counts = [np.bincount(role) for role in roles if role is not None]
        return tuple(n**2 / int(np.square(each).sum()) if n else 0.0 for each in counts)

    @property
    def units(self) -> float:
        """Effective number of units in the role in which it is smaller."""
        return min(self.effective)

    def select(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> Roles:
        """Returns the roles of the pictures that a mask or an array of positions selects."""
        backgrounds = None if self.backgrounds is None else self.backgrounds[chosen]
        return Roles.from_units(self.foregrounds[chosen], backgrounds, self.differences[chosen])

    def sums(self, r: Floats) -> list[Floats]:
        """Sums contributions by unit, of (..., n) of each picture to each estimate.

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

    def corrected(self, r: Floats) -> list[Floats]:
        """Computes `sums` for `variance_of_sums`.

        Those of either role are multiplied by the root of the correction for small numbers.
        """
        roots = [math.sqrt(e / (e - 1)) if e > 1 else 1.0 for e in self.effective]
        return [sums * root for sums, root in zip(self.sums(r), [*roots, 1.0], strict=False)]

    def variance(self, r: Floats) -> Floats:
        """Computes estimates' variances, (...) float64; infinite if a role has a single unit.

        `r` is (..., n), as in `sums`; the contributions to an estimate add up to 0.
        """
        return variance_of_sums(self.corrected(r))

    def paired(self, r: Floats) -> Floats:
        """Sums contributions (..., n) by paired difference, (..., differences); linear in r."""
        return _sums_by(self.differences, r)

    def spread(self, r: Floats) -> EstimateSpread:
        """Computes the spread of differences; the argument is that of `variance`."""
        return self.spread_of_sums(self.corrected(r), self.paired(r))

    def spread_of_sums(self, sums: Sequence[Floats], paired: Floats) -> EstimateSpread:
        """Computes the spread of differences from the results of `corrected` and `paired`."""
        pairs = paired.shape[-1]
        scatter = np.asarray(np.square(paired).sum(axis=-1) * pairs)
        return EstimateSpread(variance_of_sums(sums), scatter, pairs, self.units)


@dataclasses.dataclass(frozen=True, eq=False)
class EstimateSpread:
    """The spread of estimates, each of which is the mean of paired differences.

    A paired difference is that of a picture's outcomes by two models, that of a foreground's
    outcomes on two backgrounds, or the difference of two models in the latter. An outcome is 1 if
    the answer is right, else 0, or the share of models that are right.

    Attributes:
      variance: (...) float64, variance of each estimate; infinite if a role has a single unit.
      scatter: (...) float64, variance of the paired differences themselves.
      pairs: number of paired differences.
      units: effective number of units, from `Roles.units`.
    """

    variance: Floats
    scatter: Floats
    pairs: float
    units: float

    def grown(self, growth: float) -> EstimateSpread:
        """Returns the spread for so many times as many images, if that by image stays the same."""
        return EstimateSpread(
            self.variance / growth, self.scatter, self.pairs * growth, self.units * growth
        )

    def trials(self, estimate: Floats) -> tuple[Floats, Floats, Floats]:
        """Computes how many independent paired differences would have the variance.

        Returns:
          (number of trials, (...), a quarter of the units to all pairs; mean square of the paired
          differences, (...), at least that of a mean of values -1, 0 and 1; what must be added to
          their variance because there are no fewer trials, (...)). A variance of 0 says nothing,
          so there are as many trials as units then.
        """
        square = np.maximum(self.scatter + np.square(estimate), np.abs(estimate))
        scatter = square - np.square(estimate)
        known = self.variance > _NONE**2
        number = np.where(known, scatter / np.where(known, self.variance, 1.0), self.units)
        number = np.clip(number, self.units / 4, self.pairs)
        return number, square, np.maximum(self.variance * number - scatter, 0.0)

    def variance_at(self, estimate: Floats) -> Callable[[Floats], Floats]:
        """Finds the variance that estimates would have if some values were the true ones.

        It is that of as many independent paired differences, each -1, 0 or 1, as `trials` says. The
        shares of -1 and 1 are the most likely ones with this mean (Tango 1998, "Equivalence test
        and confidence interval for the difference in proportions for the paired-sample design").

        Returns:
          A function: values in [-1, 1], of the shape of `variance` or with more axes in front ->
          the variances. At the estimates themselves they are at least `variance`.
        """
        trials, square, added = self.trials(estimate)

        def variance(value: Floats) -> Floats:
            seen, value = np.where(value < 0, -estimate, estimate), np.abs(value)
            between, linear = value * (1 - value), (2 - seen) * value - square
            root = np.maximum(linear * linear + 4 * (square - seen) * between, 0.0)
            against = (np.sqrt(root) - linear) / 4
            result: Floats = (2 * against + between + added) / trials
            return result

        return variance


def _numbered(values: Units) -> NDArray[np.int64]:
    """Numbers different values from 0, in ascending order."""
    if values.min(initial=0) < 0 or values.max(initial=0) > 4 * len(values):
        return np.unique(values, return_inverse=True)[1].astype(np.int64)
    # Of small numbers, this takes a tenth of the time, because nothing is sorted.
    return np.asarray(np.cumsum(np.bincount(values.astype(np.int64)) > 0) - 1)[values]


def _sums_by(numbers: NDArray[np.int64], r: Floats) -> Floats:
    units = int(numbers.max(initial=-1)) + 1
    rows = [np.bincount(numbers, row, units) for row in r.reshape(-1, len(numbers))]
    return np.asarray(rows, np.float64).reshape(*r.shape[:-1], units)


def variance_of_sums(sums: Sequence[Floats]) -> Floats:
    """Computes the variance of estimates, (...), from the result of `Roles.corrected`."""
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
    """Computes the term of the variance by the units of one role; infinite for a single unit."""
    if sums.shape[-1] < 2:
        return np.full(sums.shape[:-1], np.inf)
    return np.asarray(np.square(sums).sum(axis=-1))


def difference_interval(
    estimate: Floats, spread: EstimateSpread, confidence: float = CONFIDENCE
) -> tuple[Floats, Floats]:
    """Computes intervals of differences between shares (Tango 1998).

    Args:
      estimate: the differences, of any shape, in [-1, 1]; those of two gaps may lie outside.
      confidence: probability with which an interval should cover the truth, in (0, 1).

    Returns:
      (low, high), both of the shape of `estimate`, in [-1, 1] if the estimates are. They enclose
      the true values that lie so few standard errors from the estimate, by
      `EstimateSpread.variance_at`, as Student's t allows. If all paired differences are 0, they
      reach as far as Wilson's interval for 0 of as many trials as units. With fewer than two units,
      effectively, they are -1 and 1.
    """
    if spread.units < 2:
        return np.full_like(estimate, -1.0), np.full_like(estimate, 1.0)
    t, variance = t_quantile(spread.units - 1, confidence), spread.variance_at(estimate)
    outside = np.stack([np.minimum(estimate, -1), np.maximum(estimate, 1)])
    inside = np.broadcast_to(estimate, outside.shape)
    for _ in range(_HALVINGS):
        value = (inside + outside) / 2
        is_inside = np.square(value - estimate) <= t * t * variance(value)
        inside, outside = np.where(is_inside, value, inside), np.where(is_inside, outside, value)
    return outside[0], outside[1]


def smallest_difference(
    estimate: Floats, spread: EstimateSpread, confidence: float = CONFIDENCE, limit: float = 0.0
) -> Floats:
    """Computes how far from a limit a true difference shows in 8 of 10 draws of images.

    It shows if the interval excludes the limit. Of a model whose difference is larger than the
    estimate, it is assumed that as many more of its paired differences are -1, or 1, as that takes.

    Args:
      estimate: the differences, of any shape.
      confidence: probability with which the interval should cover the truth, in (0, 1).
      limit: the limit, in [-1, 1].

    Returns:
      The distances, > 0, of the shape of `estimate`; infinite for fewer than two units.
    """
    if spread.units < 2:
        return np.full_like(estimate, np.inf)
    df = spread.units - 1
    errors = t_quantile(df, confidence) + t_quantile(df, 2 * POWER - 1)
    trials, square, added = spread.trials(estimate)
    scatter, weight = square - np.square(estimate) + added, errors**2 / trials
    # The true difference x solves (x - limit)^2 = weight (scatter + x (1 - x) - seen (1 - seen)).
    seen, least = np.abs(estimate), abs(limit)
    more = weight * (least * (1 - least) + (1 + weight) * (scatter - seen * (1 - seen)))
    x = (least + weight / 2 + np.sqrt(np.square(weight) / 4 + more)) / (1 + weight)
    return np.asarray(np.maximum(np.sqrt(weight * scatter), x - least))


def p_value(estimate: Floats, spread: EstimateSpread, limit: float = 0.0) -> Floats:
    """Computes two-sided p values of the hypothesis that differences, of any shape, are `limit`.

    An interval of `difference_interval` excludes this value, in [-1, 1], if the p value is less
    than 1 - confidence.
    """
    if spread.units < 2:
        return np.ones_like(estimate)
    error = np.sqrt(spread.variance_at(estimate)(np.full_like(estimate, limit)))
    # The error at 0 is 0 only if each paired difference is 0, and so is the estimate.
    return t_p_value((estimate - limit) / np.maximum(error, _NONE), spread.units - 1)


def wilson_of_pictures(
    correct: NDArray[np.bool_],
    roles: Roles,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Computes Wilson's interval of a share of pictures that may share foregrounds or backgrounds.

    The number of trials is the number of independent pictures that would have the same variance
    (Kish 1965; Korn and Graubard 1998).

    Args:
      correct: (n,) bool, True for the pictures whose share is estimated.
      roles: units of the same n pictures.
      confidence: probability with which the interval should cover the truth, in (0, 1).

    Returns:
      (low, high), fractions in [0, 1]; (0, 1) without pictures, or if there are several pictures
      and all of them share one unit in a role. If no two pictures share a unit, the interval is
      that of `wilson`.
    """
    n = len(correct)
    if not n:
        return 0.0, 1.0
    share = float(correct.mean())
    return interval_of_pictures(
        share,
        float(roles.variance((correct - share) / n)),
        roles.units,
        fewest=roles.units,
        most=n,
        confidence=confidence,
    )


def interval_of_pictures(
    share: float, variance: float, units: float, *, fewest: float, most: float, confidence: float
) -> tuple[float, float]:
    """Computes `share_interval`; if no two pictures share a unit, the interval of `wilson`."""
    if fewest == most:
        return score_interval(share, most, NormalDist().inv_cdf(0.5 + confidence / 2))
    return share_interval(share, variance, units, fewest=fewest, most=most, confidence=confidence)


def share_interval(
    share: float,
    variance: float,
    units: float,
    *,
    fewest: float,
    most: float,
    confidence: float = CONFIDENCE,
) -> tuple[float, float]:
    """Computes Wilson's interval of a share with a given variance, (low, high) in [0, 1].

    It is the interval for the number of independent trials whose share would have this variance;
    (0, 1) for fewer than two units.

    Args:
      share: the share, in [0, 1].
      variance: variance of the share, infinite if it is unknown.
      units: effective number of units, from `Roles.units`.
      fewest: number of independent trials if all trials that share a unit were copies of one trial.
        This number is used if all trials have the same outcome, because their variance is then 0
        and says nothing.
      most: number of independent trials if no two trials share a unit.
      confidence: probability with which the interval should cover the truth, in (0, 1).
    """
    if units < 2:
        return 0.0, 1.0
    effective = fewest
    if 0 < share < 1:
        # Trials with different outcomes have a variance of 0 only if their contributions cancel.
        effective = share * (1 - share) / variance if variance else most
    effective = min(max(effective, fewest), most)
    return score_interval(share, effective, t_quantile(units - 1, confidence))


MIN_SEEDS = 3
"""The fewest seeds, trainings of one method, whose estimates have a variance worth stating."""


class Seeds(NamedTuple):
    """The estimates of K seeds of a method from the same n pictures.

    Attributes:
      values: (K,) float64, their estimates.
      r: (K, n) float64, the contribution of each picture to each estimate, as for `Roles.sums`.
    """

    values: Floats
    r: Floats


def spread_of_methods(roles: Roles, *methods: Seeds, further: bool = False) -> EstimateSpread:
    """Computes the spread of a method's estimate, or of the first's minus that of a second.

    `roles` are those of the pictures. Each method has at least `MIN_SEEDS` seeds, or each a single
    one; then the spread is that of other images and backgrounds alone. With `further`, it is that
    of what one further seed of the only method would show, around the mean of the seeds.

    All seeds answer the same pictures. The estimate of a method is the mean over its seeds. Its
    error has two parts: other images and backgrounds would have given other answers, which the
    seeds have in common as far as their answers agree, and other seeds would have been trained to
    other weights.

    With K seeds, let A be the two-way variance of the mean, s^2 the variance of the seeds'
    estimates around the mean, and W the mean two-way variance of a seed's deviation from the mean.
    What of A is common to all seeds, and no share of their own errors, is C = max(0, A - W / K).
    The variance of the mean is then V = max(A, C + s^2 / K), and its degrees of freedom follow from
    those of C and s^2 (Satterthwaite 1946). For the difference of two methods, A is the variance of
    the difference of their means, because both answer the same pictures, and each has its own s^2
    and W, because their seeds have nothing in common.

    Intervals of differences suppose paired differences of -1, 0 and 1. These are the differences of
    single seeds, so their scatter is that of single seeds. Means of seeds scatter less; with their
    scatter, intervals of accurate models would be half as wide again.
    """
    first, *others = methods
    mean = first.r.mean(axis=0) - sum(other.r.mean(axis=0) for other in others)
    of_images = roles.spread(np.asarray(mean))
    numbers = np.asarray([len(one.values) for one in methods])
    # With one unit, nothing is known of other images, so nothing can be added to that.
    if of_images.units < 2 or numbers.max() == 1:
        return of_images
    squares = np.asarray([one.values.var(ddof=1) for one in methods])
    deviations = [one.r - one.r.mean(axis=0) for one in methods]
    noises = np.asarray([roles.variance(each).sum() / (len(each) - 1) for each in deviations])
    common = max(0.0, float(of_images.variance - (noises / numbers).sum()))
    variance = max(float(of_images.variance), common + float((squares / numbers).sum()))
    variance += further * float(np.maximum(0, squares - noises).sum())
    of_seeds = squares * (1 / numbers + further)
    terms = common**2 / (of_images.units - 1) + float((of_seeds**2 / (numbers - 1)).sum())
    df = variance**2 / terms if terms > _LEAST**2 else of_images.units - 1
    df = max(df, further * float(numbers.min() - 1))
    within = sum(np.square(roles.paired(each)).sum() / len(each) for each in deviations)
    scatter = np.asarray(of_images.scatter + of_images.pairs * within)
    # As many differences of single seeds have the variance of a mean whose pictures share no unit.
    more = float(scatter / of_images.scatter) if of_images.scatter > _LEAST else 1.0
    units = min(df, of_images.units - 1) + 1
    return EstimateSpread(np.asarray(variance), scatter, of_images.pairs * more, units)
