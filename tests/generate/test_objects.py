"""Tests flags for data other than ImageNet: several boxes, other limits, padding."""

import io
import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from pipeline.jobs.messages import advise
from transforms.annotations import Annotation, Box, write_annotation
from transforms.codec import encode_png
from transforms.cutting import Cut, cut_background, cut_objects
from transforms.filters import Reason, Rules, check_box, choose_boxes, judge_boxes
from transforms.geometry import INTERPOLATIONS, ResizeCrop
from transforms.segmentation import SEGMENTERS

WIDTH, HEIGHT = 120, 90
LEFT, RIGHT = Box(5, 10, 45, 60), Box(60, 20, 110, 80)


def noise() -> bytes:
    return encode_png(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))


def boxes_text(*boxes: Box) -> bytes:
    return write_annotation(Annotation(WIDTH, HEIGHT, boxes, "n02084071")).encode()


def cuts(*boxes: Box, mask: bytes | None = None, rules: Rules, only: int = 0) -> list[Cut]:
    segmenter = SEGMENTERS["box" if mask is None else "masks"]
    return list(
        cut_objects(
            noise(),
            boxes_text(*boxes) if boxes else None,
            mask,
            segment=segmenter.segment,
            seed=0,
            resize=72,
            crop=64,
            interpolation="nearest",
            rules=rules,
            only=only,
        )
    )


corners = st.tuples(*[st.integers(-20, 140)] * 4)
some_boxes = st.lists(corners.map(lambda c: Box(*c)), max_size=5)


@given(some_boxes)
def test_which_box_is_chosen(boxes: list[Box]) -> None:
    chosen = {
        objects: choose_boxes(boxes, width=WIDTH, height=HEIGHT, objects=objects)
        for objects in ("one", "largest", "union", "each")
    }
    if not boxes:
        assert set(chosen.values()) == {Reason.NOT_ONE_BOX}
        return
    if len(boxes) > 1:
        assert chosen["one"] == Reason.NOT_ONE_BOX
    clipped = [box.clip(WIDTH, HEIGHT) for box in boxes]
    assert chosen["each"] == tuple(clipped)
    nonempty = [box for box in clipped if box.area]
    if not nonempty:
        assert chosen["largest"] == chosen["union"] == Reason.INVALID_BOX
        return
    (largest,), (union,) = chosen["largest"], chosen["union"]
    assert isinstance(largest, Box)
    assert isinstance(union, Box)
    assert largest.area == max(box.area for box in clipped)
    assert largest == next(box for box in clipped if box.area == largest.area)
    sides = list(zip(*nonempty, strict=True))
    assert union == (min(sides[0]), min(sides[1]), max(sides[2]), max(sides[3]))


@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([32, 57, 64]),
    corners,
    st.sampled_from(sorted(INTERPOLATIONS)),
)
@example(498, 496, 224, (0, 0, 10, 10), "nearest")  # The padding is one line.
@settings(max_examples=60)
def test_padding_shows_all_of_an_image_and_nothing_else(
    width: int, height: int, side: int, box: tuple[int, int, int, int], interpolation: str
) -> None:
    transform = ResizeCrop.for_size(
        native_width=width, native_height=height, resize=side, crop=side, pad=True
    )
    everything = np.ones((height, width), np.bool_)
    inside = transform.mask(everything)
    # The picture is a centred rectangle that spans the square in one direction.
    rows, columns = inside.any(axis=1), inside.any(axis=0)
    np.testing.assert_array_equal(inside, rows[:, None] & columns)
    assert max(rows.sum(), columns.sum()) == side
    assert (rows.sum(), columns.sum()) == (transform.height, transform.width)
    for line in (rows, columns):
        before, after = np.argmax(line), np.argmax(line[::-1])
        assert abs(int(before) - int(after)) <= 1
    white = transform.image(np.full((height, width, 3), 255, np.uint8), interpolation)
    assert (white == np.where(inside[..., None], 255, 0)).all()
    # A box is transformed like the mask of its pixels, and stays inside the picture.
    clipped = Box(*box).clip(width, height)
    transformed = transform.box(clipped)
    if clipped.area:
        mask = np.zeros((height, width), np.bool_)
        mask[clipped.ymin : clipped.ymax + 1, clipped.xmin : clipped.xmax + 1] = True
        expected = np.zeros((side, side), np.bool_)
        expected[transformed.y0 : transformed.y1, transformed.x0 : transformed.x1] = True
        np.testing.assert_array_equal(transform.mask(mask), expected)
        assert not (expected & ~inside).any()
        assert transform.box_pixels(clipped) == transform.box_pixels_before_crop(clipped)


