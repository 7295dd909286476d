"""Segmenters: which pixels of a picture are its foreground.

A segmenter is a function (image, box, seed) -> mask. To add one, write the function
and list it in `SEGMENTERS`; everything else goes by its name.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

import cv2
import numpy as np

from transforms.annotations import Box
from transforms.geometry import Mask, Pixels

GRABCUT_ITERATIONS = 5


class SegmentationError(ValueError):
    """A segmenter could not separate this picture."""


class SegmentFunction(Protocol):
    """Separates foreground from background."""

    def __call__(self, image: Pixels, box: Box, seed: int) -> Mask:
        """Segments one picture.

        Args:
          image: (H, W, 3) uint8, RGB.
          box: the object's box, clipped to the image, area > 0.
          seed: decides every random choice inside.

        Returns:
          (H, W) bool, True on the foreground.

        Raises:
          SegmentationError: this picture cannot be segmented.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A segmenter with what a manifest records about it.

    Attributes:
      name: what `--segmenter` calls it.
      version: raised by hand whenever its masks change.
      parameters: fixed parameters, for the record.
      segment: the function.
    """

    name: str
    version: int
    parameters: dict[str, int]
    segment: SegmentFunction


def segment_cv2(image: Pixels, box: Box, seed: int) -> Mask:
    """`cv2.grabCut` from a rectangle, as in the authors' script, but seeded.

    Rectangle (xmin, ymin, width, height), 5 iterations, GC_INIT_WITH_RECT; foreground is
    GC_FGD and GC_PR_FGD. OpenCV's generator belongs to the thread and carries over from
    call to call, so it is seeded before every picture: `cv2.setRNGSeed(seed)`.
    """
    height, width = image.shape[:2]
    labels = np.zeros((height, width), np.uint8)
    background_model, foreground_model = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(seed)
    try:
        cv2.grabCut(
            image,
            labels,
            (box.xmin, box.ymin, box.width, box.height),
            background_model,
            foreground_model,
            GRABCUT_ITERATIONS,
            cv2.GC_INIT_WITH_RECT,
        )
    except cv2.error as error:
        # Running out of memory says nothing of the picture.
        if error.code == cv2.Error.StsNoMem or "bad_alloc" in str(error):
            raise MemoryError(f"cv2.grabCut on {width} x {height} pixels") from error
        raise SegmentationError(f"cv2.grabCut: {error.err or error}") from error
    return (labels & 1).astype(np.bool_)


SEGMENTERS = {
    name: Segmenter(name, 1, {"iterations": GRABCUT_ITERATIONS}, segment_cv2)
    for name in ("grabcut", "cv2")
}
"""By name. `grabcut` is GrabCut by the fastest exact implementation at hand, which is
OpenCV's so far; `cv2` is always OpenCV's."""
