"""Layers: the parts of an image from which its variants are composed, lossless and at output size.

Segmenting causes nearly all of the cost, so its result is stored as a layer. Every variant is a
pure function of a layer and perhaps of another layer's background, a scene or noise.
"""

from __future__ import annotations

import dataclasses

from transforms.annotations import Box
from transforms.geometry import Mask, OutputBox, Pixels, ResizeCrop
from transforms.tiling import tile_background


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """One accepted image, cut into foreground and background. S is the side of the output.

    Attributes:
      image: (S, S, 3) uint8, RGB, the image after `ResizeCrop`.
      only_bg_t: (S, S, 3) uint8, RGB, the tiled background. It is computed at native size, and then
        transformed like the image.
      mask: (S, S) bool, True on the foreground.
      box: the object's box in output pixels.
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
    """Cuts an image into foreground and background.

    Args:
      image: (H, W, 3) uint8, RGB, native size.
      box: the object's box in native pixels, clipped to the image.
      mask: (H, W) bool, True on the foreground.
      resize: shorter side after the resize, in pixels.
      crop: side of the centre crop, in pixels.
      interpolation: one of `INTERPOLATIONS`, for image and background; the mask always uses
        nearest.
      pad: see `ResizeCrop.for_size`.

    Returns:
      The layer, with S = crop.

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
        mask=transform.mask(mask),
        box=transform.box(box),
    )
