"""Saliency maps: how strongly each pixel affects a model's output.

A map is the largest absolute value, over the channels, of the gradient of an output with respect to
the pixels. Source: the gradient maps of Simonyan, Vedaldi and Zisserman 2014. Section 4 of the blog
post by ImageNet-9's authors compares the maps of two models by eye. `mass_in_mask` turns this
comparison into a number: the share of a map that lies on the foreground.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from transforms.geometry import Mask, Pixels

Map = NDArray[np.float32]

_BLUR = 1.2
"""Standard deviation of the blur of a map that is drawn, in pixels. Without it, single pixels look
like noise."""
_BRIGHTEST = 99.5
"""Percentile of a map that is drawn with full brightness. If it were the maximum, a few extreme
values would darken all others."""
_PICTURE = 0.4
"""Share of its brightness with which the picture is drawn below the map."""


def mass_in_mask(saliency: NDArray[np.floating], mask: Mask) -> float | None:
    """Computes the share of the mass of a (H, W) map, >= 0, that lies inside a (H, W) bool mask.

    It is a fraction in [0, 1], independent of the map's scale; None for a map that is 0 everywhere.
    """
    # `compress` takes a quarter of the time of a mask as an index.
    inside, outside = (
        float(np.compress(some.ravel(), saliency).astype(np.float64).sum())
        for some in (mask, ~mask)
    )
    return inside / (inside + outside) if inside + outside > 0 else None


def overlay(picture: Pixels, saliency: NDArray[np.floating], mask: Mask) -> Pixels:
    """Draws a (H, W) map, >= 0, over its picture, (H, W, 3) uint8 RGB; returns such a picture.

    It shows the slightly blurred map in colours from black to yellow, over the picture in dark
    grey, with the outline of the (H, W) bool mask, True on the foreground, in white.
    """
    blurred = cv2.GaussianBlur(saliency.astype(np.float32), (0, 0), _BLUR)
    brightest = float(np.percentile(blurred, _BRIGHTEST))
    heat = np.clip(blurred / brightest, 0, 1) if brightest > 0 else np.zeros_like(blurred)
    colours = cv2.applyColorMap((255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32) * _PICTURE
    weight = heat[..., np.newaxis]
    shown = grey[..., np.newaxis] * (1 - weight) + colours[..., ::-1] * weight
    shown[_outline(mask)] = (255, 255, 255)
    return shown.round().astype(np.uint8)


def _outline(mask: Mask) -> Mask:
    """Finds the pixels inside a mask that have a neighbour outside of it."""
    inside = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), borderValue=1)
    outline: Mask = mask & (inside == 0)
    return outline
