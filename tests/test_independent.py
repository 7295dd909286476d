"""Compares the pipeline with the shared independent rendition of the protocol, if it is present.

Rejections with their reasons, and every pixel of every variant, must be the same. The rendition has
no predictions, so tables are not compared.
"""

import io
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from runs import dataset_in, keys, pictures_of, run_in9, shrink

from pipeline.dataset.folder import Dataset
from transforms.annotations import Box, parse_annotation
from transforms.codec import decode_image
from transforms.cutting import cut_objects
from transforms.layers import Layer, NoTileError, tile_background
from transforms.segmentation import Segmentation, SegmentationError
from transforms.taxonomy import imagenet9
from transforms.variants import PICTURES, VARIANTS

STATUSES = {
    *("accepted", "missing_annotation", "undecodable", "size_mismatch", "not_one_box"),
    *("box_too_large", "box_off_center", "segmentation_failed"),
}
"""All statuses of the rendition except `no_tile`: a box that leaves no strip fills the crop, so it
is rejected as too large first."""

Both = tuple[Dataset, dict[str, dict[str, Any]]]
"""A dataset, and the rendition's results for the same input, by key."""

_OF_ONE = tuple(name for name in (*PICTURES, "fg_mask") if not name.startswith("mixed"))


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


def pixels_of(picture: np.ndarray, variant: str) -> np.ndarray:
    """Returns a decoded picture; of a mask, one channel."""
    return picture[..., 0] if variant == "fg_mask" else picture


def theirs(found: dict[str, Any], variant: str) -> np.ndarray:
    """Returns the rendition's picture of one of our variants."""
    picture: np.ndarray = found["mask" if variant == "fg_mask" else variant]
    return picture


def annotation_of(image: Path) -> Path:
    """Returns the path of a picture's annotation in an input folder."""
    return image.parents[2] / "Annotations" / "val" / f"{image.stem}.xml"


def unchanged(picture: Image.Image) -> Image.Image:
    return picture


def boxed(*corners: int) -> str:
    """Returns an object of an annotation."""
    inside = "".join(f"<{c}>{v}</{c}>" for c, v in zip(Box._fields, corners, strict=True))
    return f"<object><bndbox>{inside}</bndbox></object>"


def annotate(image: Path, width: int, height: int, *objects: str) -> Path:
    """Writes a picture's annotation and returns its path."""
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    target = annotation_of(image)
    target.write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
    return target


def turned(picture: Image.Image) -> Image.Image:
    """Sets the orientation of a picture, whose pixels stay the same."""
    picture.getexif()[0x0112] = 6
    return picture


