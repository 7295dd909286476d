"""The L2 penalties that a linear probe is fitted with, and what to know of the one it chose."""

from __future__ import annotations

PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Those that are tried (`pipeline.training.linear_probe`), the strongest first: each weighs half
the sum of squared weights of standardised features against the mean loss of an image."""


def describe_penalty(penalty: float) -> str:
    """A penalty in words, also where one beyond those that are tried might fit better.

    >>> describe_penalty(0.1), describe_penalty(10.0)
    ('0.1', '10 (the strongest that is tried)')
    """
    ends = {
        PENALTIES[0]: " (the strongest that is tried)",
        PENALTIES[-1]: " (the weakest that is tried)",
    }
    return f"{penalty:g}{ends.get(penalty, '')}"
