"""Compares cutting with the shared independent rendition of the protocol, if it is present."""

import io
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from transforms.annotations import Box
from transforms.cutting import cut_objects
from transforms.layers import Layer
from transforms.segmentation import Segmentation, SegmentationError
from transforms.variants import PICTURES, VARIANTS


@pytest.fixture(scope="session")
def rendition(shared: Path) -> ModuleType:
    """The independent implementation, as a module."""
    path = shared / "independent" / "protocol.py"
    if not path.is_file():
        pytest.skip(f"no {path}")
    module = ModuleType("independent_protocol")
    # An import would leave bytecode beside the file.
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


@st.composite
def annotated(draw: st.DrawFn) -> tuple[int, int, list[tuple[int, int, int, int]], int, float]:
    """Draws width, height, boxes, and the seed and density of a mask in the first box."""
    width, height = draw(st.integers(60, 400)), draw(st.integers(60, 400))
    boxes = []
    for _ in range(draw(st.sampled_from((1, 1, 1, 1, 1, 0, 2)))):
        left, right = sorted(draw(st.tuples(*[st.integers(0, width)] * 2)))
        top, bottom = sorted(draw(st.tuples(*[st.integers(0, height)] * 2)))
        assume(left < right and top < bottom)
        boxes.append((left, top, right, bottom))
    density = draw(st.sampled_from((0.02, 0.09, 0.11, 0.7, -1.0)))
    return width, height, boxes, draw(st.integers(0, 99)), density


@settings(max_examples=100)
@given(drawn=annotated())
@example(drawn=(200, 100, [(70, 30, 130, 70)], 0, 0.5))  # The left and right strips are equal.
@example(drawn=(100, 200, [(30, 70, 70, 130)], 0, 0.5))  # The upper and lower strips are equal.
@example(drawn=(100, 100, [(20, 20, 80, 80)], 0, 0.5))  # All four strips are equal.
@example(drawn=(300, 200, [(0, 60, 124, 140)], 0, 0.5))  # Half of the box is visible.
def test_any_box_is_filtered_and_cut_the_same(
    rendition: ModuleType,
    tmp_path_factory: pytest.TempPathFactory,
    drawn: tuple[int, int, list[tuple[int, int, int, int]], int, float],
) -> None:
    """Gives both implementations the same mask, because any mask must be treated the same."""
    width, height, boxes, seed, density = drawn
    chance, stored = np.random.default_rng(seed), io.BytesIO()
    Image.fromarray(chance.integers(0, 256, (height, width, 3), np.uint8)).save(stored, "BMP")
    folder = tmp_path_factory.getbasetemp() / "drawn"
    folder.mkdir(exist_ok=True)
    xml = folder / "drawn.xml"
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    corners = (
        "".join(f"<{c}>{v}</{c}>" for c, v in zip(Box._fields, b, strict=True)) for b in boxes
    )
    objects = "".join(f"<object><bndbox>{each}</bndbox></object>" for each in corners)
    xml.write_text(f"<annotation>{size}{objects}</annotation>")
    mask = np.zeros((height, width), np.bool_)
    for left, top, right, bottom in boxes[:1]:
        inside = chance.random((bottom - top, right - left)) < density
        mask[top:bottom, left:right] = inside

    def segment(image: np.ndarray, box: Box, seed: int) -> Segmentation:
        if density < 0:
            raise SegmentationError("refused")
        return Segmentation(mask)

    def grabcut(image: np.ndarray, box: Box) -> np.ndarray:
        if density < 0:
            raise rendition.cv2.error("refused")
        return mask

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rendition, "grabcut", grabcut)
        expected = rendition.process(stored, xml)
    how: Any = {"seed": 0, "resize": 256, "crop": 224, "interpolation": "nearest"}
    (actual,) = cut_objects(stored.getvalue(), xml.read_bytes(), segment=segment, **how)
    assert (actual.reason or "accepted") == expected["status"]
    assert actual.mask_over_box == expected.get("mask_over_box")
    if actual.layer is not None:
        assert_layer(actual.layer, expected)


def assert_layer(layer: Layer, expected: dict[str, Any]) -> None:
    """Asserts that a layer composes to the rendition's pictures."""
    for variant in (*PICTURES, "fg_mask"):
        if not variant.startswith("mixed"):
            picture = VARIANTS[variant].compose(layer, None)
            theirs = expected["mask" if variant == "fg_mask" else variant]
            np.testing.assert_array_equal(picture, theirs, err_msg=variant)
