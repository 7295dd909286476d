"""Turns the bytes of one source image into layers, or into the reasons for its rejection.

It also crops images that need no box, for IN-9L and for scenes. Of the protocol's filters, 1 to 3
are applied here, the others in `transforms.filters`. Filter 1 rejects a picture that cannot be
decoded. (A missing picture is in no listing.)
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

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
    choose_boxes,
    judge_boxes,
    mask_over_box,
)
from transforms.geometry import Mask, OutputBox, Pixels, ResizeCrop
from transforms.layers import Layer, NoTileError, make_layer, tile_background
from transforms.masks import GivenMask, MaskError, read_mask
from transforms.segmentation import Segmentation, SegmentationError, SegmentFunction


@dataclasses.dataclass(frozen=True, eq=False)
class Cut:
    """The result of cutting a source image, or one of its objects, or of cropping it.

    Attributes:
      layer: the layer; None if the image or object was rejected.
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
    reason: Reason | None = None
    detail: str = ""
    width: int | None = None
    height: int | None = None
    box: Box | None = None
    mask_over_box: float | None = None
    fallback: str = ""
    number: int = 0


class RejectedError(ValueError):
    """An image is rejected as a whole, as `cut` says."""

    def __init__(self, cut: Cut) -> None:
        super().__init__(cut.detail)
        self.cut = cut


def read_boxes(
    annotation: bytes | None, mask: bytes | None, *, needs_mask: bool, needs_box: bool = True
) -> tuple[Annotation, GivenMask | None]:
    """Reads the annotation and the mask of an image (filter 2).

    The bytes of either are None if there is no file. Without an annotation, it is made from the
    mask.

    Args:
      needs_mask, needs_box: whether an image without a mask, or without both, is rejected.

    Raises:
      RejectedError: something that is needed is missing, or cannot be read.
      ImportError, MemoryError: for the reasons of `read_mask`.
    """
    if mask is None and (needs_mask or (needs_box and annotation is None)):
        detail = "no mask" if needs_mask else "no box"
        raise RejectedError(Cut(reason=Reason.MISSING_ANNOTATION, detail=detail))
    try:
        parsed = None if annotation is None else parse_annotation(annotation)
        given_mask = None if mask is None else read_mask(mask)
    except (AnnotationError, MaskError) as error:
        fault = Cut(reason=Reason.UNREADABLE_ANNOTATION, detail=str(error))
        raise RejectedError(fault) from error
    if parsed is None:
        height, width = (None, None) if given_mask is None else given_mask.mask.shape
        boxes = () if given_mask is None else given_mask.boxes
        parsed = Annotation(width=width, height=height, boxes=boxes, wnid=None)
    return parsed, given_mask


def read_image(
    image: bytes,
    annotation: bytes | None,
    mask: bytes | None,
    *,
    needs_mask: bool,
    needs_box: bool = True,
) -> tuple[Pixels, tuple[Box, ...], GivenMask | None]:
    """Reads an image with its annotation and mask, which must all have the same size.

    Returns:
      (its pixels, (H, W, 3) uint8, RGB; the annotation's boxes, or the mask's if there is no
        annotation; the mask that came with the image, of the same size, or None).

    Raises:
      RejectedError: for the first reason in protocol order; bytes that are broken or hostile raise
        no other error.
      ImportError: for the reason of `read_mask`.
      MemoryError: the picture or the mask does not fit into memory.
    """
    parsed, given_mask = read_boxes(annotation, mask, needs_mask=needs_mask, needs_box=needs_box)
    try:
        pixels = decode_source(image)
    except UndecodableError as error:  # Filter 1.
        raise RejectedError(Cut(reason=Reason.UNDECODABLE, detail=str(error))) from error
    except TooManyPixelsError as error:
        raise RejectedError(Cut(reason=Reason.TOO_MANY_PIXELS, detail=str(error))) from error
    height, width = pixels.shape[:2]
    sizes = {"annotated": (parsed.width, parsed.height)}
    if given_mask is not None:
        sizes["mask"] = given_mask.mask.shape[::-1]
    for name, size in sizes.items():
        if size[0] not in (None, width) or size[1] not in (None, height):
            detail = f"{name} {size[0]} x {size[1]}, image {width} x {height}"
            fault = Cut(reason=Reason.SIZE_MISMATCH, detail=detail, width=width, height=height)
            raise RejectedError(fault)
    return pixels, parsed.boxes, given_mask


