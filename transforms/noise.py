"""Gaussian noise for pictures, with the same bytes on every machine.

Logarithms and cosines differ in their last bit between processors and libraries, so noise is not
computed from uniform numbers, but looked up in a table. 16 bits of a keyed hash select one of its
65,536 entries, which are equally likely. Each whole number occurs in the table in proportion to its
probability under the rounded normal distribution. Whole numbers are enough, because pictures hold
whole numbers, too: rounding the noise before adding it equals rounding the sum.
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
"""Standard deviation of the noise, as a share of the range of a channel. Source: Moayeri, Singla
and Feizi 2022, "Hard ImageNet: Segmentations for Objects with Strong Spurious Cues"."""

Noise = NDArray[np.int16]

_BITS = 16
_MOST = 300
"""Noise of more than this many levels, of 255, is rarer than one entry in 65,536."""


@functools.cache
def level_table() -> Noise:
    """Returns the (65536,) rounded levels of a normal distribution, in ascending order."""
    normal = NormalDist(sigma=255 * SIGMA)
    # The number of entries below each level. Before rounding, none of these numbers is within
    # 0.0005 of a half, so the last bits of the distribution function do not matter.
    starts = [round(2**_BITS * normal.cdf(k - 0.5)) for k in range(1 - _MOST, _MOST + 1)]
    levels = np.searchsorted(starts, np.arange(2**_BITS), side="right") - _MOST
    return levels.astype(np.int16)


def gaussian_noise(draw: int, shape: tuple[int, ...]) -> Noise:
    """Draws the noise of one picture.

    Args:
      draw: the picture's `keyed_hash`, which decides the noise.
      shape: shape of the picture, such as (S, S, 3). Each channel has its own noise.

    Returns:
      Noise of this shape, int16, in levels of a channel (0 to 255), with mean 0 and standard
      deviation 255 * `SIGMA`. Each 64-bit word of the draw's substream gives four values, from its
      lowest bits to its highest.
    """
    count = math.prod(shape)
    words = substreams(np.asarray([draw], np.uint64), range(-(-count // 4)))
    indices = words.astype("<u8").view("<u2").ravel()[:count]
    levels: Noise = level_table()[indices].reshape(shape)
    return levels


def add_noise(image: Pixels, noise: Noise) -> Pixels:
    """Adds noise of the same shape to an image, clipped to uint8."""
    noisy: Pixels = (image + noise).clip(0, 255).astype(np.uint8)
    return noisy
