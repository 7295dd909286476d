"""Tiles the background: covers the box with repetitions of the largest strip beside it."""

from __future__ import annotations

import numpy as np

from transforms.annotations import Box
from transforms.geometry import Pixels


class NoTileError(ValueError):
    """The box leaves no strip of background on any side."""


def background_strip(width: int, height: int, box: Box) -> Box:
    """Chooses the strip to tile with.

    Candidates are the strips left and right of the box at full height, and the strips above and
    below it at full width. The largest strip wins. If the best strip of the one pair is as large as
    the best strip of the other pair, the pair above/below wins; if both strips of a pair are
    equally large, the right or bottom strip wins. Right and bottom strips start *at* column xmax or
    row ymax, although the annotated rectangle includes them, so one column or row of the object can
    leak into the tile, as in the authors' script.

    Args:
      width, height: native size of the image, in pixels.
      box: the box, clipped to the image.

    Returns:
      The strip as a half-open box, without column xmax and row ymax of this box.

    Raises:
      NoTileError: the box leaves no strip on any side.
    """
    left, right = box.xmin, width - box.xmax
    above, below = box.ymin, height - box.ymax
    if max(left, right) * height > max(above, below) * width:
        if left > right:
            return Box(0, 0, left, height)
        return Box(box.xmax, 0, width, height)
    if max(above, below) <= 0:
        raise NoTileError(f"{box} leaves no background in {width} x {height} pixels")
    if above > below:
        return Box(0, 0, width, above)
    return Box(0, box.ymax, width, height)


def tile_background(image: Pixels, box: Box) -> Pixels:
    """Replaces the box's pixels with background (Only-BG-T, paper section 2).

    Args:
      image: (H, W, 3) uint8, RGB.
      box: the box, clipped to the image; its column xmax and row ymax are replaced, too.

    Returns:
      (H, W, 3) uint8, RGB: `image` with the box filled from the strip, as if copies of the strip
      tiled the whole image from the image's top-left corner.

    Raises:
      NoTileError: the box leaves no strip on any side.
    """
    height, width = image.shape[:2]
    strip = background_strip(width, height, box)
    rows = np.arange(box.ymin, min(box.ymax + 1, height))
    columns = np.arange(box.xmin, min(box.xmax + 1, width))
    tiled = image.copy()
    tiled[rows[:, np.newaxis], columns] = image[
        (strip.ymin + rows % strip.height)[:, np.newaxis], strip.xmin + columns % strip.width
    ]
    return tiled
