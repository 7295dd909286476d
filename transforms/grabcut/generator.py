"""OpenCV's random numbers, a multiply-with-carry generator.

The state of `cv::RNG` has 64 bits: the last number in the low half, the carry in the high half. A
random `double` is made from two numbers of 32 bits: together they are a number of 64 bits, with the
first number as its high half, which is divided by 2^64.
Source: OpenCV, core/operations.hpp.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from transforms.grabcut.compilation import Integer, helper

_MULTIPLIER = np.uint64(4164903690)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def seeded(seed: int) -> NDArray[np.uint64]:
    """Returns the state after `cv2.setRNGSeed(seed)`, (1,) uint64; the seed is a C int."""
    return np.array([seed % 2**64 or 0xFFFFFFFF], np.uint64)


@helper
def next_integer(state: NDArray[np.uint64]) -> Integer:
    """Advances the state; returns 32 random bits."""
    state[0] = (state[0] & _LOW_HALF) * _MULTIPLIER + (state[0] >> _HALF)
    number: np.uint64 = state[0] & _LOW_HALF
    return number


@helper
def next_fraction(state: NDArray[np.uint64]) -> float:
    """Advances the state twice; returns a float64 in [0, 1]."""
    high = next_integer(state)
    return np.float64((high << _HALF) | next_integer(state)) * 2.0**-64
