"""Verdicts on a claim, from the 95 % intervals of what was measured: pure functions.

A claim holds if the whole interval bears it out, and does not hold if none of it does; else the
data are too few to tell. So a wider interval never makes a claim hold, nor fail.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence
from statistics import NormalDist

from transforms.intervals import CONFIDENCE, level_of

Estimate = tuple[float, float, float]
"""A value, and the bounds of its 95 % interval."""


class Verdict(enum.StrEnum):
    """What the evidence says of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "open"
    SMALL = "grid too small"
    MIXED = "mixed"
    NOT_RUN = "not run"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was measured: of one model, or in one test, or one line of a trend.

    Attributes:
      subject: what it was measured of.
      value: the estimate.
      low, high: its 95 % interval.
      verdict: on the claim.
      chance: accuracy of a constant answer to the same pictures, where the claim is judged by it.
    """

    subject: str
    value: float
    low: float
    high: float
    verdict: Verdict
    chance: float | None = None


def above(low: float, high: float, threshold: float) -> Verdict:
    """Whether the true value exceeds a threshold.

    >>> above(0.03, 0.13, 0), above(-0.02, 0.13, 0), above(-0.2, -0.1, 0)
    (<Verdict.HOLDS: 'holds'>, <Verdict.OPEN: 'open'>, <Verdict.FAILS: 'does not hold'>)
    """
    if low > threshold:
        return Verdict.HOLDS
    return Verdict.FAILS if high < threshold else Verdict.OPEN


def below(low: float, high: float, threshold: float) -> Verdict:
    """Whether the true value is under a threshold."""
    return above(-high, -low, -threshold)


def within(low: float, high: float, span: tuple[float, float]) -> Verdict:
    """Whether the true value lies in a range.

    >>> within(0.07, 0.12, (0.06, 0.14)), within(-0.02, 0.17, (0.06, 0.14))
    (<Verdict.HOLDS: 'holds'>, <Verdict.OPEN: 'open'>)
    """
    if span[0] <= low and high <= span[1]:
        return Verdict.HOLDS
    return Verdict.FAILS if high < span[0] or low > span[1] else Verdict.OPEN


def overall(findings: Sequence[Finding]) -> Verdict:
    """The verdict on a claim from all findings: theirs if they agree, open if none decides it."""
    verdicts = {finding.verdict for finding in findings}
    if not verdicts:
        return Verdict.NOT_RUN
    if len(verdicts) == 1:
        return verdicts.pop()
    return Verdict.MIXED if verdicts & {Verdict.HOLDS, Verdict.FAILS} else Verdict.OPEN


def widened(found: Estimate, comparisons: int) -> Estimate:
    """An estimate that is chosen among so many, with a 95 % interval that is widened to that level,
    as if it were normal."""
    z, wider = (
        NormalDist().inv_cdf(0.5 + level / 2) for level in (CONFIDENCE, level_of(comparisons))
    )
    value, low, high = found
    return value, value - (value - low) * wider / z, value + (high - value) * wider / z


def difference(first: Estimate, second: Estimate) -> Estimate:
    """First less second, with Newcombe's interval from those of the two (Newcombe 1998,
    method 10). It takes them as independent: wider than needed where both saw the same images.
    """
    value = first[0] - second[0]
    down = math.hypot(first[0] - first[1], second[2] - second[0])
    up = math.hypot(first[2] - first[0], second[0] - second[1])
    return value, value - down, value + up
