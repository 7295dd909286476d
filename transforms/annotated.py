"""An image with its boxes and its mask: filters 1 to 3 of the protocol."""

from __future__ import annotations

import dataclasses

from transforms.annotations import Annotation, AnnotationError, Box, parse_annotation
from transforms.codec import TooManyPixelsError, UndecodableError, decode_source
from transforms.filters import Reason
from transforms.geometry import Pixels
from transforms.masks import GivenMask, MaskError, read_mask


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Why an image, or one of its objects, is left out.

    Attributes:
      reason: the first in protocol order.
      detail: what exactly was wrong, for a reader.
      width, height: native size in pixels, None if it could not be decoded.
    """

    reason: Reason
    detail: str
    width: int | None = None
    height: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image with its boxes.

    Attributes:
      pixels: (H, W, 3) uint8, RGB.
      boxes: as annotated, or of the mask.
      given: its mask, of the same size, if it has one.
    """

    pixels: Pixels
    boxes: tuple[Box, ...]
    given: GivenMask | None

    @property
    def width(self) -> int:
        """In native pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """In native pixels."""
        return int(self.pixels.shape[0])

    def reject(self, reason: Reason, detail: str) -> Rejection:
        """A reason to leave it out."""
        return Rejection(reason, detail, self.width, self.height)


def read_boxes(
    annotation: bytes | None, mask: bytes | None, *, needs_mask: bool
) -> tuple[Annotation, GivenMask | None] | Rejection:
    """Reads what comes with an image.

    Args:
      annotation: the annotation file's bytes, None if there is no file.
      mask: the mask's bytes, as `read_mask` takes them, None if there is none.
      needs_mask: whether the image is of no use without.

    Returns:
      The boxes, those of the mask where there is no annotation, and the mask; or why there are
      none (filter 2).
    """
    if needs_mask and mask is None:
        return Rejection(Reason.MISSING_ANNOTATION, "no mask")
    if annotation is None and mask is None:
        return Rejection(Reason.MISSING_ANNOTATION, "no annotation file")
    try:
        parsed = None if annotation is None else parse_annotation(annotation)
        given = None if mask is None else read_mask(mask)
    except (AnnotationError, MaskError) as error:
        return Rejection(Reason.UNREADABLE_ANNOTATION, str(error))
    if parsed is None:
        assert given is not None
        height, width = given.mask.shape
        parsed = Annotation(width=width, height=height, boxes=given.boxes, wnid=None)
    return parsed, given


def read_image(
    image: bytes, annotation: bytes | None, mask: bytes | None, *, needs_mask: bool
) -> AnnotatedImage | Rejection:
    """Reads an image with what comes with it; all must be of the same size.

    Args:
      image: the image file's bytes.
      annotation, mask, needs_mask: as `read_boxes`.

    Returns:
      The image, or the first reason against it. Nothing in the bytes raises.
    """
    boxes = read_boxes(annotation, mask, needs_mask=needs_mask)
    if isinstance(boxes, Rejection):
        return boxes
    parsed, given = boxes
    try:
        found = AnnotatedImage(decode_source(image), parsed.boxes, given)
    except UndecodableError as error:
        return Rejection(Reason.UNDECODABLE, str(error))
    except TooManyPixelsError as error:
        return Rejection(Reason.TOO_MANY_PIXELS, str(error))
    width, height = found.width, found.height
    if parsed.width not in (None, width) or parsed.height not in (None, height):
        return found.reject(
            Reason.SIZE_MISMATCH,
            f"annotated {parsed.width} x {parsed.height}, image {width} x {height}",
        )
    if given is not None and given.mask.shape != (height, width):
        return found.reject(
            Reason.SIZE_MISMATCH,
            f"mask {given.mask.shape[1]} x {given.mask.shape[0]}, image {width} x {height}",
        )
    return found
