"""Finds the background of a mixed picture by its pixels outside of the mask.

Candidates are found by means over small blocks, weighted by the share of each block that the mask
leaves free, and then compared pixel by pixel. Both steps tolerate JPEG noise.
"""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from transforms.geometry import Mask, Pixels

BLOCK = 8
"""Side of a block in pixels, the same as in JPEG."""
MAX_DIFFERENCE = 8.0
"""Largest mean difference from the picture at which a background can still be the true one, in
levels of 0 to 255."""
MARGIN = 1.0
"""The next best candidate must differ by at least twice as much as the best, plus this margin."""

_CLIP = 32.0
"""Limit of the difference of a pixel's channel, because individual pixels can differ a lot where
the mask is slightly off."""
_CLEARANCES = (8, 2)
"""Widths in pixels of the border around the mask that is ignored; the second is tried if the first
leaves fewer than `_MIN_PIXELS` pixels."""
_MIN_PIXELS = 256
_BACKGROUNDS_AT_ONCE = 4096

Floats = NDArray[np.floating]


def block_means(image: Pixels) -> NDArray[np.uint8]:
    """Averages an (S, S, 3) uint8 picture over its B whole blocks: (B, 3) uint8, rounded."""
    return np.rint(_average_blocks(image.astype(np.float32))).astype(np.uint8)


def block_means_outside(image: Pixels, mask: Mask) -> tuple[Floats, Floats]:
    """Averages the part of each block of (S, S, 3) uint8 that a (S, S) bool mask leaves free.

    Returns:
      means: (B, 3) float32 for B whole blocks, 0 where nothing is free.
      free: (B,) float32, free share of the block.
    """
    outside = ~mask[..., np.newaxis]
    free = _average_blocks(outside.astype(np.float32))
    means = _average_blocks(np.where(outside, image, 0).astype(np.float32))
    means = np.divide(means, free, out=np.zeros_like(means), where=free > 0)
    return means, free[:, 0]


def _average_blocks(image: NDArray[np.float32]) -> NDArray[np.float32]:
    blocks_per_side = image.shape[0] // BLOCK
    cropped = image[: blocks_per_side * BLOCK, : blocks_per_side * BLOCK]
    blocks = cropped.reshape(blocks_per_side, BLOCK, blocks_per_side, BLOCK, -1)
    return np.asarray(blocks.mean(axis=(1, 3)).reshape(blocks_per_side**2, -1))


def nearest(pool: NDArray[np.uint8], means: Floats, free: Floats, count: int) -> NDArray[np.int64]:
    """Finds the backgrounds that look most like the free part of mixed pictures.

    Args:
      pool: (N, B, 3) uint8, from `block_means`; B is the number of blocks.
      means: (n, B, 3) float32, from `block_means_outside`.
      free: (n, B) float32, from `block_means_outside`.

    Returns:
      (n, min(count, N)) int64 positions in the pool, the most alike first.
    """
    num_pictures, num_blocks = free.shape
    # A half-free block is less than half as informative, so weights are squared.
    weights = (free * free).astype(np.float32)
    weighted = (weights[..., np.newaxis] * means).reshape(num_pictures, -1).astype(np.float32)
    # Squared distances less a term that is the same for all backgrounds.
    distances = np.empty((num_pictures, len(pool)), np.float32)
    for first in range(0, len(pool), _BACKGROUNDS_AT_ONCE):
        part = pool[first : first + _BACKGROUNDS_AT_ONCE].astype(np.float32)
        squares = (part * part).sum(axis=2)
        distances[:, first : first + len(part)] = weights @ squares.T - 2 * (
            weighted @ part.reshape(len(part), num_blocks * 3).T
        )
    return np.argsort(distances, axis=1, kind="stable")[:, :count].astype(np.int64)


def compare(image: Pixels, mask: Mask, backgrounds: Sequence[Pixels]) -> list[float] | None:
    """Measures how much a mixed picture differs from backgrounds, outside of its mask.

    Pictures are (S, S, 3) uint8; the mask is (S, S) bool, True on the foreground.

    Returns:
      Mean difference of each background, in levels of 0 to 255; None if the mask leaves too few
      pixels.
    """
    for clearance in _CLEARANCES:
        side = 2 * clearance + 1
        outside = cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) == 0
        if outside.sum() >= _MIN_PIXELS:
            visible = image[outside].astype(np.float32)
            return [
                float(np.minimum(np.abs(visible - background[outside]), _CLIP).mean())
                for background in backgrounds
            ]
    return None


@dataclasses.dataclass(frozen=True)
class Match:
    """The best candidate, and how well it fits.

    Attributes:
      position: index of the best candidate in `differences`.
      difference: its mean difference, in levels of 0 to 255.
      next_difference: mean difference of the next best candidate, None if there is no other.
      is_sure: whether the best candidate is certainly the true background.
    """

    position: int
    difference: float
    next_difference: float | None
    is_sure: bool


def decide(differences: Sequence[float]) -> Match:
    """Picks the candidate, of at least one, that differs least by `compare`; ties go to the first.

    The match is sure if it is close and no other is nearly as close.

    >>> decide([20.0, 0.5, 9.0]).is_sure, decide([0.5, 0.5]).is_sure
    (True, False)
    """
    order = sorted(range(len(differences)), key=differences.__getitem__)
    best = differences[order[0]]
    second = differences[order[1]] if len(order) > 1 else None
    is_distinct = second is None or second >= 2 * best + MARGIN
    return Match(order[0], best, second, best <= MAX_DIFFERENCE and is_distinct)
