"""Layers: what the variants of an image are composed of, lossless and at output size.

Segmenting causes nearly all of the cost, so its result is stored as a layer. Every variant is a
pure function of a layer and perhaps of another layer's background, a scene or noise. The background
is tiled: repetitions of the largest strip beside the box cover the box.
"""

import dataclasses
import hashlib

import cv2
import numpy as np

from transforms.annotations import Box
from transforms.geometry import Mask, OutputBox, Pixels, ResizeCrop
from transforms.hashing import text_bytes


class NoTileError(ValueError):
    """The box leaves no strip of background on any side."""


def background_strip(width: int, height: int, box: Box) -> Box:
    """Chooses the strip to tile with, for a box clipped to the image of this native size.

    Candidates are the strips left and right of the box at full height, and the strips above and
    below it at full width. The largest strip wins. If the best strip of the one pair is as large as
    the best strip of the other pair, the pair above/below wins; if both strips of a pair are
    equally large, the right or bottom strip wins. Right and bottom strips start *at* column xmax or
    row ymax, although the annotated rectangle includes them, so one column or row of the object can
    leak into the tile, as in the authors' script.

    Returns:
      The strip as a half-open box, without column xmax and row ymax of this box.

    Raises:
      NoTileError: the box leaves no strip on any side.
    """
    left, right = box.xmin, width - box.xmax
    above, below = box.ymin, height - box.ymax
    if max(left, right) * height > max(above, below) * width:
        return Box(0, 0, left, height) if left > right else Box(box.xmax, 0, width, height)
    if max(above, below) <= 0:
        raise NoTileError(f"{box} leaves no background in {width} x {height} pixels")
    return Box(0, 0, width, above) if above > below else Box(0, box.ymax, width, height)


def tile_background(image: Pixels, box: Box) -> Pixels:
    """Replaces the box's pixels with background (Only-BG-T, paper section 2).

    The box is filled from the strip, as if copies of the strip tiled the whole image from its
    top-left corner.

    Args:
      image: (H, W, 3) uint8, RGB, like the result.
      box: the box, clipped to the image; its column xmax and row ymax are replaced, too.

    Raises:
      NoTileError: the box leaves no strip on any side.
    """
    height, width = image.shape[:2]
    strip = background_strip(width, height, box)
    tile = image[strip.ymin : strip.ymax, strip.xmin : strip.xmax]
    copies = cv2.repeat(tile, -(-height // strip.height), -(-width // strip.width))
    covered = slice(box.ymin, box.ymax + 1), slice(box.xmin, box.xmax + 1)
    tiled = image.copy()
    # The copies may reach beyond the image.
    tiled[covered] = copies[:height, :width][covered]
    return tiled


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One accepted image, cut into foreground and background. S is the side of the output.

    Attributes:
      image: (S, S, 3) uint8, RGB, the image after `ResizeCrop`.
      only_bg_t: (S, S, 3) uint8, RGB, the tiled background. It is computed at native size, and then
        transformed like the image.
      mask: (S, S) bool, True on the foreground.
      box: the object's box in output pixels.
      is_whole: whether the image is not cut apart: it is all background, and has no box.
    """

    image: Pixels
    only_bg_t: Pixels
    mask: Mask
    box: OutputBox
    is_whole: bool = False

    @property
    def digest(self) -> str:
        """Digest of the pixels and the box, or of the pixels of a whole image: 16 hex digits."""
        parts = (self.image,) if self.is_whole else (self.image, self.only_bg_t, self.mask)
        hasher = hashlib.sha256(b"" if self.is_whole else text_bytes(repr(tuple(self.box))))
        for array in parts:
            hasher.update(array.tobytes())
        return hasher.hexdigest()[:16]

    @property
    def fg_fraction(self) -> float:
        """Share of the output pixels that are foreground, in [0, 1]."""
        return float(np.count_nonzero(self.mask) / self.mask.size)


def make_layer(
    image: Pixels,
    box: Box,
    mask: Mask,
    *,
    resize: int,
    crop: int,
    interpolation: str,
    pad: bool = False,
    is_output_mask: bool = False,
) -> Layer:
    """Cuts an image into foreground and background, with S = crop.

    Args:
      image: (H, W, 3) uint8, RGB, native size.
      box: the object's box in native pixels, clipped to the image.
      mask: (H, W) bool, True on the foreground; (crop, crop) if `is_output_mask`.
      resize, crop, pad: see `ResizeCrop.for_size`.
      interpolation: one of `INTERPOLATIONS`, for image and background; the mask uses nearest.
      is_output_mask: whether the mask is that of the layer already.

    Raises:
      NoTileError: the box leaves no strip of background on any side.
      ValueError: the crop is larger than the resize, or below 1.
      KeyError: the interpolation is unknown.
    """
    height, width = image.shape[:2]
    transform = ResizeCrop.for_size(
        native_width=width, native_height=height, resize=resize, crop=crop, pad=pad
    )
    return Layer(
        image=transform.image(image, interpolation),
        only_bg_t=transform.image(tile_background(image, box), interpolation),
        mask=mask if is_output_mask else transform.mask(mask),
        box=transform.box(box),
    )
