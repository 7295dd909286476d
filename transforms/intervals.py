"""Confidence intervals, p values and their adjustment for many tests, and what they say of a claim.

Shares of independent pictures get Wilson's interval, and differences of paired values a bootstrap
interval. (`transforms.two_way` has the intervals for pictures that share foregrounds or
backgrounds.) P values of many tests at once are adjusted, so that chance alone is seldom taken for
a finding.

A claim holds if every value of the interval of a measurement supports it, and does not hold if no
value does; otherwise the data are too few to tell. So widening an interval never decides an open
claim.
"""

import enum
import functools
import math
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import UInt64Array, keyed_hashes, substreams

CONFIDENCE = 0.95
RESAMPLES = 2000

Floats = NDArray[np.float64]
Estimate = tuple[float, float, float]
"""A value, and the bounds of its 95 % interval."""

# Cumulative probabilities of 0, 1, 2, ... by Poisson(1). A unit's weight in a resample is how many
# of these probabilities the unit's uniform draw reaches, so it is at most 12.
_POISSON = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(12)])

# Number of weights that are computed at once, so that they and the intermediate values fit into a
# core's cache.
_BLOCK = 1 << 16


def wilson(correct: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Computes Wilson's score interval of a proportion (Wilson 1927): (low, high) in [0, 1].

    Without trials, it is (0, 1).

    Args:
      correct: number of successes, 0 to n, else ValueError is raised.
      n: number of trials.
      confidence: probability with which the interval covers the true proportion, in (0, 1).

    >>> [round(bound, 4) for bound in wilson(149, 151)]
    [0.953, 0.9964]
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct must be between 0 and n={n}: got {correct}")
    if n == 0:
        return 0.0, 1.0
    return score_interval(correct / n, n, NormalDist().inv_cdf(0.5 + confidence / 2))


def score_interval(share: float, n: float, z: float) -> tuple[float, float]:
    """Computes Wilson's interval, (low, high) in [0, 1], from trials that need not be whole.

    Args:
      share: share of successes, in [0, 1].
      n: number of trials, > 0.
      z: number of standard errors that the interval reaches to either side, > 0.
    """
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    # Rounding must not put the estimate outside its own interval.
    return min(max(centre - spread, 0.0), share), max(min(centre + spread, 1.0), share)


@functools.lru_cache(maxsize=4096)
def t_quantile(df: float, confidence: float) -> float:
    """Finds the t > 0 that bounds the central part of Student's distribution, by `scipy.special`.

    It is infinite without degrees of freedom.

    Args:
      df: degrees of freedom, >= 0.
      confidence: probability of the interval from -t to t, in (0, 1).

    >>> round(t_quantile(10, 0.95), 4)
    2.2281
    """
    # Imported here because an installation that only runs models makes no tables and may lack it.
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + confidence) / 2)) if df else math.inf


def t_p_value(t: Floats, df: float) -> Floats:
    """Computes two-sided p values of Student's t, in [0, 1], by `scipy.special`.

    `t` has any shape, and may be infinite; `df`, the degrees of freedom, is >= 0. Without degrees
    of freedom, p is 1.
    """
    from scipy.special import stdtr

    return 2 * stdtr(df, -np.abs(t)) if df else np.ones_like(t)


