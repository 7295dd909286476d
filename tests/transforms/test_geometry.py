"""Tests Resize + CenterCrop against PIL, and the laws of the boxes that they move."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from transforms.annotations import Box
from transforms.geometry import INTERPOLATIONS, ResizeCrop

sides = st.integers(8, 900)


@st.composite
def boxed_sizes(draw: st.DrawFn) -> tuple[int, int, Box]:
    width, height = draw(sides), draw(sides)
    xmin, ymin = draw(st.integers(0, width - 2)), draw(st.integers(0, height - 2))
    box = Box(xmin, ymin, draw(st.integers(xmin + 1, width)), draw(st.integers(ymin + 1, height)))
    return width, height, box


def torchvision_size(width: int, height: int, resize: int) -> tuple[int, int]:
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


@given(boxed_sizes(), st.sampled_from([(256, 224), (256, 256), (64, 33)]))
@settings(max_examples=60)
def test_boxes_land_where_a_painted_rectangle_does(
    sized: tuple[int, int, Box], sizes: tuple[int, int]
) -> None:
    width, height, box = sized
    resize, crop = sizes
    transform = ResizeCrop.for_size(
        native_width=width, native_height=height, resize=resize, crop=crop
    )
    painted = Image.new("L", (width, height))
    ImageDraw.Draw(painted).rectangle(tuple(box), fill=1)
    resized = painted.resize(torchvision_size(width, height, resize), Image.Resampling.NEAREST)
    left, top = round((resized.width - crop) / 2), round((resized.height - crop) / 2)
    expected = np.asarray(resized.crop((left, top, left + crop, top + crop)))

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


def test_masks_go_by_nearest_like_the_image() -> None:
    mask = np.random.default_rng(1).random((90, 130)) < 0.5
    transform = ResizeCrop.for_size(native_width=130, native_height=90, resize=64, crop=60)
    image = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8)
    np.testing.assert_array_equal(transform.mask(mask), transform.image(image)[..., 0] == 1)


@pytest.mark.parametrize(("resize", "crop"), [(224, 256), (256, 0)])
def test_a_crop_must_fit(resize: int, crop: int) -> None:
    with pytest.raises(ValueError, match=f"got {crop}"):
        ResizeCrop.for_size(native_width=300, native_height=300, resize=resize, crop=crop)
