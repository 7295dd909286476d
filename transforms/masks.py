"""Reads masks that come with images: PNGs, and COCO's run lengths and polygons."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from transforms.annotations import Box
from transforms.codec import MAX_PIXELS, TooManyPixelsError, UndecodableError, open_picture
from transforms.geometry import Mask

IGNORED = 1000
"""ImageNet-S's number for pixels that are neither foreground nor background; they count as
background."""
MAX_SIDE = 65_535
"""Longest side of a COCO mask, in pixels: the limit of JPEG."""
MAX_DRAWN = 20 * MAX_PIXELS
"""Most pixels that are drawn for a picture's objects, each of which takes as many as the picture
has. For COCO's pictures of 640 x 480 this allows 3,200 objects."""
MAX_OUTLINE = 200
"""Most pixels in all outlines of a picture's objects, as a multiple of its height plus width;
pycocotools stores five points for each pixel."""
_GREY = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


class MaskError(ValueError):
    """The bytes are not a mask."""


class RunLengths(TypedDict):
    """A mask in the format of pycocotools: `size` is (height, width), `counts` is compressed."""

    size: list[int]
    counts: bytes


@dataclasses.dataclass(frozen=True, eq=False)
class GivenMask:
    """A mask that comes with an image.

    Attributes:
      mask: (H, W) bool, True on the foreground.
      boxes: the bounding box of each object; at most one for a PNG, which does not separate
        objects.
      objects: the separate objects in COCO's order, encoded, because the memory for all decoded
        masks would be unbounded. Objects without a pixel are included, but have no box.
    """

    mask: Mask
    boxes: tuple[Box, ...]
    objects: tuple[RunLengths, ...] = ()

    def mask_of_box(self, position: int, boxes: Sequence[Box]) -> Mask:
        """Returns the foreground that belongs to one of several boxes.

        Args:
          position: index of the box.
          boxes: all boxes of the image: `boxes`, or those of an annotation.

        Returns:
          (H, W) bool: the object that belongs to the box if there is one object for each box, else
          the part of the mask inside the box.
        """
        encoded = self.objects
        if len(boxes) != len(encoded):
            encoded = tuple(each for each in encoded if _box_of(each) is not None)
        if len(boxes) == len(encoded):
            return _mask_of(encoded[position])
        box = boxes[position]
        inside = np.zeros_like(self.mask)
        part = (slice(max(box.ymin, 0), box.ymax + 1), slice(max(box.xmin, 0), box.xmax + 1))
        inside[part] = self.mask[part]
        return inside


def read_mask(data: bytes) -> GivenMask:
    """Reads a mask.

    Args:
      data: a PNG, or a JSON object with `height`, `width` and `segmentations`, a list of COCO's
        `segmentation` of each object: run lengths or polygons. In a PNG of one channel, every
        number but 0 and `IGNORED` is foreground; with three channels the number is R + 256 G,
        as in ImageNet-S.

    Returns:
      The mask, of the size that the bytes state.

    Raises:
      MaskError: the bytes are neither, broken, or too large.
      ImportError: the mask is COCO's, and pycocotools is not installed.
      MemoryError: the mask does not fit into memory, which is not its fault.
    """
    if data.lstrip()[:1] == b"{":
        return _read_coco(data)
    try:
        image = open_picture(data)
        if image.format != "PNG":
            raise MaskError(f"a mask must be a PNG, not {image.format}")
        if image.mode not in (*_GREY, "RGB"):
            raise MaskError(
                f"a PNG of mode {image.mode}; a mask has one channel, or the three of ImageNet-S"
            )
        numbers = np.asarray(image)
    except (MaskError, MemoryError):
        raise
    except (UndecodableError, TooManyPixelsError) as error:
        raise MaskError(str(error)) from error
    except Exception as error:  # Pillow raises whatever a broken stream provokes.
        raise MaskError(f"a broken PNG: {error}") from error
    if numbers.ndim == 3:
        numbers = numbers[..., 0] + 256 * numbers[..., 1].astype(np.int32)
    mask = (numbers != 0) & (numbers != IGNORED)
    box = bounding_box(mask)
    return GivenMask(mask, () if box is None else (box,))