def poisson_weights(draws: UInt64Array) -> Floats:
    """Draws the weights of Poisson bootstrap resamples (Hanley and MacGibbon 2006).

    From uint64 of any shape, such as `substreams` of keyed hashes of the units, it makes float64 of
    this shape: how often each unit is drawn, by Poisson(1). A weight depends on its own draw alone,
    so it is the same in any order and on any runner.
    """
    uniform = (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.searchsorted(_POISSON, uniform, side="right").astype(np.float64)


def bootstrap_means(
    sums: Floats, sizes: Floats, hashes: UInt64Array, *, resamples: int = RESAMPLES
) -> Floats:
    """Computes the means of several quantities over the same units, in every resample.

    All quantities, such as the accuracies of two models, are resampled together, so the difference
    of two columns is a resampled paired difference.

    Args:
      sums: (units, columns) sum of each unit's values, with a column for each quantity.
      sizes: number of values in each sum: (units,) if it is the same in all columns, else (units,
        columns).
      hashes: (units,) uint64, keyed hashes that decide how often each unit is drawn.

    Returns:
      (resamples, columns) float64, the means. Resamples that draw no value of a column are left
      out. The memory for weights does not grow with the number of units.
    """
    # The sizes are summed like the other columns, because they divide the sums.
    values, columns = np.column_stack([sums, sizes]), sums.shape[1]
    totals = np.zeros((resamples, values.shape[1]))
    units = max(1, min(len(hashes), _BLOCK // 16))
    rows = _BLOCK // units
    for first in range(0, resamples, rows):
        chosen = range(first, min(first + rows, resamples))
        for unit in range(0, len(hashes), units):
            block = slice(unit, unit + units)
            weights = poisson_weights(substreams(hashes[block], chosen))
            totals[chosen.start : chosen.stop] += weights @ values[block]
    drawn = totals[(totals[:, columns:] > 0).all(axis=1)]
    return drawn[:, :columns] / drawn[:, columns:]


def bootstrap_interval(
    values: Floats,
    units: Sequence[str] | NDArray[np.object_],
    *,
    resamples: int = RESAMPLES,
) -> tuple[Floats, Floats]:
    """Computes the 95 % percentile bootstrap interval of each column's mean.

    In simulations of BG-Gap, as a paired difference, the interval covers the truth in 94 to 95 % of
    cases with 80 units or more. With fewer units it is too narrow: it covers 93 % with 40 units,
    88 % with 20 and 67 % with 10.

    Args:
      values: (n, columns) values, such as differences of two models on the same pictures; NaN for
        one that is not known. Each column has some.
      units: (n,) unit of each row; rows of one unit are resampled together.

    Returns:
      (low, high), with an entry for each column. They are the mean if it is the same in all units.
    """
    names, unit_of = np.unique(np.asarray(units, object), return_inverse=True)
    known = ~np.isnan(values)
    sums, sizes = (
        np.stack([np.bincount(unit_of, column, len(names)) for column in each.T], axis=1).astype(
            np.float64
        )
        for each in (np.where(known, values, 0.0), known[:, :1] if known.all() else known)
    )
    means = bootstrap_means(sums, sizes, keyed_hashes(0, "bootstrap", names), resamples=resamples)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return low, high


def level_of(comparisons: int) -> float:
    """Returns the confidence that each of several intervals needs (Bonferroni).

    With it, all of them cover the truth at once with a probability of at least 95 %.

    >>> round(level_of(10), 4)
    0.995
    """
    return 1 - (1 - CONFIDENCE) / comparisons


def holm(p_values: Floats) -> Floats:
    """Adjusts p values of several tests (Holm 1979).

    If adjusted p values below 0.05 count as findings, the chance of even one false finding is at
    most 0.05. The tests may depend on each other in any way.

    Takes (tests, ...) p values in [0, 1], and adjusts each column on its own. Returns the same
    shape in [0, 1]; none is below the original p value.
    """
    factors = np.arange(len(p_values), 0, -1.0)
    return _adjusted(p_values, factors, lambda adjusted: np.maximum.accumulate(adjusted, axis=0))


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Adjusts p values like `holm`, but bounds the expected share of false findings among findings.

    If adjusted p values below 0.05 count as findings, this share is at most 0.05 (Benjamini and
    Hochberg 1995). Tests must be independent or depend on each other positively.
    """
    factors = len(p_values) / np.arange(1, len(p_values) + 1)
    return _adjusted(
        p_values, factors, lambda adjusted: np.minimum.accumulate(adjusted[::-1], axis=0)[::-1]
    )


def _adjusted(p_values: Floats, factors: Floats, accumulate: Callable[[Floats], Floats]) -> Floats:
    """Multiplies p values, in ascending order, by the factors, and makes the products ascend."""
    order = np.argsort(p_values, axis=0, kind="stable")
    products = np.take_along_axis(p_values, order, axis=0) * factors.reshape(
        -1, *[1] * (p_values.ndim - 1)
    )
    adjusted = np.empty_like(products)
    np.put_along_axis(adjusted, order, np.minimum(accumulate(products), 1), axis=0)
    return adjusted


def estimate_of(value: float | None, low: float | None, high: float | None) -> Estimate | None:
    """Returns a value with its interval; None if one of the three is None."""
    return None if value is None or low is None or high is None else (value, low, high)


def widened(estimate: Estimate, comparisons: int) -> Estimate:
    """Widens the 95 % interval of a normally distributed estimate selected among several."""
    z, wider = (
        NormalDist().inv_cdf(0.5 + level / 2) for level in (CONFIDENCE, level_of(comparisons))
    )
    value, low, high = estimate
    return value, value - (value - low) * wider / z, value + (high - value) * wider / z


def difference(first: Estimate, second: Estimate) -> Estimate:
    """Subtracts the second estimate from the first, with Newcombe's interval (1998, method 10).

    The interval treats the estimates as independent, so it is too wide if both were measured on the
    same images.
    """
    value = first[0] - second[0]
    down = math.hypot(first[0] - first[1], second[2] - second[0])
    up = math.hypot(first[2] - first[0], second[0] - second[1])
    return value, value - down, value + up


class Verdict(enum.StrEnum):
    """Outcome of judging a claim by the evidence."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "open"
    SMALL = "grid too small"
    MIXED = "mixed"
    NOT_RUN = "not run"


def decide(low: float, high: float, is_met: Callable[[float], bool]) -> Verdict:
    """Judges whether the true value, which an interval contains, meets a criterion.

    `is_met` tells it of a value: of all values above some limit, or of all below it. The verdict is
    `OPEN` unless the whole interval meets the criterion, or no part of it.
    """
    met = is_met(low), is_met(high)
    return Verdict.HOLDS if all(met) else Verdict.OPEN if any(met) else Verdict.FAILS


def above(low: float, high: float, threshold: float) -> Verdict:
    """Judges whether the true value exceeds a threshold.

    >>> above(0.03, 0.13, 0), above(-0.02, 0.13, 0), above(-0.2, -0.1, 0)
    (<Verdict.HOLDS: 'holds'>, <Verdict.OPEN: 'open'>, <Verdict.FAILS: 'does not hold'>)
    """
    return decide(low, high, lambda value: value > threshold)


def below(low: float, high: float, threshold: float) -> Verdict:
    """Judges whether the true value is under a threshold."""
    return decide(low, high, lambda value: value < threshold)


def within(low: float, high: float, span: tuple[float, float]) -> Verdict:
    """Judges whether the true value lies in a range.

    >>> within(0.07, 0.12, (0.06, 0.14)), within(-0.02, 0.17, (0.06, 0.14))
    (<Verdict.HOLDS: 'holds'>, <Verdict.OPEN: 'open'>)
    """
    if span[0] <= low and high <= span[1]:
        return Verdict.HOLDS
    return Verdict.FAILS if high < span[0] or low > span[1] else Verdict.OPEN