def check_annotation(
    annotation: bytes | None,
    rules: Rules = Rules(),  # noqa: B008
) -> Reason | None:
    """Finds the reason for which `cut_objects` would reject an image by its annotation alone.

    It is that to reject the image with all of its objects; None if some object may be accepted. It
    is not for images whose boxes come from a mask. It does not see a picture with too many pixels,
    nor one that is too narrow only for a large `resize`.
    """
    try:
        parsed, _ = read_boxes(annotation, None, needs_mask=False)
    except RejectedError as error:
        return error.cut.reason
    width, height = parsed.width, parsed.height
    if width is None or height is None:
        several = len(parsed.boxes) > 1 and rules.objects != "one"
        return None if several or len(parsed.boxes) == 1 else Reason.NOT_ONE_BOX
    if width < 1 or height < 1:
        return Reason.SIZE_MISMATCH
    if not rules.pad and check_narrow(width, height, FILTER_RESIZE):
        return Reason.TOO_MANY_PIXELS
    reasons = [reason for _, reason in judge_boxes(parsed.boxes, width, height, rules)]
    return None if None in reasons else reasons[0]


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
    boxes = read_boxes(annotation, mask, needs_mask=False)[0].boxes
    chosen = choose_boxes(boxes, width=width, height=height, objects=rules.objects)
    if isinstance(chosen, Reason) or number > len(chosen):
        raise ValueError(f"no object {number} among {len(boxes)} boxes")
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
    needs_box: bool = True,
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
      needs_box: whether the image is cut apart at all. If not, it stays whole: it is resized and
        cropped.

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
    try:
        pixels, boxes, given_mask = read_image(
            *(image, annotation, mask),
            needs_mask=needs_box and segment is None,
            needs_box=needs_box,
        )
    except RejectedError as error:
        yield error.cut
        return
    height, width = pixels.shape[:2]
    of_size = functools.partial(Cut, width=width, height=height)
    # Checked before anything of a resized size is allocated.
    largest = max(resize, FILTER_RESIZE) if needs_box else resize
    problem = "" if rules.pad else check_narrow(width, height, largest)
    if problem:
        yield of_size(reason=Reason.TOO_MANY_PIXELS, detail=problem)
        return
    if not needs_box:
        transform = ResizeCrop.for_size(
            native_width=width, native_height=height, resize=resize, crop=crop, pad=rules.pad
        )
        whole = transform.image(pixels, interpolation)
        no_mask = np.zeros(whole.shape[:2], np.bool_)
        yield of_size(layer=Layer(whole, whole, no_mask, OutputBox(0, 0, 0, 0), is_whole=True))
        return
    for position, (box, reason) in enumerate(judge_boxes(boxes, width, height, rules)):
        if only not in (0, position + 1):
            continue
        number = position + 1 if box is not None and rules.objects == "each" else 0
        if box is None or reason is not None:
            judged = (boxes[position],) if number else boxes
            cut = of_size(reason=reason, detail=_list_boxes(judged))
        else:
            try:
                cut = _cut(
                    of_size,
                    pixels,
                    box,
                    segment(pixels, box, seed)
                    if segment is not None
                    else Segmentation(_part_of(given_mask, boxes, box, position, rules.objects)),
                    resize=resize,
                    crop=crop,
                    interpolation=interpolation,
                    rules=rules,
                )
            except SegmentationError as error:
                cut = of_size(reason=Reason.SEGMENTATION_FAILED, detail=str(error))
        yield dataclasses.replace(cut, box=box, number=number)


def _list_boxes(boxes: Sequence[Box]) -> str:
    """Describes boxes for the detail of a rejection."""
    corners = " ".join(str(tuple(box)) for box in boxes[:4])
    return f"{len(boxes)} boxes: {corners}" if corners else "no box"


def _part_of(
    given_mask: GivenMask | None, boxes: Sequence[Box], box: Box, position: int, objects: str
) -> Mask:
    """Returns the part of the image's mask that belongs to a chosen box."""
    assert given_mask is not None
    # With a single object, the whole mask belongs to the object, even outside of its box.
    if objects in ("one", "union") or len(boxes) == 1:
        return given_mask.mask
    if objects == "largest":
        height, width = given_mask.mask.shape
        position = [each.clip(width, height) for each in boxes].index(box)
    return given_mask.mask_of_box(position, boxes)


def _cut(
    of_size: Callable[..., Cut],
    pixels: Pixels,
    box: Box,
    segmentation: Segmentation,
    *,
    resize: int,
    crop: int,
    interpolation: str,
    rules: Rules,
) -> Cut:
    """Cuts a segmented object; rejects a too small foreground and a background without a tile.

    `of_size` makes a `Cut` with the image's size.
    """
    foreground, fallback = segmentation
    share = mask_over_box(foreground, box)
    segmented = of_size(mask_over_box=share, fallback=fallback)
    if share < rules.min_foreground:
        return dataclasses.replace(
            segmented,
            reason=Reason.SEGMENTATION_FAILED,
            detail=f"foreground fills {share:.4f} of the box, less than {rules.min_foreground}",
        )
    try:
        layer = make_layer(
            pixels,
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