def add_odd_ones(image: Path) -> list[Path]:
    """Adds pictures made from one: one for each reason of rejection, and other odd ones."""
    added = []
    with Image.open(image) as before:
        before.load()
    width, height = before.size
    (box,) = parse_annotation(annotation_of(image).read_bytes()).boxes
    own, across = boxed(*box), boxed(box.ymin, box.xmin, box.ymax, box.xmax)

    def add(
        name: str, *boxes: str, change: Callable[[Image.Image], Image.Image] = unchanged
    ) -> Path:
        target = image.with_stem(name)
        after = change(before.copy())
        after.save(target, "JPEG", quality=95, exif=after.getexif())
        annotate(target, after.width, after.height, *boxes)
        added.append(target)
        return target

    cut_off = add("cut_off", own)
    cut_off.write_bytes(cut_off.read_bytes()[:2000])
    annotation_of(add("no_annotation")).unlink()
    annotate(add("another_size"), width + 1, height, own)
    add("no_object")
    add("two_objects", own, own)
    add("all_of_it", boxed(0, 0, width, height))
    long = (3 * height, height)
    add("aside", boxed(5, 5, height, height - 5), change=lambda picture: picture.resize(long))
    add("uniform", own, change=lambda picture: picture.point(lambda value: 90))
    flipped = Image.Transpose.TRANSPOSE
    add("on_its_side", across, change=lambda picture: picture.transpose(flipped))
    add("to_the_corner", boxed(width // 3, height // 3, width, height))
    add("grey", own, change=lambda picture: picture.convert("L"))
    add("cmyk", own, change=lambda picture: picture.convert("CMYK"))
    add("turned", own, change=turned)
    add("dark", own, change=lambda picture: picture.point(lambda value: max(value - 90, 0)))
    return added


@pytest.fixture(scope="module")
def both(rendition: ModuleType, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """A lossless dataset of small pictures and odd ones, and the rendition's results for them."""
    root = tmp_path_factory.mktemp("independent")
    mini, folder = shared / "imagenet-mini", root / "in"
    results: dict[str, dict[str, Any]] = {}
    accepted = Counter[int]()
    for image in pictures_of(mini):
        label = imagenet9().label_of(image.parent.name)
        # With fewer than two, pictures of a class would have no background to be mixed with.
        if accepted[label] < 2:
            small = shrink(mini, image, folder)
            results[image.stem] = rendition.process(small, annotation_of(small))
            accepted[label] += results[image.stem]["status"] == "accepted"
    clear = max(pictures_of(folder), key=lambda i: results[i.stem].get("mask_over_box", 0))
    for small in add_odd_ones(clear):
        results[small.stem] = rendition.process(small, annotation_of(small))
    flags = (*keys(encoding="png"), "--formats", "parquet", "--replicates", 2)
    run_in9("generate", "--output", root / "out", "--input", folder, *flags)
    return dataset_in(root / "out"), results


def test_the_same_pictures_are_left_out_for_the_same_reason(both: Both) -> None:
    dataset, results = both
    index = {row["key"]: row for row in dataset.index("val")}
    expected = {key: one["status"] for key, one in results.items()}
    assert {key: row["status"] for key, row in index.items()} == expected
    assert set(expected.values()) == STATUSES
    shares = {key: one["mask_over_box"] for key, one in results.items() if "mask_over_box" in one}
    assert {key: index[key]["mask_over_box"] for key in shares} == pytest.approx(shares, abs=1e-6)


def test_every_version_is_the_same_to_the_pixel(both: Both) -> None:
    dataset, results = both
    accepted = {key for key, one in results.items() if one["status"] == "accepted"}
    assert len(accepted) >= 22
    for variant in _OF_ONE:
        samples = list(dataset.samples("val", 0, variant))
        assert {sample.key for sample in samples} == accepted
        for sample in samples:
            picture = pixels_of(decode_image(sample.image), variant)
            expected = theirs(results[sample.key], variant)
            np.testing.assert_array_equal(picture, expected, err_msg=f"{variant} {sample.key}")


@pytest.mark.parametrize("draw", ["", "_r1"])
def test_every_mixed_version_is_the_same_to_the_pixel(both: Both, draw: str) -> None:
    dataset, results = both
    # The background is of another picture, from the class that the variant's name says.
    of_class = {
        "mixed_same": lambda label: {label},
        "mixed_rand": lambda label: set(range(9)),
        "mixed_next": lambda label: {(label + 1) % 9},
    }
    rows = {row["key"]: row for row in dataset.index("val")}
    for variant, allowed in of_class.items():
        samples = list(dataset.samples("val", 0, variant + draw))
        assert len(samples) == sum(one["status"] == "accepted" for one in results.values())
        for sample in samples:
            background = rows[sample.key][f"{variant}{draw}_bg_key"]
            assert background != sample.key
            assert rows[background]["label"] in allowed(rows[sample.key]["label"])
            foreground = results[sample.key]
            expected = np.where(
                foreground["mask"][..., None] > 0,
                foreground["original"],
                results[background]["only_bg_t"],
            )
            np.testing.assert_array_equal(
                decode_image(sample.image), expected, err_msg=f"{variant}{draw} {sample.key}"
            )


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
    (folder / "Annotations" / "val").mkdir(parents=True, exist_ok=True)
    image = folder / "val" / "any" / "drawn.JPEG"
    xml = annotate(image, width, height, *(boxed(*box) for box in boxes))
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
    for variant in _OF_ONE:
        picture = VARIANTS[variant].compose(layer, None)
        shown = pixels_of(picture, variant) if picture.ndim == 3 else picture
        np.testing.assert_array_equal(shown, theirs(expected, variant), err_msg=variant)


def test_a_box_without_a_strip_has_no_tile(rendition: ModuleType) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    box = Box(0, 0, 30, 20)
    assert rendition.tile(pixels, box) is None
    with pytest.raises(NoTileError):
        tile_background(pixels, box)
