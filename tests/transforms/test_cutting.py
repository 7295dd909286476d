"""Tests annotations, filters, resizing, tiling, and the result of cutting one image."""

import io

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from transforms.annotations import Box
from transforms.cutting import Cut, cut_along, cut_objects
from transforms.filters import Reason, Rules, check_box, is_valid_key, judge_boxes
from transforms.geometry import INTERPOLATIONS, Pixels, ResizeCrop
from transforms.layers import NoTileError, background_strip, tile_background
from transforms.segmentation import SEGMENTERS, Segmentation


def annotation(
    *boxes: tuple[int, int, int, int], size: tuple[int, int] = (320, 240), name: str = "n02084071"
) -> bytes:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin>"
        f"<xmax>{c}</xmax><ymax>{d}</ymax></bndbox></object>"
        for a, b, c, d in boxes
    )
    return (
        f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>"
        f"{objects}</annotation>"
    ).encode()


def picture(width: int = 320, height: int = 240) -> bytes:
    """Draws noise with a bright disc in the middle, as PNG."""
    pixels = np.random.default_rng(0).integers(0, 60, (height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    pixels[(x - width / 2) ** 2 + (y - height / 2) ** 2 < (height / 4) ** 2] = (230, 200, 40)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def cut(image: bytes, xml: bytes | None, segmenter: object = None, **rules: object) -> Cut:
    segment = segmenter or SEGMENTERS["cv2"].segment
    how = {"seed": 0, "resize": 256, "crop": 224, "interpolation": "nearest", **rules}
    (result,) = cut_objects(image, xml, segment=segment, **how)  # type: ignore[arg-type]
    return result


@pytest.mark.parametrize(
    ("boxes", "reason"),
    [
        ((), Reason.NOT_ONE_BOX),
        ((Box(9, 9, 90, 90), Box(1, 1, 5, 5)), Reason.NOT_ONE_BOX),
        ((Box(9, 9, 9, 90),), Reason.INVALID_BOX),
        ((Box(90, 90, 9, 9),), Reason.INVALID_BOX),
        ((Box(400, 10, 500, 90),), Reason.INVALID_BOX),
        ((Box(0, 0, 319, 239),), Reason.BOX_TOO_LARGE),
        ((Box(0, 0, 60, 239),), Reason.BOX_OFF_CENTER),
        ((Box(60, 60, 260, 180),), None),
        ((Box(-20, 60, 340, 180),), None),
    ],
)
def test_filters_find_the_first_reason(boxes: tuple[Box, ...], reason: Reason | None) -> None:
    ((_, found),) = judge_boxes(boxes, 320, 240)
    assert found == reason


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (Box(0, 16, 255, 15 + int(0.9 * 224)), None),
        (Box(0, 16, 255, 16 + int(0.9 * 224)), Reason.BOX_TOO_LARGE),
        # The crop keeps 16 of 32 columns, and 15 of 31.
        (Box(0, 60, 31, 180), None),
        (Box(0, 60, 30, 180), Reason.BOX_OFF_CENTER),
    ],
)
def test_limits_are_strict(box: Box, reason: Reason | None) -> None:
    """At 256 x 256, the resize is the identity, and the crop takes pixels 16 to 239."""
    assert check_box(box, width=256, height=256) == reason


def test_a_box_of_just_the_largest_share_is_kept() -> None:
    # A quarter of the crop is a whole number of pixels; nine tenths are not.
    box, rules = Box(60, 60, 171, 171), Rules(max_box=0.25)
    assert check_box(box, width=256, height=256, rules=rules) is None
    wider = Box(60, 60, 172, 171)
    assert check_box(wider, width=256, height=256, rules=rules) == Reason.BOX_TOO_LARGE


