"""The L2 penalties that a linear probe chooses from."""

from __future__ import annotations

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Penalties to try, strongest first. Each is the `penalty` of `linear_probe.fit_probe`: a factor of
half the sum of the squared weights, for standardised features."""


def describe_penalty(penalty: float) -> str:
    """Formats a penalty. If it is the first or last of `PENALTIES`, the text says so, because a
    penalty beyond that end might fit better.

    >>> describe_penalty(0.1), describe_penalty(10.0)
    ('0.1', '10 (the strongest that is tried)')
    """
    ends = {
        PENALTIES[0]: " (the strongest that is tried)",
        PENALTIES[-1]: " (the weakest that is tried)",
    }
    return f"{penalty:g}{ends.get(penalty, '')}"
