"""Reads masks that come with images: PNGs, COCO's run lengths and polygons, a recipe's runs."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transforms.annotations import Box
from transforms.codec import MAX_PIXELS, TooManyPixelsError, UndecodableError, open_picture
from transforms.geometry import Mask
from transforms.limits import MAX_ANNOTATION_BYTES, Unread, load_json

IGNORED = 1000
"""Number by which ImageNet-S marks pixels that are neither foreground nor background. Such pixels
count as background here."""
MAX_SIDE = 65_535
"""Longest side of a COCO mask, in pixels, which is the longest side of a JPEG."""
MAX_DRAWN = 20 * MAX_PIXELS
"""Largest number of pixels that are drawn for the objects of a picture. Drawing an object takes as
many pixels as the picture has, so a picture of 640 x 480, as in COCO, may have 3,200 objects."""
MAX_OUTLINE = 200
"""Largest total length of the outlines of a picture's objects, as a multiple of the picture's
height plus width. It is limited because pycocotools stores five points for each pixel of it."""
_MAX_DIGITS = 6
"""Largest number of digits of a number in compressed run lengths. Six digits of 5 bits exceed
`MAX_PIXELS`, and pycocotools may read another number from more digits."""
_MERGED_AT_ONCE = 16
# Pillow's modes of pictures with one channel.
_GREY = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")


class MaskError(ValueError):
    """The bytes are not a mask."""


RunLengths = NDArray[np.uint32]
"""Lengths of the runs of equal pixels of a mask, column by column. The first is background."""


@dataclasses.dataclass(frozen=True, eq=False)
class GivenMask:
    """A mask that comes with an image.

    Attributes:
      mask: (H, W) bool, True on the foreground.
      boxes: the bounding box of each object that has a pixel. A PNG does not separate objects, so
        it has at most one box.
      objects: the mask of each object in COCO's order, empty for a PNG. They are run lengths,
        because the memory for all decoded masks would be unbounded. Objects without a pixel are
        included, although they have no box.
    """

    mask: Mask
    boxes: tuple[Box, ...]
    objects: tuple[RunLengths, ...] = ()

    def mask_of_box(self, position: int, boxes: Sequence[Box]) -> Mask:
        """Returns the foreground, (H, W) bool, that belongs to the box at a position.

        It is the object that belongs to the box if there is one object, or one object that has a
        pixel, for each box; else the part of the mask inside the box. The boxes are the attribute
        `boxes` or an annotation's.
        """
        visible = tuple(runs for runs in self.objects if runs[1::2].any())
        objects = self.objects if len(self.objects) == len(boxes) else visible
        if len(boxes) == len(objects):
            return _mask_of(objects[position], len(self.mask))
        box = boxes[position]
        inside = np.zeros_like(self.mask)
        part = (slice(max(box.ymin, 0), box.ymax + 1), slice(max(box.xmin, 0), box.xmax + 1))
        inside[part] = self.mask[part]
        return inside


def read_mask(data: bytes) -> GivenMask:
    """Reads a mask, in the size that its bytes state.

    They are a PNG, or a JSON object with `height`, `width` and `segmentations`. The latter is a
    list with COCO's `segmentation` of each object: run lengths or polygons. In a PNG, each pixel
    has a number: the value of its channel or, with three channels, R + 256 G as in ImageNet-S.
    Every number except 0 and `IGNORED` is foreground.

    Raises:
      MaskError: the bytes are neither a PNG nor such an object, are broken, or are too large.
      ImportError: the mask is in COCO's format, but pycocotools is not installed.
      MemoryError: the mask does not fit into memory, which is not the mask's fault.
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
    """Returns the box around the True pixels of a (H, W) mask; None if no pixel is True.

    xmax and ymax are one more than the position of the last True pixel. So the box's width and
    height are the object's, and the strips that tile the background contain no part of the object.

    >>> bounding_box(np.array([[False, True, True], [False, False, False]]))
    Box(xmin=1, ymin=0, xmax=3, ymax=1)
    """
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(columns):
        return None
    return Box(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _read_coco(data: bytes) -> GivenMask:
    """Reads a mask from JSON; see `read_mask`."""
    # Parsed, it takes up to thirty times the memory of its text.
    if len(data) > MAX_ANNOTATION_BYTES:
        raise MaskError(Unread.from_size(len(data), MAX_ANNOTATION_BYTES).decode())
    try:
        content = load_json(data)
        height, width = content["height"], content["width"]
        if not all(type(side) is int and 1 <= side <= MAX_SIDE for side in (height, width)):
            raise MaskError(f"a mask of {width} x {height} pixels")
        if height * width > MAX_PIXELS:
            raise MaskError(f"a mask of {width} x {height} pixels, more than {MAX_PIXELS}")
        _check_work(content["segmentations"], height, width)
        objects = tuple(_runs(each, height, width) for each in content["segmentations"])
        mask = np.zeros((height, width), np.bool_)
        boxes = []
        for runs in objects:
            each = _mask_of(runs, height)
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


def _runs(segmentation: Any, height: int, width: int) -> RunLengths:
    """Returns the run lengths of a COCO segmentation."""
    if isinstance(segmentation, list):
        from pycocotools import mask as coco

        segmentation = _merged(coco.frPyObjects(segmentation, height, width))
    if list(segmentation["size"]) != [height, width]:
        raise MaskError(f"run lengths of size {segmentation['size']}, not {height}, {width}")
    counts = segmentation["counts"]
    if not isinstance(counts, list):
        counts = _decompressed(counts)
    if any(type(count) is not int or count < 0 for count in counts):
        raise MaskError("run lengths that are no whole numbers from 0 on")
    if sum(counts) != height * width:
        raise MaskError(f"run lengths of {sum(counts)} pixels for {height * width}")
    return np.asarray(counts, np.uint32)


def _merged(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Merges the parts of an object, a few at a time.

    pycocotools adds one part after the other to the whole, and copies the whole each time, so the
    time to merge all parts at once would grow with the square of their number.
    """
    from pycocotools import mask as coco

    while len(parts) > _MERGED_AT_ONCE:
        parts = [
            coco.merge(parts[first : first + _MERGED_AT_ONCE])
            for first in range(0, len(parts), _MERGED_AT_ONCE)
        ]
    whole = coco.merge(parts)
    return {**whole, "counts": whole["counts"].decode()}


def _mask_of(runs: RunLengths, height: int) -> Mask:
    """Decodes run lengths: (H, W) bool."""
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(-1, height).T


def _outline(polygon: Any, height: int, width: int) -> float:
    """Measures the total length of a polygon's edges, in pixels.

    The length of an edge is its width or its height, whichever is greater. Edges outside of the
    picture count, too, because pycocotools traces them. Raises MaskError if it could not trace
    them.
    """
    limit = 2 * max(height, width)
    if len(polygon) < 6 or len(polygon) % 2:
        raise MaskError(f"a polygon of {len(polygon)} numbers")
    if not all(math.isfinite(value) and abs(value) <= limit for value in polygon):
        raise MaskError("a polygon that leaves the picture far behind")
    corners = np.asarray(polygon, np.float64).reshape(-1, 2)
    return float(np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1).sum())


def _decompressed(text: str) -> list[int]:
    """Decodes COCO's compressed run lengths.

    Each number is written in digits of 5 bits, the lowest first. A sixth bit says whether another
    digit follows. From the fourth number on, the text holds the difference from the number two
    places before.
    """
    counts: list[int] = []
    value, shift = 0, 0
    for character in text:
        digit = ord(character) - 48
        if not 0 <= digit < 64:
            raise MaskError("run lengths with a sign that is none of theirs")
        if shift == 5 * _MAX_DIGITS:
            raise MaskError(f"run lengths with a number of more than {_MAX_DIGITS} digits")
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


def encode_runs(mask: Mask) -> bytes:
    """Encodes a (S, S) bool mask, True on the foreground, as run lengths, without loss.

    They are the lengths of the runs of equal pixels, row by row, as unsigned integers of 32 bits:
    first the lowest byte of each, then the others, because compression finds more in them apart.
    The first run is background, and may be empty.
    """
    flat = np.concatenate([[False], mask.ravel()])
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]), mask.size)
    lengths = np.diff(ends, prepend=0).astype("<u4")
    return lengths.view(np.uint8).reshape(-1, 4).T.tobytes()


def decode_runs(runs: bytes, side: int) -> Mask:
    """Decodes a (S, S) bool mask of side S from the bytes of `encode_runs`.

    Raises MaskError if they are not run lengths of S * S pixels.
    """
    number, rest = divmod(len(runs), 4)
    planes = np.frombuffer(runs, np.uint8, 4 * number).reshape(4, -1)
    lengths = planes.T.copy().view("<u4").ravel()
    if rest or lengths.sum() != side * side:
        raise MaskError(f"its runs have {lengths.sum()} pixels, of {side * side}")
    return np.repeat(np.arange(number) % 2 == 1, lengths).reshape(side, side)