def test_a_padded_layer_has_no_foreground_beside_the_picture() -> None:
    (padded,) = cuts(LEFT, rules=Rules(pad=True))
    assert padded.layer is not None
    margin = (64 - 48) // 2
    for part in (padded.layer.image, padded.layer.only_bg_t, padded.layer.mask):
        assert not part[:margin].any()
        assert not part[-margin:].any()
        assert part[margin:-margin].any()
    wide = ResizeCrop.for_size(
        native_width=WIDTH, native_height=HEIGHT, resize=64, crop=64, pad=True
    )
    assert padded.layer.box == wide.box(LEFT)


def test_limits_can_be_others() -> None:
    size = {"width": 256, "height": 256}
    large, corner = Box(0, 0, 255, 255), Box(0, 60, 30, 180)
    assert check_box(large, **size) == Reason.BOX_TOO_LARGE
    assert check_box(large, rules=Rules(max_box=1.0), **size) is None
    assert check_box(corner, **size) == Reason.BOX_OFF_CENTER
    assert check_box(corner, rules=Rules(min_visible=0.4), **size) is None
    assert check_box(corner, rules=Rules(pad=True), **size) is None
    each, middle = Rules(objects="each"), Box(90, 90, 160, 160)
    assert judge_boxes([corner, middle, large], 256, 256, each) == [
        (corner, Reason.BOX_OFF_CENTER),
        (middle, None),
        (large, Reason.BOX_TOO_LARGE),
    ]
    dot = np.zeros((HEIGHT, WIDTH), np.bool_)
    dot[40:44, 20:24] = True
    (few,) = cuts(LEFT, mask=encode_png_mask(dot), rules=Rules())
    assert few.reason == Reason.SEGMENTATION_FAILED
    (enough,) = cuts(LEFT, mask=encode_png_mask(dot), rules=Rules(min_foreground=0.005))
    assert enough.reason is None


