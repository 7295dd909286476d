"""Tests given masks, as PNGs and in COCO's form, and the segmenter that takes the box."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from runs import (
    ONE,
    ROOT,
    index_of,
    manifest_of,
    pictures_of,
    pixels_of,
    run_here,
    run_in9,
    table_of,
)
from soundness import assert_sound

from pipeline.generate.segmenters import index_masks
from pipeline.inputs.layout import find_layout, list_images
from transforms.annotations import Annotation, Box, write_annotation
from transforms.codec import encode_png
from transforms.cutting import Cut, cut_objects
from transforms.filters import Reason
from transforms.hashing import keyed_hash
from transforms.limits import MAX_ANNOTATION_BYTES
from transforms.masks import MaskError, bounding_box, read_mask
from transforms.scoring import PAPER_RULE
from transforms.segmentation import SEGMENTERS
from transforms.taxonomy import imagenet9
from transforms.variants import gaussian_noise

DOCS = ROOT / "docs"

Mask = NDArray[np.bool_]

REASONS = {
    "no box": "accepted",
    "no mask": "missing_annotation",
    "broken": "unreadable_annotation",
    "large": "size_mismatch",
    "empty": "not_one_box",
    "classes": "accepted",
}
"""What can be done to a mask, and the status it leads to."""


def png(array: NDArray[Any], mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(buffer, "PNG")
    return buffer.getvalue()


def resized(mask: Mask) -> Mask:
    """Applies Resize(256, nearest) + CenterCrop(224) with Pillow alone."""
    image = Image.fromarray(mask)
    width, height = image.size
    side = min(width, height)
    width, height = int(256 * width / side), int(256 * height / side)
    image = image.resize((width, height), Image.Resampling.NEAREST)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


@pytest.fixture(scope="module")
def truths(sample: Path) -> dict[str, Mask]:
    """True masks of the sample, by key."""
    paths = (sample / "masks" / "val").iterdir()
    return {path.stem: np.asarray(Image.open(path)) for path in paths}


def change_mask(source: Path, key: str, change: str, truth: Mask) -> None:
    """Does something to the mask of an image, or to its annotation; `REASONS` says what."""
    mask = source / "masks" / "val" / f"{key}.png"
    if change in ("no box", "empty"):
        (source / "Annotations" / "val" / f"{key}.xml").unlink()
    if change == "no mask":
        mask.unlink()
    elif change == "broken":
        mask.write_bytes(mask.read_bytes()[:60])
    elif change == "large":
        mask.write_bytes(png(np.pad(truth, 1)))
    elif change == "empty":
        mask.write_bytes(png(np.zeros_like(truth)))
    elif change == "classes":
        # As in ImageNet-S, a folder of the class holds class 258 and ignored pixels.
        numbers = np.where(truth, 258, 0)
        numbers[:5][~truth[:5]] = 1000
        (image,) = source.glob(f"val/*/{key}.JPEG")
        (folder := mask.parent / image.parent.name).mkdir(exist_ok=True)
        mask.unlink()
        rgb = np.stack([numbers % 256, numbers // 256, numbers * 0], axis=2)
        (folder / f"{key}.png").write_bytes(png(rgb.astype(np.uint8)))


@pytest.fixture(scope="module")
def masked(
    sample: Path, truths: dict[str, Mask], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, str]]:
    """Output of the main job on three images a class of the sample, with given masks.

    One variant is from the documentation. Some images have no box, no mask, or a broken mask.

    Returns:
      (the dataset, what was done to each image, by key).
    """
    root = tmp_path_factory.mktemp("masks")
    source, output = Path(shutil.copytree(sample, root / "input")), root / "out"
    images, *_ = list_images(find_layout(str(source), None, "val"), imagenet9(), limit=3)
    done = dict(zip((image.key for image in images), REASONS, strict=False))
    for key, change in done.items():
        change_mask(source, key, change, truths[key])
    text = (DOCS / "variants.md").read_text()
    module = re.search(r"```python\n(# my_variants.py\n.+?)```", text, re.DOTALL)
    assert module is not None
    (root / "my_variants.py").write_text(module[1])
    variants = "original,fg_mask,mixed_rand,bg_blurred,noise_fg,noise_bg"
    command = ("run", "--output", output, "--input", source, "--limit", 3)
    command += ("--segmenter", "masks", "--masks", source / "masks")
    command += ("--variants", f"{variants},python:my_variants:fg_on_grey")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        run_in9(*command, "--fail_if", "fg_on_grey<0.0,noise_bg<0.0")
    return output, done


def test_given_masks_are_the_truth_after_the_resize(
    masked: tuple[Path, dict[str, str]], truths: dict[str, Mask]
) -> None:
    output, done = masked
    masks = pixels_of(output, "fg_mask")
    assert len(masks) == 27 - 4
    for key, mask in masks.items():
        expected = resized(truths[key])
        if done.get(key) == "classes":
            assert mask.any()
        np.testing.assert_array_equal(mask == 255, expected)


def test_what_is_wrong_with_a_mask_is_the_reason(masked: tuple[Path, dict[str, str]]) -> None:
    output, done = masked
    index = {row["key"]: row for row in index_of(output)}
    for key, change in done.items():
        assert index[key]["status"] == REASONS[change], change
    assert {row["segmenter"] for row in index.values()} == {"masks 1"}
    assert manifest_of(output)["segmenter"] == {"method": "masks", "version": 1, "parameters": {}}


def test_further_variants_are_composed_evaluated_and_read_without_their_module(
    masked: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    output, _ = masked
    originals, masks = pixels_of(output, "original"), pixels_of(output, "fg_mask")
    for key, grey in pixels_of(output, "fg_on_grey").items():
        background = grey[masks[key] == 0].astype(int)
        assert (abs(background - 128) < 3).mean() > 0.85  # JPEG rings beside the foreground.
        assert abs(grey[masks[key] > 0] - originals[key][masks[key] > 0].astype(int)).mean() < 20
    summary = [row for row in table_of(output, "summary") if row["label_rule"] == PAPER_RULE]
    rows = {row["variant"]: row for row in summary}
    assert {"bg_blurred", "fg_on_grey"} <= set(rows)
    noisy = [float(rows[name]["accuracy"]) for name in ("noise_fg", "noise_bg")]
    (measured,) = (row for row in table_of(output, "rfs") if row["label_rule"] == PAPER_RULE)
    assert [float(measured[name]) for name in ("noise_fg", "noise_bg")] == noisy
    mean = sum(noisy) / 2
    rfs = (noisy[1] - noisy[0]) / (2 * min(mean, 1 - mean))
    assert float(measured["rfs"]) == pytest.approx(rfs)
    config = manifest_of(output)["config"]
    assert config["variants"][-2:] == ["noise_bg", "python:my_variants:fg_on_grey@1"]
    page = (output / "report.html").read_text()
    assert "fg_on_grey" in page
    assert f"{rfs:.2f} <small" in page
    # One draw of one mixed variant leaves nothing to compare.
    assert "No flip rate" in page
    assert_sound(output)
    run_here("export", "--dataset", output, "--to", tmp_path)
    for variant in ("bg_blurred", "noise_fg", "fg_on_grey"):
        assert len(list(tmp_path.glob(f"{variant}/val/*/*.JPEG"))) == len(originals)


def test_noise_is_drawn_by_the_key_and_stored_without_loss(
    masked: tuple[Path, dict[str, str]],
) -> None:
    output, _ = masked
    masks, originals = pixels_of(output, "fg_mask"), pixels_of(output, "original")
    on_fg, on_bg = (pixels_of(output, name) for name in ("noise_fg", "noise_bg"))
    for key, mask in masks.items():
        is_fg = mask[..., np.newaxis] > 0
        image = np.where(is_fg, on_bg[key], on_fg[key]).astype(int)
        assert abs(image - originals[key]).mean() < 5  # JPEG loses a little.
        noise = gaussian_noise(keyed_hash(0, "noise", key), image.shape)
        noisy = np.where(is_fg, on_fg[key], on_bg[key])
        np.testing.assert_array_equal(noisy, np.clip(image + noise, 0, 255))


def cut(image: bytes, xml: bytes | None, mask: bytes | None, segmenter: str = "masks") -> Cut:
    segment = SEGMENTERS[segmenter].segment
    (result,) = cut_objects(
        image, xml, mask, segment=segment, seed=0, resize=256, crop=224, interpolation="nearest"
    )
    return result


def test_the_box_is_what_only_bg_b_blackens(sample: Path) -> None:
    for path in pictures_of(sample)[::9]:
        xml = (sample / "Annotations" / "val" / f"{path.stem}.xml").read_bytes()
        layer = cut(path.read_bytes(), xml, None, "box").layer
        assert layer is not None
        expected = np.zeros((224, 224), np.bool_)
        expected[layer.box.y0 : layer.box.y1, layer.box.x0 : layer.box.x1] = True
        np.testing.assert_array_equal(layer.mask, expected)


def test_a_box_from_a_mask_leaves_nothing_of_the_object_in_the_background() -> None:
    mask = np.zeros((256, 256), np.bool_)
    mask[60:180, 40:200] = True
    image = np.where(mask[..., None], np.uint8([255, 0, 0]), np.uint8([0, 0, 255]))
    layer = cut(encode_png(image), None, png(mask)).layer
    assert layer is not None
    assert (layer.only_bg_t == [0, 0, 255]).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16"])
def test_masks_of_one_channel(mode: str) -> None:
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    data = png(mask.astype(np.uint16) * 7) if mode == "I;16" else png(mask, mode)
    result = read_mask(data)
    np.testing.assert_array_equal(result.mask, mask)
    assert result.boxes == (bounding_box(mask),)


def coco_text(*segmentations: object, height: int = 20, width: int = 30) -> bytes:
    content = {"height": height, "width": width, "segmentations": segmentations}
    return json.dumps(content).encode()


def test_coco_masks() -> None:
    mask = np.random.default_rng(0).random((20, 30)) < 0.5
    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    compressed = {"size": [20, 30], "counts": encoded["counts"].decode()}
    np.testing.assert_array_equal(read_mask(coco_text(compressed)).mask, mask)
    runs = np.flatnonzero(np.diff(np.r_[0, mask.T.ravel(), 0]))
    counts = np.diff(np.r_[0, runs, 600 if runs[-1] != 600 else []]).astype(int).tolist()
    plain = {"size": [20, 30], "counts": counts}
    np.testing.assert_array_equal(read_mask(coco_text(plain)).mask, mask)
    two = read_mask(coco_text([[2, 3, 10, 3, 10, 9, 2, 9]], [[15, 3, 20, 3, 20, 9, 15, 9]]))
    assert two.boxes == (Box(2, 3, 10, 9), Box(15, 3, 20, 9))
    assert two.mask.sum() == 8 * 6 + 5 * 6


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{}",
        coco_text({"size": [20, 30], "counts": [5, 5]}),
        coco_text({"size": [20, 30], "counts": "zzzz"}),
        coco_text({"size": [2, 3], "counts": [6]}),
        coco_text([[0, 0, 1e9, 0, 1e9, 1e9]]),
        coco_text([[0, 0, 1, 1]]),
        coco_text(height=60_000, width=60_000),
        png(np.zeros((4, 4, 4), np.uint8)),
    ],
)
def test_what_is_no_mask_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(MaskError):
        read_mask(data)
    picture = encode_png(np.zeros((20, 30, 3), np.uint8))
    assert cut(picture, None, data).reason == Reason.UNREADABLE_ANNOTATION


@pytest.mark.parametrize("more", [(1, 0), (0, 1)])
def test_a_mask_is_as_high_and_as_wide_as_its_picture(more: tuple[int, int]) -> None:
    mask = np.zeros((240 + more[0], 320 + more[1]), np.bool_)
    mask[60:180, 60:260] = True
    picture = encode_png(np.zeros((240, 320, 3), np.uint8))
    # The annotation has the picture's size; a mask alone tells both.
    xml = write_annotation(Annotation(320, 240, (Box(60, 60, 259, 179),), None)).encode()
    for annotation in (xml, None):
        assert cut(picture, annotation, png(mask)).reason == Reason.SIZE_MISMATCH
        assert cut(picture, annotation, png(mask[:240, :320])).reason is None


def test_numbers_in_run_lengths_have_few_digits() -> None:
    # Runs of 200, 150, 100, 50 and 100 pixels. The fourth is stored as -100, in 6 or 7 digits. From
    # these seven digits, pycocotools reads -4.
    six, seven = (f"XV0fT0TS0{digits}PP0" for digits in ("lloooO", "llooooO"))
    assert read_mask(coco_text({"size": [20, 30], "counts": six})).mask.sum() == 200
    for counts in (seven, "o" * 1_000_000 + "0"):
        with pytest.raises(MaskError, match="more than 6 digits"):
            read_mask(coco_text({"size": [20, 30], "counts": counts}))


def test_masks_in_json_are_as_large_as_annotations_at_most() -> None:
    largest = coco_text([[1, 1, 4, 1, 4, 4]]).ljust(MAX_ANNOTATION_BYTES)
    assert read_mask(largest).mask.any()
    with pytest.raises(MaskError, match="10000001 bytes"):
        read_mask(largest + b" ")


def test_polygons_of_an_object_are_merged_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # pycocotools needs time in proportion to the square of the number that it merges at once.
    numbers: list[int] = []
    merge = coco.merge
    monkeypatch.setattr(coco, "merge", lambda parts: [numbers.append(len(parts)), merge(parts)][1])
    corners = [(i * 37 % 300, i * 91 % 70) for i in range(1000)]
    squares = [[x, y, x + 1, y, x + 1, y + 1, x, y + 1] for x, y in corners]
    expected = np.zeros((76, 300), np.bool_)
    expected[[y for _, y in corners], [x for x, _ in corners]] = True
    mask = read_mask(coco_text(squares, height=76, width=300)).mask
    np.testing.assert_array_equal(mask, expected)
    assert max(numbers) <= 16


def test_objects_without_a_pixel_have_no_box() -> None:
    runs = [[i, 1, 600 - i - 1] for i in range(1, 10)]
    objects = [{"size": [20, 30], "counts": counts} for counts in ([600], *runs)]
    given = read_mask(coco_text(*objects))
    masks = [given.mask_of_box(position, given.boxes) for position in range(9)]
    assert [int(np.flatnonzero(mask.T)[0]) for mask in masks] == list(range(1, 10))


def coco_file(tiny_input: Path, truths: dict[str, Mask]) -> Path:
    """Writes the true masks of an input, at 2/5 of the sample's size, to a COCO file."""
    content: dict[str, list[Any]] = {"images": [], "annotations": []}
    for number, path in enumerate(pictures_of(tiny_input)):
        width, height = Image.open(path).size
        size = {"height": height, "width": width}
        content["images"].append({"id": number, "file_name": path.name, **size})
        mask = Image.fromarray(truths[path.stem]).resize((width, height))
        encoded = coco.encode(np.asfortranarray(np.asarray(mask, np.uint8)))
        segmentation = {"size": encoded["size"], "counts": encoded["counts"].decode()}
        content["annotations"].append({"image_id": number, "segmentation": segmentation})
    file = tiny_input / "coco.json"
    file.write_text(json.dumps(content))
    return file


