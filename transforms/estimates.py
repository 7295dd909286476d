"""Estimates with their 95 % intervals, and what they say of a claim.

A claim holds if every value of the interval of a measurement supports it, and does not hold if no
value does; otherwise the data are too few to tell. So widening an interval never decides an open
claim.
"""

import enum
import math
from collections.abc import Callable
from statistics import NormalDist

from transforms.intervals import CONFIDENCE, level_of

Estimate = tuple[float, float, float]
"""A value, and the bounds of its 95 % interval."""


def estimate_of(value: float | None, low: float | None, high: float | None) -> Estimate | None:
    """Returns a value with its interval; None if one of the three is None."""
    return None if value is None or low is None or high is None else (value, low, high)


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