def encode_png_mask(mask: NDArray[np.bool_]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return buffer.getvalue()


def test_each_object_is_cut_as_if_it_were_alone() -> None:
    empty = Box(200, 200, 300, 300)
    results = cuts(LEFT, empty, RIGHT, rules=Rules(objects="each"))
    assert [each.number for each in results] == [1, 2, 3]
    assert results[1].reason == Reason.INVALID_BOX
    for each, box in ((results[0], LEFT), (results[2], RIGHT)):
        (alone,) = cuts(box, rules=Rules())
        assert each.layer is not None
        assert alone.layer is not None
        np.testing.assert_array_equal(each.layer.mask, alone.layer.mask)
        np.testing.assert_array_equal(each.layer.only_bg_t, alone.layer.only_bg_t)
        rules = Rules(objects="each")
        (again,) = cuts(LEFT, empty, RIGHT, rules=rules, only=each.number)
        assert again.layer is not None
        np.testing.assert_array_equal(again.layer.image, each.layer.image)
        background = cut_background(
            noise(),
            boxes_text(LEFT, empty, RIGHT),
            resize=72,
            crop=64,
            interpolation="nearest",
            rules=rules,
            number=each.number,
        )
        np.testing.assert_array_equal(background, each.layer.only_bg_t)
    with pytest.raises(ValueError, match="no object 3"):
        cut_background(
            noise(),
            boxes_text(LEFT, RIGHT),
            resize=72,
            crop=64,
            interpolation="nearest",
            rules=Rules(objects="each"),
            number=3,
        )


def test_given_masks_of_several_objects() -> None:
    """Checks that COCO masks tell objects apart, and that boxes do so for PNG masks."""
    masks = np.zeros((2, HEIGHT, WIDTH), np.bool_)
    masks[0, 10:60, 5:45] = True
    masks[1, 20:80, 40:110] = True  # Reaches into the first object's box.
    encoded = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    segmentations = [{"size": e["size"], "counts": e["counts"].decode()} for e in encoded]
    both = {"height": HEIGHT, "width": WIDTH, "segmentations": segmentations}
    transform = ResizeCrop.for_size(native_width=WIDTH, native_height=HEIGHT, resize=72, crop=64)

    def seen(mask: bytes, objects: str, *boxes: Box) -> list[NDArray[np.bool_]]:
        results = cuts(*boxes, mask=mask, rules=Rules(objects=objects, max_box=1.0))
        return [each.layer.mask for each in results if each.layer]

    coco_masks = json.dumps(both).encode()
    for boxes in ((), (Box(5, 10, 45, 60), Box(40, 20, 110, 80))):
        for mask, own in zip(seen(coco_masks, "each", *boxes), masks, strict=True):
            np.testing.assert_array_equal(mask, transform.mask(own))
        (largest,) = seen(coco_masks, "largest", *boxes)
        np.testing.assert_array_equal(largest, transform.mask(masks[1]))
        (union,) = seen(coco_masks, "union", *boxes)
        np.testing.assert_array_equal(union, transform.mask(masks.any(axis=0)))
    png = encode_png_mask(masks.any(axis=0))
    for mask, box in zip(seen(png, "each", LEFT, RIGHT), (LEFT, RIGHT), strict=True):
        part = np.zeros((HEIGHT, WIDTH), np.bool_)
        part[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = True
        np.testing.assert_array_equal(mask, transform.mask(part & masks.any(axis=0)))


def test_a_picture_that_is_too_narrow_to_crop_can_be_padded() -> None:
    pixels = np.zeros((4, 60_000, 3), np.uint8)
    pixels[:, 30_000:] = 200
    box = Box(10_000, 0, 40_000, 3)
    xml = write_annotation(Annotation(60_000, 4, (box,), None)).encode()

    def of(rules: Rules) -> Cut:
        segment = SEGMENTERS["box"].segment
        fixed = {"segment": segment, "seed": 0, "resize": 256, "crop": 224}
        (cut,) = cut_objects(encode_png(pixels), xml, interpolation="nearest", rules=rules, **fixed)  # type: ignore[arg-type]
        return cut

    assert of(Rules()).reason == Reason.TOO_MANY_PIXELS
    layer = of(Rules(pad=True, min_visible=0.0)).layer
    assert layer is not None
    assert layer.image.any(axis=(1, 2)).sum() == 1


@given(st.dictionaries(st.sampled_from(list(Reason)), st.integers(1, 50), max_size=6))
def test_advice_comes_when_most_are_rejected(rejected: dict[str, int]) -> None:
    count = sum(rejected.values())
    assert advise(rejected, 2 * count) == []
    lines = advise(rejected, 2 * count - 1) if count else []
    for line in lines:
        assert line.startswith("over half are rejected. ")
        assert "--" in line or "in pixels" in line
    most = max(rejected, key=lambda reason: rejected[reason], default=None)
    if most == Reason.NOT_ONE_BOX and len(rejected) == 1:
        assert "--objects largest, union or each" in lines[0]
    # What boxes of another form, such as fractions or widths, come to.
    if most in (Reason.INVALID_BOX, Reason.BOX_OFF_CENTER):
        assert "boxes are xmin, ymin, xmax, ymax in pixels" in lines[0]
