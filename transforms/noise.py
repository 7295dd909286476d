"""Gaussian noise for pictures: the same bytes on every machine.

A logarithm or a cosine differs in its last bit between processors and libraries, so noise is not
computed of uniform numbers but looked up: 16 bits of a keyed hash are one of 65,536 equally likely
levels, of which each whole number has as many as the normal distribution gives it. Nothing is lost
by whole numbers, since pictures hold those: to round noise and add it is to add it and round.
"""

from __future__ import annotations

import functools
import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from transforms.geometry import Pixels
from transforms.hashing import substreams

SIGMA = 0.25
"""Standard deviation, as a share of the range of a channel: that of Moayeri, Singla and Feizi 2022,
"Hard ImageNet: Segmentations for Objects with Strong Spurious Cues"."""

Noise = NDArray[np.int16]

_BITS = 16
_MOST = 300
"""Noise beyond this many levels is rarer than one in 65,536."""


@functools.cache
def level_table() -> Noise:
    """The (65536,) levels, in ascending order, normal with `SIGMA` and rounded."""
    normal = NormalDist(sigma=255 * SIGMA)
    # How many are below each level. None is within 0.0005 of a half before it is rounded, so
    # the last bits of the distribution function do not matter.
    starts = [round(2**_BITS * normal.cdf(k - 0.5)) for k in range(1 - _MOST, _MOST + 1)]
    levels = np.searchsorted(starts, np.arange(2**_BITS), side="right") - _MOST
    return levels.astype(np.int16)


def gaussian_noise(draw: int, shape: tuple[int, ...]) -> Noise:
    """Noise of one picture.

    Args:
      draw: of `keyed_hash`.
      shape: of the picture, such as (S, S, 3): each channel has noise of its own.

    Returns:
      int16 of that shape, in levels of 255, mean 0 and standard deviation 255 * `SIGMA`: four
      values, from the lowest bits on, of each word of the draw's substreams.
    """
    count = math.prod(shape)
    words = substreams(np.asarray([draw], np.uint64), range(-(-count // 4)))
    places = words.astype("<u8").view("<u2").ravel()[:count]
    levels: Noise = level_table()[places].reshape(shape)
    return levels


def add_noise(image: Pixels, noise: Noise) -> Pixels:
    """An image with noise of its shape on it, clipped to uint8."""
    noisy: Pixels = (image + noise).clip(0, 255).astype(np.uint8)
    return noisy
