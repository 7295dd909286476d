"""Renderings: how the hole in a background is filled, and how a foreground is put on it.

The paper's method tiles the annotated box of the background and cuts the foreground out along its
mask. BG-Gap depends on these choices, so other renderings show the same pairs of foreground and
background. Sizes are shares of the side S of the picture, so that they show the same at any
resolution; they are given in pixels of 224.
"""

import dataclasses
from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

from transforms.geometry import Mask, Pixels
from transforms.layers import Layer

_SIDE = 224
"""Side of the pictures for which sizes are given."""
_RADIUS = 5.0
"""Radius of the neighbourhood that Telea's method takes a pixel's colour from."""
_MARGIN = 2
"""Pixels by which the hole of a mask reaches beyond the mask: a kernel of 5 x 5."""
_FEATHER = 1.5
"""Standard deviation of the Gaussian that softens the edge of a mask."""
_OPAQUE = np.uint16(65535)
"""Opacity of a pixel of the foreground."""


def composite(foreground: Pixels, mask: Mask, background: Pixels) -> Pixels:
    """Puts a foreground on a background, (S, S, 3) uint8, where a (S, S) bool mask is True.

    Foreground pixels that are black in the image are kept. The authors' script loses them, because
    it takes black pixels, instead of the mask, for background. By `cv2.copyTo`, which takes a
    thirtieth of the time of `numpy.where`.
    """
    return np.asarray(cv2.copyTo(foreground, mask.view(np.uint8), background.copy()))


def paste_mask(layer: Layer, background: Pixels) -> Pixels:
    """Puts the foreground on a background, cut out along its mask (paper section 2)."""
    return composite(layer.image, layer.mask, background)


def paste_box(layer: Layer, background: Pixels) -> Pixels:
    """Puts the whole annotated box on a background."""
    return composite(layer.image, box_hole(layer), background)


def paste_feathered(layer: Layer, background: Pixels) -> Pixels:
    """Puts the foreground on a background, with a soft edge.

    The opacity is the blurred mask, and the mean of the two pictures is computed in integers, too.
    """
    soft = blur(layer.mask * _OPAQUE, _FEATHER * len(layer.mask) / _SIDE)
    opacity = soft[..., np.newaxis].astype(np.uint32)
    mean = layer.image * opacity + background * (_OPAQUE - opacity) + _OPAQUE // 2
    return (mean // _OPAQUE).astype(np.uint8)


def blur(image: NDArray[np.uint16], sigma: float) -> NDArray[np.uint16]:
    """Blurs (S, S) or (S, S, channels) uint16, by a Gaussian of sigma pixels (`cv2.GaussianBlur`).

    OpenCV blurs 16-bit integers to the same bits on every processor.
    """
    return np.asarray(
        cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.uint16
    )


def box_hole(layer: Layer) -> Mask:
    """Returns the annotated box as a mask, (S, S) bool."""
    hole = np.zeros(layer.mask.shape, np.bool_)
    hole[layer.box.y0 : layer.box.y1, layer.box.x0 : layer.box.x1] = True
    return hole


def mask_hole(layer: Layer) -> Mask:
    """Returns the mask with a margin (`cv2.dilate`), (S, S) bool, as masks cut into the object."""
    kernel = np.ones([2 * round(_MARGIN * len(layer.mask) / _SIDE) + 1] * 2, np.uint8)
    return np.asarray(cv2.dilate(layer.mask.astype(np.uint8), kernel), np.bool_)


def paint_telea(image: Pixels, hole: Mask) -> Pixels:
    """Fills a hole, (S, S) bool, in a picture, (S, S, 3) uint8, from its edge inwards.

    Source: Telea 2004, "An Image Inpainting Technique Based on the Fast Marching Method", as
    `cv2.inpaint` with `cv2.INPAINT_TELEA`.
    """
    # At the border of the picture OpenCV reads a pixel of the hole, which must not show the object.
    known = image * ~hole[..., np.newaxis]
    return np.asarray(
        cv2.inpaint(known, hole.astype(np.uint8), _RADIUS * len(hole) / _SIDE, cv2.INPAINT_TELEA)
    )


@dataclasses.dataclass(frozen=True)
class Rendering:
    """A way to render pairs of a foreground and a background.

    Attributes:
      name: what variants of it are named with; "" for the paper's method.
      description: how it differs from the paper's method, for a dataset's card.
      hole: returns the hole in the background, (S, S) bool; None to tile the annotated box.
      paint: fills a hole of an image; only used with `hole`.
      paste: puts the foreground of a layer on a background, (S, S, 3) uint8.
    """

    name: str
    description: str = ""
    hole: Callable[[Layer], Mask] | None = None
    paint: Callable[[Pixels, Mask], Pixels] = paint_telea
    paste: Callable[[Layer, Pixels], Pixels] = paste_mask

    def fill(self, layer: Layer) -> Pixels | None:
        """Fills the hole of a layer's background; returns (S, S, 3) uint8, RGB.

        Returns None if the hole is tiled, or covers the whole picture, so that nothing is left to
        fill it from.
        """
        if self.hole is None or (hole := self.hole(layer)).all():
            return None
        return self.paint(layer.image, hole)


PAPER_RENDERING, COMMON, AGAINST = GAPS = ("paper", "common", "against")
"""Names beside those of renderings, so no fill may have them: the paper's method on all pictures of
a dataset, on pairs of the images that another dataset has, too, and on the other one's pictures of
these pairs."""

PAPER_METHOD = Rendering("")
"""The paper's rendering: the box is tiled, the foreground cut out along its mask."""

RENDERINGS = {
    rendering.name: rendering
    for rendering in (
        Rendering("telea", "the background's box is painted instead of tiled", box_hole),
        Rendering("hole_telea", "only the background's object is painted over", mask_hole),
        Rendering("feather", "the foreground's edge is soft", paste=paste_feathered),
        Rendering("box", "the foreground's whole box is shown", paste=paste_box),
    )
}
"""Renderings by name."""