def bounding_box(mask: Mask) -> Box | None:
    """Returns the box around the True pixels of a (H, W) mask, None if there are none.

    xmax and ymax lie one behind the last True pixel, so width and height are those of the object,
    and the strips that tile the background contain no part of it.

    >>> bounding_box(np.array([[False, True, True], [False, False, False]]))
    Box(xmin=1, ymin=0, xmax=3, ymax=1)
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _read_coco(data: bytes) -> GivenMask:
    try:
        content = json.loads(data)
        height, width = content["height"], content["width"]
        if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in (height, width)):
            raise MaskError(f"a mask of {width} x {height} pixels")
        if height * width > MAX_PIXELS:
            raise MaskError(f"a mask of {width} x {height} pixels, more than {MAX_PIXELS}")
        _check_work(content["segmentations"], height, width)
        objects = tuple(_encoded(each, height, width) for each in content["segmentations"])
        mask = np.zeros((height, width), np.bool_)
        boxes = []
        for each in map(_mask_of, objects):
            mask |= each
            box = bounding_box(each)
            boxes += [] if box is None else [box]
    except (MaskError, MemoryError, ImportError):
        raise
    except Exception as error:  # Malformed content can raise anything, here and in pycocotools.
        raise MaskError(f"not COCO's run lengths or polygons: {error}") from error
    return GivenMask(mask, tuple(boxes), objects)


def _check_work(segmentations: list[Any], height: int, width: int) -> None:
    """Refuses segmentations that would take minutes, or too much memory, to draw."""
    if len(segmentations) * height * width > MAX_DRAWN:
        raise MaskError(f"{len(segmentations)} objects in {width} x {height} pixels")
    outline = sum(
        _outline(polygon, height, width)
        for segmentation in segmentations
        if isinstance(segmentation, list)
        for polygon in segmentation
    )
    if outline > MAX_OUTLINE * (height + width):
        raise MaskError(f"outlines of {outline:.0f} pixels in {width} x {height}")


def _encoded(segmentation: Any, height: int, width: int) -> RunLengths:
    """Encodes a COCO segmentation as compressed run lengths."""
    from pycocotools import mask as coco

    if isinstance(segmentation, list):
        encoded: RunLengths = coco.merge(coco.frPyObjects(segmentation, height, width))
    else:
        if list(segmentation["size"]) != [height, width]:
            raise MaskError(f"run lengths of size {segmentation['size']}, not {height}, {width}")
        counts = segmentation["counts"]
        if isinstance(counts, list):
            _check_counts(counts, height, width)
            encoded = coco.frPyObjects(segmentation, height, width)
        else:
            _check_counts(_decompressed(counts), height, width)
            encoded = {"size": [height, width], "counts": counts.encode("ascii")}
    return encoded


def _mask_of(encoded: RunLengths) -> Mask:
    """Decodes compressed run lengths: (H, W) bool."""
    from pycocotools import mask as coco

    decoded: NDArray[np.uint8] = coco.decode(encoded)
    return decoded.astype(np.bool_)


def _box_of(encoded: RunLengths) -> Box | None:
    return bounding_box(_mask_of(encoded))


def _outline(polygon: Any, height: int, width: int) -> float:
    """Measures a polygon's edges, in pixels; pycocotools traces them even outside the picture."""
    limit = 2 * max(height, width)
    if len(polygon) < 6 or len(polygon) % 2:
        raise MaskError(f"a polygon of {len(polygon)} numbers")
    if not all(math.isfinite(value) and abs(value) <= limit for value in polygon):
        raise MaskError("a polygon that leaves the picture far behind")
    corners = np.asarray(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _check_counts(counts: list[Any], height: int, width: int) -> None:
    """Checks that run lengths fill the picture, because pycocotools trusts them."""
    if any(type(count) is not int or count < 0 for count in counts):
        raise MaskError("run lengths that are no whole numbers from 0 on")
    if sum(counts) != height * width:
        raise MaskError(f"run lengths of {sum(counts)} pixels for {height * width}")


def _decompressed(text: str) -> list[int]:
    """Decodes COCO's compressed run lengths.

    Each number is written in 5-bit digits, lowest first, with a sixth bit that says whether
    another digit follows; from the fourth number on, it is the difference from the last but one.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise MaskError("run lengths with a sign that is none of theirs")
        value |= (digit & 31) << shift
        shift += 5
        if digit & 32:
            continue
        if digit & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise MaskError("run lengths that end within a number")
    return counts
