"""Augment: random resized crop, flip and colour jitter, drawn for (seed, epoch, key).

The chances are those of torchvision's transforms (v2), whose functions do the work; the draws
are our own, so that neither the number of workers nor their order changes a picture.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional

from transforms.hashing import keyed_hashes, substreams

Hashes = NDArray[np.uint64]
Draws = NDArray[np.float64]

_TRIES = 10
"""How often a crop is drawn that may not fit into the picture."""
# Where in an image's draws each choice begins.
_CROP = 0
_PLACE = 2 * _TRIES
_FLIP = _PLACE + 2
_ORDER = _FLIP + 1
_JITTER = _ORDER + 1
DRAWS = _JITTER + 3
"""Random numbers that one picture takes in one epoch."""
_RATIOS = (np.log(3 / 4), np.log(4 / 3))
_ADJUSTMENTS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
)
_ORDERS = tuple(itertools.permutations(range(len(_ADJUSTMENTS))))


def augmentation_hashes(seed: int, keys: Iterable[str]) -> Hashes:
    """(n,) uint64: what the draws of each image are derived from, in all epochs."""
    return keyed_hashes(seed, "augmentation", keys)


def draws_of(hashes: Hashes, epoch: int) -> Draws:
    """Random numbers for one epoch.

    Args:
      hashes: (n,) uint64 of `augmentation_hashes`.
      epoch: from 0 on.

    Returns:
      (n, DRAWS) float64, independent and uniform in [0, 1).
    """
    bits = substreams(hashes, range(epoch * DRAWS, (epoch + 1) * DRAWS)) >> np.uint64(11)
    return np.ascontiguousarray(bits.T * 2.0**-53)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied.

    Attributes:
      size: side of the result, in pixels.
      min_area: least share of the picture that a crop covers; sides are between 3:4 and 4:3.
      flip: chance that left and right change places.
      jitter: brightness, contrast and saturation are each multiplied by a factor between
        1 - jitter and 1 + jitter, in random order. In [0, 1].
    """

    size: int
    min_area: float = 0.08
    flip: float = 0.5
    jitter: float = 0.1

    def crop(self, draws: Draws, height: int, width: int) -> tuple[int, int, int, int]:
        """The crop of a picture: (top, left, height, width), inside of it.

        Args:
          draws: (DRAWS,) of `draws_of`.
          height, width: of the picture.
        """
        low, high = _RATIOS
        shares = self.min_area + draws[_CROP:_PLACE:2] * (1 - self.min_area)
        ratios = np.exp(low + draws[_CROP + 1 : _PLACE : 2] * (high - low))
        area = height * width * shares
        widths = np.round(np.sqrt(area * ratios)).astype(int)
        heights = np.round(np.sqrt(area / ratios)).astype(int)
        fitting = np.flatnonzero(
            (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
        )
        if len(fitting):
            h, w = int(heights[fitting[0]]), int(widths[fitting[0]])
            top, left = (draws[_PLACE : _PLACE + 2] * (height - h + 1, width - w + 1)).astype(int)
            return int(top), int(left), h, w
        # The whole picture, or the middle of one that is too long for these ratios.
        h = min(height, round(width * 4 / 3))
        w = min(width, round(height * 4 / 3))
        return (height - h) // 2, (width - w) // 2, h, w

    def apply(self, pixels: NDArray[np.uint8], draws: Draws) -> torch.Tensor:
        """Varies a picture.

        Args:
          pixels: (H, W, 3) uint8 RGB.
          draws: (DRAWS,) of `draws_of`.

        Returns:
          (3, size, size) uint8.
        """
        picture = torch.from_numpy(pixels).permute(2, 0, 1)
        top, left, height, width = self.crop(draws, *pixels.shape[:2])
        side = [self.size, self.size]
        picture = functional.resized_crop(picture, top, left, height, width, side, antialias=True)
        if draws[_FLIP] < self.flip:
            picture = functional.horizontal_flip(picture)
        if self.jitter:
            factors = 1 + self.jitter * (2 * draws[_JITTER:] - 1)
            for number in _ORDERS[int(draws[_ORDER] * len(_ORDERS))]:
                picture = _ADJUSTMENTS[number](picture, float(factors[number]))
        result: torch.Tensor = picture
        return result
