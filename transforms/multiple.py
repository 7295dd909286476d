"""P values of many tests at once, adjusted so that chance alone is seldom taken for a finding."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def holm(p_values: Floats) -> Floats:
    """Adjusts so that 0.05 bounds the chance of even one false finding (Holm 1979).

    Args:
      p_values: (tests, ...) in [0, 1]; each column is adjusted on its own. Tests may depend on each
        other.

    Returns:
      Of that shape, in [0, 1], not below the p values.
    """
    tests = len(p_values)
    order = np.argsort(p_values, axis=0, kind="stable")
    factors = np.arange(tests, 0, -1).reshape(-1, *[1] * (p_values.ndim - 1))
    adjusted = np.take_along_axis(p_values, order, axis=0) * factors
    return _unsorted(np.maximum.accumulate(adjusted, axis=0), order)


def benjamini_hochberg(p_values: Floats) -> Floats:
    """Adjusts so that 0.05 bounds the expected share of false ones among the findings (Benjamini
    and Hochberg 1995).

    Arguments and result are those of `holm`; tests may depend on each other positively.
    """
    tests = len(p_values)
    order = np.argsort(p_values, axis=0, kind="stable")
    factors = (tests / np.arange(1, tests + 1)).reshape(-1, *[1] * (p_values.ndim - 1))
    adjusted = np.take_along_axis(p_values, order, axis=0) * factors
    return _unsorted(np.minimum.accumulate(adjusted[::-1], axis=0)[::-1], order)


def _unsorted(adjusted: Floats, order: NDArray[np.intp]) -> Floats:
    found = np.empty_like(adjusted)
    np.put_along_axis(found, order, np.minimum(adjusted, 1), axis=0)
    return found
