"""Turns the bytes of one source image into layers, or into the reasons for its rejection.

It also crops whole images, for IN-9L and for scenes. Of the protocol's filters, 1 to 3 are applied
here, the others in `transforms.filters`. Filter 1 rejects a picture that cannot be decoded. (A
missing picture is in no listing.)
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence

from transforms.annotations import Annotation, AnnotationError, Box, parse_annotation
from transforms.codec import (
    TooManyPixelsError,
    UndecodableError,
    check_narrow,
    decode_image,
    decode_source,
)
from transforms.filters import (
    FILTER_RESIZE,
    Reason,
    Rules,
    check_box,
    check_boxes,
    choose_boxes,
    mask_over_box,
)
from transforms.geometry import Mask, Pixels, ResizeCrop
from transforms.layers import Layer, NoTileError, make_layer, tile_background
from transforms.masks import GivenMask, MaskError, read_mask
from transforms.segmentation import Segmentation, SegmentationError, SegmentFunction


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """The result of cutting a source image, or one of its objects, or of cropping it.

    Attributes:
      layer: the layer; None if the image or object was rejected, or stays whole.
      image: the image that stays whole, (S, S, 3) uint8, RGB, after Resize + CenterCrop; None if it
        is cut apart, or was rejected.
      reason: reason for the rejection; None if the image or object was accepted.
      detail: exact cause of the rejection, for people; empty if the image or object was accepted.
      width, height: native size in pixels, None if the image was not decoded.
      box: the box that the segmenter gets, in native pixels, clipped to the image; None if the
        image was rejected before a box was chosen.
      mask_over_box: number of foreground pixels, at native size, divided by the box's area; None
        if nothing was segmented.
      fallback: `fallback` of the `Segmentation`, empty if nothing was segmented.
      number: position of the object among the image's boxes, counted from 1; 0 if the image is
        cut as a whole.
    """

    layer: Layer | None = None
    image: Pixels | None = None
    reason: Reason | None = None
    detail: str = ""
    width: int | None = None
    height: int | None = None
    box: Box | None = None
    mask_over_box: float | None = None
    fallback: str = ""
    number: int = 0

    @property
    def digest(self) -> str | None:
        """First 16 hexadecimal digits of the SHA-256 of the pixels of `image`; None without it."""
        return None if self.image is None else hashlib.sha256(self.image.tobytes()).hexdigest()[:16]


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

    def reject(self, reason: Reason, detail: str) -> Cut:
        """Creates the rejection of the image, or of one of its objects."""
        return Cut(reason=reason, detail=detail, width=self.width, height=self.height)


def read_boxes(
    annotation: bytes | None, mask: bytes | None, *, needs_mask: bool
) -> tuple[Annotation, GivenMask | None] | Cut:
    """Reads the annotation and the mask of an image, or returns its rejection (filter 2).

    The bytes of either are None if there is no file. Without an annotation, it is made from the
    mask.

    Args:
      needs_mask: whether an image without a mask is rejected.

    Raises:
      ImportError, MemoryError: for the reasons of `read_mask`.
    """
    if needs_mask and mask is None:
        return Cut(reason=Reason.MISSING_ANNOTATION, detail="no mask")
    if annotation is None and mask is None:
        return Cut(reason=Reason.MISSING_ANNOTATION, detail="no box")
    try:
        parsed = None if annotation is None else parse_annotation(annotation)
        given_mask = None if mask is None else read_mask(mask)
    except (AnnotationError, MaskError) as error:
        return Cut(reason=Reason.UNREADABLE_ANNOTATION, detail=str(error))
    if parsed is None:
        assert given_mask is not None
        height, width = given_mask.mask.shape
        parsed = Annotation(width=width, height=height, boxes=given_mask.boxes, wnid=None)
    return parsed, given_mask


def read_image(
    image: bytes, annotation: bytes | None, mask: bytes | None, *, needs_mask: bool
) -> AnnotatedImage | Cut:
    """Reads an image with its annotation and mask, which must all have the same size.

    Broken or hostile bytes lead to a rejection, for the first reason in protocol order, and never
    raise an error.

    Raises:
      ImportError: for the reason of `read_mask`.
      MemoryError: the picture or the mask does not fit into memory.
    """
    boxes = read_boxes(annotation, mask, needs_mask=needs_mask)
    if isinstance(boxes, Cut):
        return boxes
    parsed, given_mask = boxes
    pixels = _decode(image)
    if isinstance(pixels, Cut):
        return pixels
    decoded = AnnotatedImage(pixels, parsed.boxes, given_mask)
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


def _decode(image: bytes) -> Pixels | Cut:
    """Decodes a source image; returns its rejection if that is impossible (filter 1)."""
    try:
        return decode_source(image)
    except UndecodableError as error:
        return Cut(reason=Reason.UNDECODABLE, detail=str(error))
    except TooManyPixelsError as error:
        return Cut(reason=Reason.TOO_MANY_PIXELS, detail=str(error))


def check_annotation(
    annotation: bytes | None,
    rules: Rules = Rules(),  # noqa: B008
) -> Reason | None:
    """Finds the reason for which `cut_objects` would reject an image by its annotation alone.

    It is that to reject the image with all of its objects; None if some object may be accepted. It
    is not for images whose boxes come from a mask. It does not see a picture with too many pixels,
    nor one that is too narrow only for a large `resize`.
    """
    if annotation is None:
        return Reason.MISSING_ANNOTATION
    try:
        parsed = parse_annotation(annotation)
    except AnnotationError:
        return Reason.UNREADABLE_ANNOTATION
    if parsed.width is None or parsed.height is None:
        several = len(parsed.boxes) > 1 and rules.objects != "one"
        return None if several or len(parsed.boxes) == 1 else Reason.NOT_ONE_BOX
    if parsed.width < 1 or parsed.height < 1:
        return Reason.SIZE_MISMATCH
    if not rules.pad and check_narrow(parsed.width, parsed.height, FILTER_RESIZE):
        return Reason.TOO_MANY_PIXELS
    return check_boxes(parsed.boxes, width=parsed.width, height=parsed.height, rules=rules)


def cut_background(
    image: bytes,
    annotation: bytes | None,
    mask: bytes | None = None,
    *,
    resize: int,
    crop: int,
    interpolation: str,
    rules: Rules = Rules(),  # noqa: B008
    number: int = 0,
) -> Pixels:
    """Tiles the background of an object that `cut_objects` accepts, without segmenting it.

    Returns (crop, crop, 3) uint8, equal to the layer's `only_bg_t`. `number` is that of `Cut`.

    Raises:
      ValueError: the picture or its boxes cannot be read, or there is no such object, or no strip
        of background beside it. `cut_objects` accepts no such object, either.
      KeyError: the interpolation is unknown.
      ImportError, MemoryError: see `cut_objects`.
    """
    pixels = decode_image(image)
    height, width = pixels.shape[:2]
    annotated = read_boxes(annotation, mask, needs_mask=False)
    if isinstance(annotated, Cut):
        raise ValueError(annotated.detail)
    chosen = choose_boxes(annotated[0].boxes, width=width, height=height, objects=rules.objects)
    if isinstance(chosen, Reason) or number > len(chosen):
        raise ValueError(f"no object {number} among {len(annotated[0].boxes)} boxes")
    transform = ResizeCrop.for_size(
        native_width=width, native_height=height, resize=resize, crop=crop, pad=rules.pad
    )
    return transform.image(tile_background(pixels, chosen[max(number, 1) - 1]), interpolation)


def cut_along(
    image: bytes,
    box: Box,
    mask: Mask,
    *,
    size: tuple[int, int],
    resize: int,
    crop: int,
    interpolation: str,
    pad: bool = False,
) -> Layer:
    """Cuts a picture along a box and a mask that were found before, without filters.

    Args:
      box: the object's box in native pixels, clipped to the image.
      mask: (crop, crop) bool, True on the foreground, as in the layer.
      size: native (width, height) in pixels that the picture must have.
      resize, crop, interpolation, pad: see `make_layer`.

    Raises:
      ValueError: the picture cannot be decoded, has another size, or has no strip of background
        beside the box.
      KeyError: the interpolation is unknown.
      MemoryError: the picture does not fit into memory.
    """
    pixels = decode_source(image)
    height, width = pixels.shape[:2]
    if (width, height) != size:
        raise ValueError(f"{width} x {height} pixels, not {size[0]} x {size[1]}")
    return make_layer(
        pixels,
        box,
        mask,
        resize=resize,
        crop=crop,
        interpolation=interpolation,
        pad=pad,
        is_output_mask=True,
    )


def cut_objects(
    image: bytes,
    annotation: bytes | None,
    mask: bytes | None = None,
    *,
    segment: SegmentFunction | None,
    seed: int,
    resize: int,
    crop: int,
    interpolation: str,
    rules: Rules = Rules(),  # noqa: B008
    only: int = 0,
) -> Iterator[Cut]:
    """Yields the objects of an image, filtered, segmented and cut one after the other.

    By the paper's rules there is only one object. With several objects, the background of each
    object still shows the others.

    Args:
      annotation: the annotation file's bytes, None if there is no file.
      mask: the mask's bytes, as `read_mask` takes them; None without a mask. The mask's bounding
        boxes serve as the boxes if there is no annotation.
      segment: the segmenter; None to use the mask as the foreground.
      resize, crop, interpolation: see `make_layer`.
      only: the number of the object to cut, 0 for all objects.

    Yields:
      `Cut`s, each with the layer or with the first reason for a rejection in protocol order. If
      `rules.objects` is `each`, and the image is not rejected as a whole, there is a `Cut` for each
      box, or for the box `only`, if there are as many; otherwise there is a single `Cut`. Broken or
      hostile bytes never raise an error.

    Raises:
      ValueError, KeyError: `make_layer` refuses an argument.
      ImportError: for the reason of `read_mask`.
      MemoryError: a picture does not fit into memory.
      Exception: whatever `segment` raises besides SegmentationError.
    """
    decoded = read_image(image, annotation, mask, needs_mask=segment is None)
    if isinstance(decoded, Cut):
        yield decoded
        return
    width, height = decoded.width, decoded.height
    problem = "" if rules.pad else check_narrow(width, height, max(resize, FILTER_RESIZE))
    if problem:
        yield decoded.reject(Reason.TOO_MANY_PIXELS, problem)
        return
    chosen = choose_boxes(decoded.boxes, width=width, height=height, objects=rules.objects)
    if isinstance(chosen, Reason):
        yield decoded.reject(chosen, _list_boxes(decoded.boxes))
        return
    for position, box in enumerate(chosen):
        if only not in (0, position + 1):
            continue
        reason = check_box(box, width=width, height=height, rules=rules)
        if reason is None:
            try:
                cut = _cut(
                    decoded,
                    box,
                    segment(decoded.pixels, box, seed)
                    if segment is not None
                    else Segmentation(_given_mask(decoded, box, position, rules.objects)),
                    resize=resize,
                    crop=crop,
                    interpolation=interpolation,
                    rules=rules,
                )
            except SegmentationError as error:
                cut = decoded.reject(Reason.SEGMENTATION_FAILED, str(error))
        else:
            boxes = decoded.boxes if rules.objects != "each" else (decoded.boxes[position],)
            cut = decoded.reject(reason, _list_boxes(boxes))
        number = position + 1 if rules.objects == "each" else 0
        yield dataclasses.replace(cut, box=box, number=number)


def _list_boxes(boxes: Sequence[Box]) -> str:
    """Describes boxes for the detail of a rejection."""
    corners = " ".join(str(tuple(box)) for box in boxes[:4])
    return f"{len(boxes)} boxes: {corners}" if corners else "no box"


def _given_mask(decoded: AnnotatedImage, box: Box, position: int, objects: str) -> Mask:
    """Returns the part of the image's mask that belongs to a chosen box."""
    given_mask, boxes = decoded.given_mask, decoded.boxes
    assert given_mask is not None
    # With a single object, the whole mask belongs to the object, even outside of its box.
    if objects in ("one", "union") or len(boxes) == 1:
        return given_mask.mask
    if objects == "largest":
        position = [each.clip(decoded.width, decoded.height) for each in boxes].index(box)
    return given_mask.mask_of_box(position, boxes)


