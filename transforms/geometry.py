"""Resizes and crops, or resizes and pads, images together with their boxes and masks.

The resize is torchvision's `Resize(size)` on a PIL image: the shorter side becomes `size`, and the
longer side is truncated to an integer. Nearest-neighbour resizing only selects rows and columns, so
composing variants after the resize gives the same pixels as composing at native size.
"""

import dataclasses
import functools
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transforms.annotations import Box

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int32]

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow's resampling filters by name."""


class OutputBox(NamedTuple):
    """A box in output pixels, half-open: rows y0 to y1 - 1, columns x0 to x1 - 1."""

    x0: int
    y0: int
    x1: int
    y1: int


@functools.lru_cache(1024)
def _nearest_sources(length: int, resized: int) -> Indices:
    """Returns the position of the native pixel that each pixel of a resized line copies.

    The positions come from PIL itself. It adds up a float step by step, so a closed formula would
    occasionally differ by a pixel.
    """
    ramp = Image.fromarray(np.arange(length, dtype=np.int32)[np.newaxis])
    return np.asarray(ramp.resize((resized, 1), Image.Resampling.NEAREST), np.int32).ravel()


@dataclasses.dataclass(frozen=True, eq=False)
class ResizeCrop:
    """The transform of images of one native size.

    The transform is Resize(resize) followed by CenterCrop(crop). With padding, it instead resizes
    the whole image so that it fits into the square, and fills the square with black.

    Attributes:
      width, height: size after the resize alone, in pixels.
      left, top: upper left corner of the crop in the resized image; 0 or negative with padding.
      crop: side of the square crop, in pixels.
      columns, rows: int32, the native column (or row) that nearest interpolation copies to each
        column (or row) of the resized image, without crop or padding; non-decreasing.
    """

    width: int
    height: int
    left: int
    top: int
    crop: int
    columns: Indices
    rows: Indices

    @classmethod
    def for_size(
        cls, *, native_width: int, native_height: int, resize: int, crop: int, pad: bool = False
    ) -> Self:
        """Builds the transform for a native size. Sizes are in pixels, >= 1.

        Args:
          resize: the shorter side after the resize.
          crop: side of the centre crop; at most `resize`.
          pad: whether to resize the longer side to `crop` instead, and to pad the shorter one with
            black.

        Raises:
          ValueError: `crop` is larger than `resize`, or below 1.
        """
        if not 1 <= crop <= resize:
            raise ValueError(f"crop must be between 1 and resize={resize}: got {crop}")
        if pad:
            scale = crop / max(native_width, native_height)
            # Even the narrowest picture must keep one line of pixels.
            width, height = (max(1, round(side * scale)) for side in (native_width, native_height))
        elif native_width <= native_height:
            width, height = resize, int(resize * native_height / native_width)
        else:
            width, height = int(resize * native_width / native_height), resize
        return cls(
            width=width,
            height=height,
            left=round((width - crop) / 2),
            top=round((height - crop) / 2),
            crop=crop,
            columns=_nearest_sources(native_width, width),
            rows=_nearest_sources(native_height, height),
        )

    def image(self, image: Pixels, interpolation: str = "nearest") -> Pixels:
        """Transforms an image, (H, W, ...) uint8 of the native size, to (crop, crop, ...) uint8.

        Raises KeyError unless the interpolation is one of `INTERPOLATIONS`.
        """
        x0, y0, x1, y1 = self.left, self.top, self.left + self.crop, self.top + self.crop
        if interpolation == "nearest" and min(x0, y0, self.width - x1, self.height - y1) >= 0:
            return image.take(self.rows[y0:y1], axis=0).take(self.columns[x0:x1], axis=1)
        resized = Image.fromarray(image).resize(
            (self.width, self.height), INTERPOLATIONS[interpolation]
        )
        # PIL fills the part outside of the image with black.
        return np.asarray(resized.crop((x0, y0, x1, y1)))

    def mask(self, mask: Mask) -> Mask:
        """Transforms a (H, W) bool mask to (crop, crop) bool by nearest; padding is False.

        Each True is the byte 1 in memory, also where the mask has Pillow's 255.
        """
        return np.asarray(self.image(mask.view(np.uint8)) != 0)

    def box(self, box: Box) -> OutputBox:
        """Converts a box to output pixels.

        The converted box holds the pixels to which nearest interpolation copies a native pixel in
        [xmin, xmax] x [ymin, ymax]. It is empty (x0 == x1 or y0 == y1) if there are none.
        """
        (x0, x1), (y0, y1) = (
            [min(max(0, position - start), self.crop) for position in span]
            for span, start in zip(self._spans(box), (self.left, self.top), strict=True)
        )
        return OutputBox(x0, y0, x1, y1)

    def box_pixels(self, box: Box) -> int:
        """Counts the output pixels inside the box."""
        x0, y0, x1, y1 = self.box(box)
        return (x1 - x0) * (y1 - y0)

    def box_pixels_before_crop(self, box: Box) -> int:
        """Counts the pixels inside the box after the resize alone."""
        (x0, x1), (y0, y1) = self._spans(box)
        return (x1 - x0) * (y1 - y0)

    def _spans(self, box: Box) -> tuple[tuple[int, int], tuple[int, int]]:
        """Returns the half-open ranges of the box's columns and rows after the resize alone."""
        return _span(self.columns, box.xmin, box.xmax), _span(self.rows, box.ymin, box.ymax)


def _span(sources: Indices, low: int, high: int) -> tuple[int, int]:
    """Returns the half-open range of the positions whose source lies in [low, high]."""
    start = int(np.searchsorted(sources, low, side="left"))
    return start, max(start, int(np.searchsorted(sources, high, side="right")))
