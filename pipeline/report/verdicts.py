"""Verdicts on a claim, from the 95 % intervals of what was measured: pure functions."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence

Estimate = tuple[float, float, float]
"""A value, and the bounds of its 95 % interval."""


class Verdict(enum.StrEnum):
    """What the evidence says of a claim."""

    HOLDS = "holds"
    FAILS = "does not hold"
    OPEN = "not significant"
    MIXED = "differs by model"
    SMALL = "too small to tell"
    NOT_RUN = "not run"


@dataclasses.dataclass(frozen=True)
class Finding:
    """What was measured of one model, or of all for a trend.

    Attributes:
      subject: what it was measured of.
      value: the estimate.
      low, high: its 95 % interval; the estimate itself where there is none.
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
    (<Verdict.HOLDS: 'holds'>, <Verdict.OPEN: 'not significant'>, <Verdict.FAILS: 'does not hold'>)
    """
    if low > threshold:
        return Verdict.HOLDS
    return Verdict.FAILS if high < threshold else Verdict.OPEN


def below(low: float, high: float, threshold: float) -> Verdict:
    """Whether the true value is under a threshold."""
    return above(-high, -low, -threshold)


def meets(low: float, high: float, span: tuple[float, float]) -> Verdict:
    """Whether an interval and a published range have values in common."""
    return Verdict.HOLDS if low <= span[1] and high >= span[0] else Verdict.FAILS


def overall(findings: Sequence[Finding]) -> Verdict:
    """The verdict on a claim from those of all models: theirs if they agree."""
    verdicts = {finding.verdict for finding in findings}
    if not verdicts:
        return Verdict.NOT_RUN
    return verdicts.pop() if len(verdicts) == 1 else Verdict.MIXED


def difference(first: Estimate, second: Estimate) -> Estimate:
    """First less second, with Newcombe's interval from those of the two (Newcombe 1998,
    method 10). It takes them as independent: wider than needed where both saw the same images.
    """
    value = first[0] - second[0]
    down = math.hypot(first[0] - first[1], second[2] - second[0])
    up = math.hypot(first[2] - first[0], second[0] - second[1])
    return value, value - down, value + up
