"""Resizes and crops, or resizes and pads, images together with their boxes and masks.

The resize is torchvision's `Resize(size)` on a PIL image: the shorter side becomes `size`, and the
longer side is truncated to an integer. Nearest-neighbour resizing only selects rows and columns, so
composing variants after the resize gives the same pixels as composing at native size.
"""

import dataclasses
from typing import NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transforms.annotations import Box

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int32]
_Pixel = TypeVar("_Pixel", np.uint8, np.bool_)

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
      columns, rows: (crop,) int32, the native column (or row) that nearest interpolation copies to
        each output column (or row); non-decreasing. In the padding, the value is -1 to the left of
        (or above) the image, and the native width (or height) + 1 to the right (or below).
      all_columns, all_rows: the same for the whole resized image, without crop or padding.
    """

    width: int
    height: int
    left: int
    top: int
    crop: int
    columns: Indices
    rows: Indices
    all_columns: Indices
    all_rows: Indices

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
        left, top = round((width - crop) / 2), round((height - crop) / 2)
        all_columns = _nearest_sources(native_width, width)
        all_rows = _nearest_sources(native_height, height)
        return cls(
            width=width,
            height=height,
            left=left,
            top=top,
            crop=crop,
            columns=_window(all_columns, left, crop, native_width),
            rows=_window(all_rows, top, crop, native_height),
            all_columns=all_columns,
            all_rows=all_rows,
        )

    def image(self, image: Pixels, interpolation: str = "nearest") -> Pixels:
        """Transforms an image, (H, W, 3) uint8 of the native size, to (crop, crop, 3) uint8.

        Raises KeyError unless the interpolation is one of `INTERPOLATIONS`.
        """
        if interpolation == "nearest":
            return self._nearest(image)
        resized = Image.fromarray(image).resize(
            (self.width, self.height),
            INTERPOLATIONS[interpolation],
        )
        box = (self.left, self.top, self.left + self.crop, self.top + self.crop)
        # PIL fills the part outside of the image with black.
        return np.asarray(resized.crop(box))

    def mask(self, mask: Mask) -> Mask:
        """Transforms a (H, W) bool mask to (crop, crop) bool by nearest; padding is False."""
        return self._nearest(mask)

    def _nearest(self, native: NDArray[_Pixel]) -> NDArray[_Pixel]:
        """Transforms (H, W, ...) values to (crop, crop, ...), with zeros in the padding."""
        if min(self.width, self.height) >= self.crop:
            return native[self.rows[:, np.newaxis], self.columns]
        height, width = native.shape[:2]
        padded = np.zeros((self.crop, self.crop, *native.shape[2:]), native.dtype)
        rows, columns = (
            np.flatnonzero((sources >= 0) & (sources < length))
            for sources, length in ((self.rows, height), (self.columns, width))
        )
        inside = native[self.rows[rows][:, np.newaxis], self.columns[columns]]
        padded[rows[:, np.newaxis], columns] = inside
        return padded

    def box(self, box: Box) -> OutputBox:
        """Converts a box to output pixels.

        The converted box holds the pixels to which nearest interpolation copies a native pixel in
        [xmin, xmax] x [ymin, ymax]. It is empty (x0 == x1 or y0 == y1) if there are none.
        """
        x0, x1 = _span(self.columns, box.xmin, box.xmax)
        y0, y1 = _span(self.rows, box.ymin, box.ymax)
        return OutputBox(x0, y0, x1, y1)

    def box_pixels(self, box: Box) -> int:
        """Counts the output pixels inside the box."""
        x0, y0, x1, y1 = self.box(box)
        return (x1 - x0) * (y1 - y0)

    def box_pixels_before_crop(self, box: Box) -> int:
        """Counts the pixels inside the box after the resize alone."""
        x0, x1 = _span(self.all_columns, box.xmin, box.xmax)
        y0, y1 = _span(self.all_rows, box.ymin, box.ymax)
        return (x1 - x0) * (y1 - y0)


def _window(sources: Indices, start: int, crop: int, length: int) -> Indices:
    """Returns the `crop` sources from `start`; those of the padding lie outside of every box."""
    positions = np.arange(start, start + crop)
    # One more than the length, because the xmax or ymax of a clipped box may be the length itself.
    outside = np.where(positions < 0, -1, length + 1)
    inside = (positions >= 0) & (positions < len(sources))
    return np.where(inside, sources[positions.clip(0, len(sources) - 1)], outside).astype(np.int32)


def _span(sources: Indices, low: int, high: int) -> tuple[int, int]:
    """Returns the half-open range of the positions whose source lies in [low, high]."""
    start = int(np.searchsorted(sources, low, side="left"))
    stop = int(np.searchsorted(sources, high, side="right"))
    return start, max(start, stop)
