"""One source image, from bytes to a layer or to the reason why not."""

from __future__ import annotations

import dataclasses

from transforms.annotations import Annotation, AnnotationError, Box, parse_annotation
from transforms.codec import MAX_PIXELS, TooManyPixelsError, UndecodableError, decode_image
from transforms.filters import FILTER_RESIZE, MIN_FOREGROUND, Reason, check_boxes, mask_over_box
from transforms.geometry import Mask, Pixels, ResizeCrop
from transforms.layers import Layer, make_layer
from transforms.masks import GivenMask, MaskError, read_mask
from transforms.segmentation import Segmentation, SegmentationError, SegmentFunction
from transforms.tiling import NoTileError, tile_background


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """What became of a source image.

    Attributes:
      layer: None if the image was rejected.
      reason: None if it was accepted.
      detail: what exactly was wrong, for a reader; empty if accepted.
      width, height: native size in pixels, None if it could not be decoded.
      mask_over_box: foreground pixels over the box's area, None if not segmented.
      fallback: of the `Segmentation`, empty if not segmented.
    """

    layer: Layer | None = None
    reason: Reason | None = None
    detail: str = ""
    width: int | None = None
    height: int | None = None
    mask_over_box: float | None = None
    fallback: str = ""


def _annotated(
    annotation: bytes | None, mask: bytes | None, needs_mask: bool
) -> tuple[Annotation, Mask | None] | Cut:
    """The boxes, those of the mask where there is no annotation, and the mask."""
    if needs_mask and mask is None:
        return Cut(reason=Reason.MISSING_ANNOTATION, detail="no mask")
    if annotation is None and mask is None:
        return Cut(reason=Reason.MISSING_ANNOTATION, detail="no annotation file")
    try:
        parsed = None if annotation is None else parse_annotation(annotation)
        given = None if mask is None else read_mask(mask)
    except (AnnotationError, MaskError) as error:
        return Cut(reason=Reason.UNREADABLE_ANNOTATION, detail=str(error))
    if parsed is None:
        assert given is not None
        parsed = _annotation_of(given)
    return parsed, None if given is None else given.mask


def _annotation_of(given: GivenMask) -> Annotation:
    height, width = given.mask.shape
    return Annotation(width=width, height=height, boxes=given.boxes, wnid=None)


def _decode(
    image: bytes, annotation: bytes | None, mask: bytes | None, needs_mask: bool
) -> tuple[Pixels, Annotation, Mask | None] | Cut:
    """Filters 1 to 3: an image, an annotation, of the same size; a mask of that size, too."""
    annotated = _annotated(annotation, mask, needs_mask)
    if isinstance(annotated, Cut):
        return annotated
    parsed, given = annotated
    try:
        pixels = decode_image(image)
    except UndecodableError as error:
        return Cut(reason=Reason.UNDECODABLE, detail=str(error))
    except TooManyPixelsError as error:
        return Cut(reason=Reason.TOO_MANY_PIXELS, detail=str(error))
    height, width = pixels.shape[:2]
    if parsed.width not in (None, width) or parsed.height not in (None, height):
        return Cut(
            reason=Reason.SIZE_MISMATCH,
            detail=f"annotated {parsed.width} x {parsed.height}, image {width} x {height}",
            width=width,
            height=height,
        )
    if given is not None and given.shape != (height, width):
        return Cut(
            reason=Reason.SIZE_MISMATCH,
            detail=f"mask {given.shape[1]} x {given.shape[0]}, image {width} x {height}",
            width=width,
            height=height,
        )
    return pixels, parsed, given


def check_annotation(annotation: bytes | None) -> Reason | None:
    """What `cut_image` would reject for its annotation alone, taking the annotated size for
    the picture's.

    Args:
      annotation: the annotation file's bytes, None if there is no file.

    Returns:
      The reason to reject the image, or None.
    """
    if annotation is None:
        return Reason.MISSING_ANNOTATION
    try:
        parsed = parse_annotation(annotation)
    except AnnotationError:
        return Reason.UNREADABLE_ANNOTATION
    if parsed.width is None or parsed.height is None:
        return None if len(parsed.boxes) == 1 else Reason.NOT_ONE_BOX
    if parsed.width < 1 or parsed.height < 1:
        return Reason.SIZE_MISMATCH
    if _is_too_narrow(parsed.width, parsed.height, FILTER_RESIZE):
        return Reason.TOO_MANY_PIXELS
    return check_boxes(parsed.boxes, width=parsed.width, height=parsed.height)


