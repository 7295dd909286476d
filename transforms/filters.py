"""The paper's filters, which decide which images are segmented.

Source: protocol of the authors' generation script, whose order of the filters is kept. Filters 5
and 6 judge the box after Resize(256, nearest) + CenterCrop(224), even if the dataset has another
size. The defaults of `Rules` are the paper's; other kinds of data may need other rules.
"""

import dataclasses
from collections.abc import Sequence
from enum import StrEnum

import numpy as np

from transforms.annotations import Box
from transforms.geometry import Mask, ResizeCrop
from transforms.hashing import text_bytes

FILTER_RESIZE = 256
FILTER_CROP = 224
MAX_BOX = 0.9
"""Largest share of the crop that the box may cover."""
MIN_VISIBLE = 0.5
"""Smallest share of the box's pixels, after the resize, that the crop must keep."""
MIN_FOREGROUND = 0.1
"""Smallest share of the box that the foreground must fill."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """Requirements on an image's boxes, and the treatment of several boxes.

    Attributes:
      objects: `one` (an image with several boxes is rejected), `largest` (the box with the largest
        area inside the image, the first of equal boxes), `union` (the smallest box around the parts
        of all boxes that are inside the image) or `each` (every box becomes an image of its own).
      max_box: largest share of the crop that the box may cover.
      min_visible: smallest share of the box's pixels that the crop must keep.
      min_foreground: smallest share of the box that the foreground must fill.
      pad: whether pictures are padded to a square instead of cropped.
    """

    objects: str = "one"
    max_box: float = MAX_BOX
    min_visible: float = MIN_VISIBLE
    min_foreground: float = MIN_FOREGROUND
    pad: bool = False


class Reason(StrEnum):
    """Reasons to reject an image, in the order of the protocol; the first that applies counts.

    The last two are of a dataset that is made again from a recipe, without some of its pictures.

    There is one exception: a picture that is so narrow that the resize would give it too many
    pixels is `TOO_MANY_PIXELS` only if its size is no `SIZE_MISMATCH`.
    """

    INVALID_KEY = "invalid_key"
    DUPLICATE_KEY = "duplicate_key"
    EXCLUDED = "excluded"
    MISSING_ANNOTATION = "missing_annotation"
    UNREADABLE_ANNOTATION = "unreadable_annotation"
    UNDECODABLE = "undecodable"
    TOO_MANY_PIXELS = "too_many_pixels"
    SIZE_MISMATCH = "size_mismatch"
    NOT_ONE_BOX = "not_one_box"
    INVALID_BOX = "invalid_box"
    BOX_TOO_LARGE = "box_too_large"
    BOX_OFF_CENTER = "box_off_center"
    SEGMENTATION_FAILED = "segmentation_failed"
    NO_TILE = "no_tile"
    NO_BACKGROUND = "no_background"
    MISSING_SOURCE = "missing_source"
    SOURCE_DIFFERS = "source_differs"


MAX_KEY_BYTES = 200


def is_valid_key(key: str) -> bool:
    """Returns whether a key can name samples in every format.

    A valid key is printable text of 1 to `MAX_KEY_BYTES` bytes of UTF-8 without a dot (at which
    WebDataset ends the key), a slash or a backslash.
    """
    return (
        key.isprintable()
        and not any(character in key for character in "./\\")
        and 1 <= len(text_bytes(key)) <= MAX_KEY_BYTES
    )


def choose_boxes(
    boxes: Sequence[Box], *, width: int, height: int, objects: str = "one"
) -> tuple[Box, ...] | Reason:
    """Decides which boxes of an image, in native pixels, become objects, by `objects` of `Rules`.

    Returns:
      The chosen boxes, clipped to the image, or the reason to reject the image: it has not one box
      (filter 4), or no box with an area. With `each`, all boxes are chosen, even empty ones;
      otherwise there is one box.
    """
    if not boxes or (objects == "one" and len(boxes) > 1):
        return Reason.NOT_ONE_BOX
    clipped = tuple(box.clip(width, height) for box in boxes)
    if objects == "each":
        return clipped
    if objects == "union":
        visible = [box for box in clipped if box.area]
        if visible:
            xmin, ymin = (min(box[side] for box in visible) for side in (0, 1))
            xmax, ymax = (max(box[side] for box in visible) for side in (2, 3))
            return (Box(xmin, ymin, xmax, ymax),)
    best = max(clipped, key=lambda box: box.area)
    return (best,) if best.area else Reason.INVALID_BOX


def check_box(box: Box, *, width: int, height: int, rules: Rules = Rules()) -> Reason | None:
    """Returns the reason to reject a box by filters 5 and 6, or because it is empty; else None.

    The box is clipped to the image. It and the image's width and height are in native pixels.
    """
    if box.area == 0:
        return Reason.INVALID_BOX
    transform = ResizeCrop.for_size(
        native_width=width,
        native_height=height,
        resize=FILTER_RESIZE,
        crop=FILTER_CROP,
        pad=rules.pad,
    )
    cropped = transform.box_pixels(box)
    if cropped / FILTER_CROP**2 > rules.max_box:
        return Reason.BOX_TOO_LARGE
    before = transform.box_pixels_before_crop(box)
    if before == 0 or cropped / before < rules.min_visible:
        return Reason.BOX_OFF_CENTER
    return None


def judge_boxes(
    boxes: Sequence[Box], width: int, height: int, rules: Rules = Rules()
) -> list[tuple[Box | None, Reason | None]]:
    """Applies filters 4 to 6 to an image's boxes, by `choose_boxes` and `check_box`.

    Returns (chosen box, reason to reject it or None) for each object, in order; or, for an image
    without an object, only (None, reason to reject it).
    """
    chosen = choose_boxes(boxes, width=width, height=height, objects=rules.objects)
    if isinstance(chosen, Reason):
        return [(None, chosen)]
    return [(box, check_box(box, width=width, height=height, rules=rules)) for box in chosen]


def mask_over_box(mask: Mask, box: Box) -> float:
    """Returns the number of foreground pixels of a (H, W) bool mask, divided by the box's area.

    The ratio can exceed 1, because a mask that came with the image may be larger than the box.
    Raises ZeroDivisionError for an empty box.
    """
    return np.count_nonzero(mask) / box.area