def _cut(
    decoded: AnnotatedImage,
    box: Box,
    segmentation: Segmentation,
    *,
    resize: int,
    crop: int,
    interpolation: str,
    rules: Rules,
) -> Cut:
    """Cuts a segmented object; rejects a too small foreground and a background without a tile."""
    foreground, fallback = segmentation
    share = mask_over_box(foreground, box)
    segmented = Cut(
        width=decoded.width, height=decoded.height, mask_over_box=share, fallback=fallback
    )
    if share < rules.min_foreground:
        return dataclasses.replace(
            segmented,
            reason=Reason.SEGMENTATION_FAILED,
            detail=f"foreground fills {share:.4f} of the box, less than {rules.min_foreground}",
        )
    try:
        layer = make_layer(
            decoded.pixels,
            box,
            foreground,
            resize=resize,
            crop=crop,
            interpolation=interpolation,
            pad=rules.pad,
        )
    except NoTileError as error:
        return dataclasses.replace(segmented, reason=Reason.NO_TILE, detail=str(error))
    return dataclasses.replace(segmented, layer=layer)


def crop_whole(
    image: bytes, *, resize: int, crop: int, interpolation: str, pad: bool = False
) -> Cut:
    """Decodes an image, resizes it, and crops it, with the arguments of `ResizeCrop.for_size`.

    Returns a `Cut` with `image`, or with the reason for its rejection. Broken or hostile bytes lead
    to a rejection; they never raise an error.

    Raises:
      ValueError: the crop is larger than the resize, or below 1.
      KeyError: the interpolation is none of `INTERPOLATIONS`.
      MemoryError: the picture does not fit into memory.
    """
    pixels = _decode(image)
    if isinstance(pixels, Cut):
        return pixels
    height, width = pixels.shape[:2]
    # Checked before anything of the resized size is allocated.
    problem = "" if pad else check_narrow(width, height, resize)
    if problem:
        return Cut(reason=Reason.TOO_MANY_PIXELS, detail=problem, width=width, height=height)
    transform = ResizeCrop.for_size(
        native_width=width, native_height=height, resize=resize, crop=crop, pad=pad
    )
    return Cut(image=transform.image(pixels, interpolation), width=width, height=height)