def _is_too_narrow(width: int, height: int, resize: int) -> bool:
    """Whether a resized picture would exceed the pixel limit, though it does not as it is."""
    ratio = max(width, height) / min(width, height)
    return resize**2 * ratio > MAX_PIXELS


def cut_background(
    image: bytes,
    annotation: bytes | None,
    mask: bytes | None = None,
    *,
    resize: int,
    crop: int,
    interpolation: str,
) -> Pixels:
    """The tiled background of an image that `cut_image` accepts, without segmenting it.

    Arguments as `cut_image`.

    Returns:
      (crop, crop, 3) uint8, equal to the layer's `only_bg_t`.

    Raises:
      ValueError: the image is not one that `cut_image` accepts.
    """
    pixels = decode_image(image)
    height, width = pixels.shape[:2]
    parsed = _annotated(annotation, mask, needs_mask=False)
    if isinstance(parsed, Cut):
        raise ValueError(parsed.detail)
    (annotated,) = parsed[0].boxes
    transform = ResizeCrop.of(native_width=width, native_height=height, resize=resize, crop=crop)
    tiled = tile_background(pixels, annotated.clip(width, height))
    return transform.image(tiled, interpolation)


def cut_image(
    image: bytes,
    annotation: bytes | None,
    mask: bytes | None = None,
    *,
    segment: SegmentFunction | None,
    seed: int,
    resize: int,
    crop: int,
    interpolation: str,
) -> Cut:
    """Filters, segments and cuts one image.

    Args:
      image: the image file's bytes.
      annotation: the annotation file's bytes, None if there is no file.
      mask: the mask's bytes, as `read_mask` takes them, None if there is none. Without an
        annotation its bounding box serves as the box.
      segment: the segmenter; None if the mask is the foreground.
      seed: handed to it.
      resize, crop, interpolation: as `make_layer`.

    Returns:
      The layer, or the first reason in protocol order. Nothing in the bytes raises.
    """
    decoded = _decode(image, annotation, mask, needs_mask=segment is None)
    if isinstance(decoded, Cut):
        return decoded
    pixels, parsed, given = decoded
    height, width = pixels.shape[:2]
    if _is_too_narrow(width, height, max(resize, FILTER_RESIZE)):
        return Cut(
            reason=Reason.TOO_MANY_PIXELS,
            detail=f"{width} x {height} is too narrow: more than {MAX_PIXELS} pixels when resized",
            width=width,
            height=height,
        )
    reason = check_boxes(parsed.boxes, width=width, height=height)
    if reason is not None:
        shown = " ".join(str(tuple(box)) for box in parsed.boxes[:4])
        detail = f"{len(parsed.boxes)} boxes: {shown}" if shown else "no box"
        return Cut(reason=reason, detail=detail, width=width, height=height)
    box = parsed.boxes[0].clip(width, height)
    try:
        foreground, fallback = _segment(segment, pixels, box, seed, given)
    except SegmentationError as error:
        return Cut(reason=Reason.SEGMENTATION_FAILED, detail=str(error), width=width, height=height)
    share = mask_over_box(foreground, box)
    if share < MIN_FOREGROUND:
        return Cut(
            reason=Reason.SEGMENTATION_FAILED,
            detail=f"foreground fills {share:.4f} of the box, less than {MIN_FOREGROUND}",
            width=width,
            height=height,
            mask_over_box=share,
            fallback=fallback,
        )
    try:
        layer = make_layer(
            pixels, box, foreground, resize=resize, crop=crop, interpolation=interpolation
        )
    except NoTileError as error:
        return Cut(
            reason=Reason.NO_TILE,
            detail=str(error),
            width=width,
            height=height,
            mask_over_box=share,
            fallback=fallback,
        )
    return Cut(layer=layer, width=width, height=height, mask_over_box=share, fallback=fallback)


def _segment(
    segment: SegmentFunction | None, pixels: Pixels, box: Box, seed: int, given: Mask | None
) -> Segmentation:
    if segment is not None:
        return segment(pixels, box, seed)
    assert given is not None
    return Segmentation(given)