@pytest.mark.parametrize(
    ("image", "xml", "reason"),
    [
        (picture(), None, Reason.MISSING_ANNOTATION),
        (picture(), b"<", Reason.UNREADABLE_ANNOTATION),
        (b"", annotation((60, 60, 260, 180)), Reason.UNDECODABLE),
        (b"GIF89a nonsense", annotation((60, 60, 260, 180)), Reason.UNDECODABLE),
        (picture()[:4000], annotation((60, 60, 260, 180)), Reason.UNDECODABLE),
        (picture(), annotation((60, 60, 260, 180), size=(240, 320)), Reason.SIZE_MISMATCH),
        (picture(), annotation(), Reason.NOT_ONE_BOX),
        (picture(2, 9_000), annotation((0, 1, 1, 9), size=(2, 9_000)), Reason.TOO_MANY_PIXELS),
    ],
)
def test_content_is_rejected_with_its_reason(
    image: bytes, xml: bytes | None, reason: Reason
) -> None:
    result = cut(image, xml)
    assert result.reason == reason
    assert result.layer is None
    assert result.detail


def test_an_image_that_stays_whole_has_an_empty_mask() -> None:
    layer = cut(picture(), None, needs_box=False).layer
    assert layer is not None
    np.testing.assert_array_equal(layer.mask, np.zeros(layer.image.shape[:2], np.bool_))


@pytest.mark.parametrize("size", [(321, 240), (319, 240), (320, 241), (320, 239)])
def test_either_side_that_differs_is_another_size(size: tuple[int, int]) -> None:
    box, mask = (60, 60, 260, 180), np.zeros((224, 224), np.bool_)
    assert cut(picture(), annotation(box, size=size)).reason == Reason.SIZE_MISMATCH
    how = {"resize": 256, "crop": 224, "interpolation": "nearest"}
    with pytest.raises(ValueError, match=f"320 x 240 pixels, not {size[0]} x {size[1]}"):
        cut_along(picture(), Box(*box), mask, size=size, **how)
    assert cut_along(picture(), Box(*box), mask, size=(320, 240), **how).mask.shape == (224, 224)


def test_a_tenth_of_the_box_is_foreground_enough() -> None:
    def finds(pixels: int) -> object:
        def segment(image: Pixels, box: Box, seed: int) -> Segmentation:
            mask = np.zeros(image.shape[:2], np.bool_)
            mask[box.ymin : box.ymin + 12, box.xmin : box.xmax] = True  # These are 2400 pixels.
            mask[box.ymin, box.xmin : box.xmin + 2400 - pixels] = False
            return Segmentation(mask)

        return segment

    xml = annotation((60, 60, 260, 180))  # The box has 200 x 120 pixels.
    assert cut(picture(), xml, finds(2400)).reason is None
    assert cut(picture(), xml, finds(2399)).reason == Reason.SEGMENTATION_FAILED


