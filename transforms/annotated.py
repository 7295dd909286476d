"""Reads an image with its boxes and its mask, and applies filters 1 to 3 of the protocol.

Filter 1 rejects a picture that cannot be decoded. (A missing picture is in no listing.)
"""

from __future__ import annotations

import dataclasses

from transforms.annotations import Annotation, AnnotationError, Box, parse_annotation
from transforms.codec import TooManyPixelsError, UndecodableError, decode_source
from transforms.filters import Reason
from transforms.geometry import Pixels
from transforms.masks import GivenMask, MaskError, read_mask


@dataclasses.dataclass(frozen=True)
class Rejection:
    """The rejection of an image, or of one of its objects.

    Attributes:
      reason: the first reason, in protocol order, that applies.
      detail: the exact cause, for people.
      width, height: native size in pixels, None if the image was not decoded.
    """

    reason: Reason
    detail: str
    width: int | None = None
    height: int | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """An image with its boxes, and perhaps its mask.

    Attributes:
      pixels: (H, W, 3) uint8, RGB.
      boxes: the annotation's boxes, or the mask's boxes if there is no annotation.
      given_mask: the mask that came with the image, of the same size; None if no mask came.
    """

    pixels: Pixels
    boxes: tuple[Box, ...]
    given_mask: GivenMask | None

    @property
    def width(self) -> int:
        """Native width, in pixels."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """Native height, in pixels."""
        return int(self.pixels.shape[0])

    def reject(self, reason: Reason, detail: str) -> Rejection:
        """Creates a rejection with the image's size."""
        return Rejection(reason, detail, self.width, self.height)


def read_boxes(
    annotation: bytes | None, mask: bytes | None, *, needs_mask: bool
) -> tuple[Annotation, GivenMask | None] | Rejection:
    """Reads the annotation and the mask of an image.

    Args:
      annotation: the annotation file's bytes, None if there is no file.
      mask: the mask's bytes, as `read_mask` takes them; None without a mask.
      needs_mask: whether an image without a mask is rejected.

    Returns:
      (annotation, mask or None), or the rejection of the image (filter 2). If there is no
      annotation file, the annotation is made from the mask.

    Raises:
      ImportError, MemoryError: for the reasons of `read_mask`.
    """
    if needs_mask and mask is None:
        return Rejection(Reason.MISSING_ANNOTATION, "no mask")
    if annotation is None and mask is None:
        return Rejection(Reason.MISSING_ANNOTATION, "no annotation file")
    try:
        parsed = None if annotation is None else parse_annotation(annotation)
        given_mask = None if mask is None else read_mask(mask)
    except (AnnotationError, MaskError) as error:
        return Rejection(Reason.UNREADABLE_ANNOTATION, str(error))
    if parsed is None:
        assert given_mask is not None
        height, width = given_mask.mask.shape
        parsed = Annotation(width=width, height=height, boxes=given_mask.boxes, wnid=None)
    return parsed, given_mask


def read_image(
    image: bytes, annotation: bytes | None, mask: bytes | None, *, needs_mask: bool
) -> AnnotatedImage | Rejection:
    """Reads an image with its annotation and mask, which must all have the same size.

    Args:
      image: the image file's bytes.
      annotation, mask, needs_mask: see `read_boxes`.

    Returns:
      The image, or its rejection for the first reason in protocol order. Broken or hostile bytes
      lead to a rejection; they never raise an error.

    Raises:
      ImportError: for the reason of `read_mask`.
      MemoryError: the picture or the mask does not fit into memory.
    """
    boxes = read_boxes(annotation, mask, needs_mask=needs_mask)
    if isinstance(boxes, Rejection):
        return boxes
    parsed, given_mask = boxes
    try:
        decoded = AnnotatedImage(decode_source(image), parsed.boxes, given_mask)
    except UndecodableError as error:
        return Rejection(Reason.UNDECODABLE, str(error))
    except TooManyPixelsError as error:
        return Rejection(Reason.TOO_MANY_PIXELS, str(error))
    width, height = decoded.width, decoded.height
    if parsed.width not in (None, width) or parsed.height not in (None, height):
        return decoded.reject(
            Reason.SIZE_MISMATCH,
            f"annotated {parsed.width} x {parsed.height}, image {width} x {height}",
        )
    if given_mask is not None and given_mask.mask.shape != (height, width):
        mask_height, mask_width = given_mask.mask.shape
        return decoded.reject(
            Reason.SIZE_MISMATCH,
            f"mask {mask_width} x {mask_height}, image {width} x {height}",
        )
    return decoded
