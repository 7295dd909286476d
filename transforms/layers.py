"""Layers: all that composing needs of an image, lossless, at output size.

Segmenting is nearly all of the cost, so its result is kept: every variant is a pure
function of one layer, or of two.
"""

from __future__ import annotations

import dataclasses

from transforms.annotations import Box
from transforms.geometry import Mask, OutputBox, Pixels, ResizeCrop
from transforms.tiling import tile_background


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One accepted image, cut apart.

    Attributes:
      image: (S, S, 3) uint8, RGB, after Resize + CenterCrop.
      only_bg_t: (S, S, 3) uint8, the tiled background, computed at native size and
        transformed like the image.
      mask: (S, S) bool, True on the foreground.
      box: the annotated box in output pixels.
    """

    image: Pixels
    only_bg_t: Pixels
    mask: Mask
    box: OutputBox

    @property
    def fg_fraction(self) -> float:
        """Share of the output pixels that are foreground, in [0, 1]."""
        return float(self.mask.mean())


def make_layer(
    image: Pixels,
    box: Box,
    mask: Mask,
    *,
    resize: int,
    crop: int,
    interpolation: str,
    pad: bool = False,
) -> Layer:
    """Cuts an image apart.

    Args:
      image: (H, W, 3) uint8, RGB, native size.
      box: clipped to the image.
      mask: (H, W) bool, True on the foreground.
      resize: shorter side after the resize, in pixels.
      crop: side of the centre crop, in pixels.
      interpolation: of image and background; masks always go by nearest.
      pad: as `ResizeCrop.for_size`.

    Returns:
      The layer, S = crop.

    Raises:
      NoTileError: the box leaves no background to tile with.
      ValueError: the crop is larger than the resize.
      KeyError: an unknown interpolation.
    """
    height, width = image.shape[:2]
    transform = ResizeCrop.for_size(
        native_width=width, native_height=height, resize=resize, crop=crop, pad=pad
    )
    return Layer(
        image=transform.image(image, interpolation),
        only_bg_t=transform.image(tile_background(image, box), interpolation),
        mask=transform.mask(mask),
        box=transform.box(box),
    )