def test_running_out_of_memory_is_not_a_rejection(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise cv2.error("OpenCV: std::bad_alloc")

    monkeypatch.setattr(cv2, "grabCut", exhausted)
    with pytest.raises(MemoryError):
        cut(picture(), annotation((60, 60, 260, 180)))


@st.composite
def boxed_sizes(draw: st.DrawFn, least: int, most: int) -> tuple[int, int, Box]:
    width, height = draw(st.integers(least, most)), draw(st.integers(least, most))
    xmin, ymin = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
    box = Box(xmin, ymin, draw(st.integers(xmin + 1, width)), draw(st.integers(ymin + 1, height)))
    return width, height, box


@given(boxed_sizes(4, 60))
def test_tiling_keeps_the_background_and_repeats_one_strip(case: tuple[int, int, Box]) -> None:
    width, height, box = case
    image = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), np.uint8)
    try:
        strip = background_strip(width, height, box)
    except NoTileError:
        assert box.xmin == box.ymin == 0
        assert (box.xmax, box.ymax) == (width, height)
        return
    beside = max(box.xmin, width - box.xmax) * height
    across = max(box.ymin, height - box.ymax) * width
    assert strip.area == max(beside, across)
    tiled = tile_background(image, box)
    inside = np.zeros((height, width), np.bool_)
    inside[box.ymin : box.ymax + 1, box.xmin : box.xmax + 1] = True
    np.testing.assert_array_equal(tiled[~inside], image[~inside])
    cut_out = image[strip.ymin : strip.ymax, strip.xmin : strip.xmax]
    repeats = (height // strip.height + 1, width // strip.width + 1, 1)
    canvas = np.tile(cut_out, repeats)[:height, :width]
    np.testing.assert_array_equal(tiled[inside], canvas[inside])


@pytest.mark.parametrize(
    ("box", "strip"),
    [
        (Box(4, 4, 6, 6), Box(0, 6, 10, 10)),  # All are equal: the strip below wins.
        (Box(5, 4, 6, 6), Box(0, 0, 5, 10)),
        (Box(4, 4, 5, 6), Box(5, 0, 10, 10)),
        (Box(4, 3, 6, 7), Box(6, 0, 10, 10)),
        (Box(4, 5, 6, 6), Box(0, 0, 10, 5)),
    ],
)
def test_ties_between_strips_go_as_in_the_script(box: Box, strip: Box) -> None:
    assert background_strip(10, 10, box) == strip


@pytest.mark.parametrize(
    ("key", "valid"),
    [
        ("ILSVRC2012_val_00000355", True),
        ("straße (2)", True),
        ("a.b", False),
        ("a/b", False),
        ("a\\b", False),
        ("a\nb", False),
        ("", False),
        ("\udcff", False),
        ("x" * 200, True),
        ("x" * 201, False),
        ("ß" * 101, False),
    ],
)
def test_keys_must_suit_every_format(key: str, valid: bool) -> None:
    assert is_valid_key(key) is valid


def torchvision_size(width: int, height: int, resize: int) -> tuple[int, int]:
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


@given(boxed_sizes(8, 900), st.sampled_from([(256, 224), (256, 256), (64, 33)]))
@settings(max_examples=60)
def test_boxes_land_as_painted(sized: tuple[int, int, Box], sizes: tuple[int, int]) -> None:
    (width, height, box), (resize, crop) = sized, sizes
    transform = ResizeCrop.for_size(
        native_width=width, native_height=height, resize=resize, crop=crop
    )
    painted = Image.new("L", (width, height))
    ImageDraw.Draw(painted).rectangle(tuple(box), fill=1)
    resized = painted.resize(torchvision_size(width, height, resize), Image.Resampling.NEAREST)
    left, top = round((resized.width - crop) / 2), round((resized.height - crop) / 2)
    expected = np.asarray(resized.crop((left, top, left + crop, top + crop)))
    mask = transform.mask((np.asarray(painted) * 255).view(np.bool_))
    assert mask.tobytes() == expected.tobytes()  # Digests of layers cover bytes.
    x0, y0, x1, y1 = transform.box(box)
    assert 0 <= x0 <= x1 <= crop
    assert 0 <= y0 <= y1 <= crop
    actual = np.zeros_like(expected)
    actual[y0:y1, x0:x1] = 1
    np.testing.assert_array_equal(actual, expected)
    assert transform.box_pixels(box) == expected.sum()
    assert transform.box_pixels_before_crop(box) == np.asarray(resized).sum()


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_images_are_resized_by_pil_and_cropped_in_the_centre(interpolation: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (317, 480, 3), np.uint8)
    transform = ResizeCrop.for_size(native_width=480, native_height=317, resize=256, crop=224)
    resized = Image.fromarray(image).resize((387, 256), INTERPOLATIONS[interpolation])
    expected = np.asarray(resized)[16:240, round((387 - 224) / 2) :][:, :224]
    np.testing.assert_array_equal(transform.image(image, interpolation), expected)


@pytest.mark.parametrize(("resize", "crop"), [(224, 256), (256, 0)])
def test_a_crop_must_fit(resize: int, crop: int) -> None:
    with pytest.raises(ValueError, match=f"got {crop}"):
        ResizeCrop.for_size(native_width=300, native_height=300, resize=resize, crop=crop)