def test_a_coco_file_alone_makes_a_dataset_and_remakes_what_changed(
    tiny_input: Path, truths: dict[str, Mask], tmp_path: Path
) -> None:
    masks = coco_file(tiny_input, truths)
    shutil.rmtree(tiny_input / "Annotations")
    flags = ("--segmenter", "masks", "--masks", masks, "--variants", "fg_mask,mixed_rand")
    output = tmp_path / "out"
    command = ("generate", "--output", output, "--input", tiny_input, *flags, *ONE)
    run_here(*command)
    before = pixels_of(output, "fg_mask")
    assert len(before) == 6
    kept = masks.read_text()
    content = json.loads(kept)
    height, width = content["annotations"][0]["segmentation"]["size"]
    box = [40, 20, width - 40, 20, width - 40, height - 20, 40, height - 20]
    content["annotations"][0]["segmentation"] = [box]
    masks.write_text(json.dumps(content))
    assert "5 segmented already, 1 to segment" in run_here(*command, "--dry_run").out
    masks.write_text(kept)
    # Without layers, foregrounds and backgrounds are cut again from the masks.
    command = (*command, "--layers", "drop", "--overwrite", "config")
    run_here(*command)
    assert "0 images segmented" in run_here(*command, "--seed", "1").out
    for key, mask in pixels_of(output, "fg_mask").items():
        np.testing.assert_array_equal(mask, before[key])


def test_the_mask_of_its_class_is_an_images(tmp_path: Path) -> None:
    for name in ("n01/a.png", "n02/a.png", "n02/b.png", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")

    masks = index_masks(str(tmp_path), "v")
    asked = [("n01", "a"), ("n03", "a"), ("n03", "b"), ("n01", "c"), ("n01", "d")]
    chosen = [masks.find(*each) for each in asked]
    paths = [mask and mask.location.path.removeprefix(str(tmp_path)) for mask in chosen]
    assert paths == ["/n01/a.png", None, "/n02/b.png", "/c.png", None]
    assert len(masks) == 4
