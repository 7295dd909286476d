"""The paper's filters: which images can be segmented and cropped, in the script's order.

Source: protocol of the authors' generation script. Filters 5 and 6 look at the box
after Resize(256, nearest) + CenterCrop(224), whatever size the dataset has.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from transforms.annotations import Box
from transforms.geometry import Mask, ResizeCrop

FILTER_RESIZE = 256
FILTER_CROP = 224
MAX_BOX = 0.9
"""Largest share of the crop that the box may cover."""
MIN_VISIBLE = 0.5
"""Smallest share of the box's pixels that the crop must keep."""
MIN_FOREGROUND = 0.1
"""Smallest share of the box that the foreground must fill."""


class Reason(StrEnum):
    """Why an image is not part of a dataset. The first in protocol order wins."""

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


MAX_KEY_BYTES = 200


def is_valid_key(key: str) -> bool:
    """Whether a key can name samples in every format.

    Printable text of 1 to `MAX_KEY_BYTES` bytes of UTF-8 without a dot (WebDataset ends
    keys there), a slash or a backslash.
    """
    return (
        key.isprintable()
        and not any(sign in key for sign in "./\\")
        and 1 <= len(key.encode("utf-8", "replace")) <= MAX_KEY_BYTES
    )


def check_boxes(boxes: Sequence[Box], *, width: int, height: int) -> Reason | None:
    """Applies filters 4 to 6 to an image's boxes.

    Args:
      boxes: the annotated boxes, in native pixels.
      width, height: native size of the image, in pixels.

    Returns:
      The reason to reject the image, or None.
    """
    if len(boxes) != 1:
        return Reason.NOT_ONE_BOX
    box = boxes[0].clip(width, height)
    if box.area == 0:
        return Reason.INVALID_BOX
    transform = ResizeCrop.of(
        native_width=width, native_height=height, resize=FILTER_RESIZE, crop=FILTER_CROP
    )
    cropped = transform.box_pixels(box)
    if cropped / FILTER_CROP**2 > MAX_BOX:
        return Reason.BOX_TOO_LARGE
    before = transform.box_pixels_before_crop(box)
    if before == 0 or cropped / before < MIN_VISIBLE:
        return Reason.BOX_OFF_CENTER
    return None


def mask_over_box(mask: Mask, box: Box) -> float:
    """Foreground pixels of a (H, W) bool mask over the box's width times height."""
    return float(mask.sum()) / box.area
