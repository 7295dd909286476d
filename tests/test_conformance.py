"""Tests conformance with the authors' procedure.

The sample must have the golden digests. Where the shared reference data is present, real pictures
must have the pixels that the authors' own code computes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from runs import ROOT, csv_rows, dataset_in, keys, run_in9
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from pipeline.dataset.sinks import decode_layer, read_layer
from pipeline.storage.store import Store
from transforms.codec import decode_image, decode_mask
from transforms.layers import Layer
from transforms.variants import VARIANTS

CODES = {
    "accepted": 0,
    "undecodable": 1,
    "missing_annotation": 2,
    "size_mismatch": 3,
    "not_one_box": 4,
    "box_too_large": 5,
    "box_off_center": 6,
    "segmentation_failed": 7,
}

SAMPLE = ROOT / "pipeline" / "data" / "sample"
GOLDEN = Path(__file__).parent / "golden" / "sample.json"


def layers(output: Path) -> Iterator[tuple[str, Layer]]:
    """Yields the key and the layer of each accepted picture of a dataset."""
    for record in sorted((output / "layers").glob("*.parquet")):
        for row in pq.read_table(record).to_pylist():
            if row["status"] == "accepted":
                tar = f"layers/{record.stem}.tar"
                encoded = read_layer(Store(str(output)), tar, row)
                yield row["key"], decode_layer(*encoded.values(), box=row["box"])


def pictures(output: Path, variant: str) -> dict[str, np.ndarray]:
    """Returns the decoded pictures of a variant, by key."""
    dataset = dataset_in(output)
    return {s.key: decode_image(s.image) for s in dataset.samples("val", 0, variant)}


def index(output: Path) -> dict[str, dict[str, Any]]:
    """Returns the rows of the index, by key."""
    return {row["key"]: row for row in dataset_in(output).index("val")}


@pytest.fixture(scope="module")
def lossless_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lossless dataset of three sample pictures of each class, at the golden files' size."""
    output = tmp_path_factory.mktemp("lossless") / "out"
    run_in9(
        "generate", "--output", output, "--image_size", 256, *keys(encoding="png"), "--limit", 3
    )
    return output


def test_sample_filter_codes_and_shares_are_golden(sample_run: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    rows = index(sample_run)
    assert rows.keys() == golden.keys()
    for key, expected in golden.items():
        assert CODES[rows[key]["status"]] == expected["code"], key
        if expected["code"] == 0:
            assert rows[key]["mask_over_box"] == pytest.approx(expected["mask_over_box"], abs=1e-6)


@pytest.mark.parametrize(
    "variant", ["original", "only_bg_b", "only_bg_t", "no_fg", "only_fg", "fg_mask"]
)
def test_sample_variants_equal_native_compositing(lossless_sample: Path, variant: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    actual = pictures(lossless_sample, variant)
    assert len(actual) >= 24
    for key, picture in actual.items():
        pixels = picture[..., 0] if variant == "fg_mask" else picture
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        assert digest == golden[key]["pixels"][variant], key


@pytest.mark.parametrize("variant", ["mixed_same", "mixed_rand", "mixed_next"])
def test_sample_mixed_variants_show_the_backgrounds_they_name(
    lossless_sample: Path, variant: str
) -> None:
    backgrounds = pictures(lossless_sample, "only_bg_t")
    originals = pictures(lossless_sample, "original")
    masks = pictures(lossless_sample, "fg_mask")
    rows = index(lossless_sample)
    for key, picture in pictures(lossless_sample, variant).items():
        mask = masks[key] == 255
        background = backgrounds[rows[key][f"{variant}_bg_key"]]
        np.testing.assert_array_equal(picture, np.where(mask, originals[key], background))


def test_any_mask_is_reproduced_by_cv2_from_index_and_picture(lossless_sample: Path) -> None:
    by_md5 = {md5(path.read_bytes()).hexdigest(): path for path in SAMPLE.glob("val/*/*.JPEG")}
    masks = pictures(lossless_sample, "fg_mask")
    to_output = Compose([Resize(256, InterpolationMode.NEAREST), CenterCrop(256)])
    config = json.loads((lossless_sample / "manifest.json").read_text())["config"]
    # Every sixth image, because OpenCV takes a second for each, and golden digests are of all.
    compared = 0
    for row in list(index(lossless_sample).values())[::6]:
        picture = np.asarray(Image.open(by_md5[row["source_md5"]]).convert("RGB"))
        assert picture.shape[:2] == (row["height"], row["width"])
        if row["key"] not in masks:
            continue
        compared += 1
        xmin, ymin, xmax, ymax = row["native_box"]
        cv2.setRNGSeed(config["grabcut_seed"])
        rectangle = (xmin, ymin, xmax - xmin, ymax - ymin)
        segmented, models = np.zeros(picture.shape[:2], np.uint8), np.zeros((2, 1, 65))
        cv2.grabCut(picture, segmented, rectangle, *models, 5, cv2.GC_INIT_WITH_RECT)
        mask = to_output(Image.fromarray((segmented & 1) * np.uint8(255)))
        np.testing.assert_array_equal(masks[row["key"]][..., 0], mask)
    assert compared > 3


def test_filter_codes_of_all_real_pictures(shared: Path, mini_run: Path) -> None:
    reference = {row["key"]: row for row in csv_rows(shared / "reference" / "filters.csv")}
    rows = index(mini_run)
    assert rows.keys() == reference.keys()
    for key, row in reference.items():
        assert CODES[rows[key]["status"]] == int(row["code"]), key
        if row["mask_over_box"]:
            assert rows[key]["mask_over_box"] == pytest.approx(
                float(row["mask_over_box"]), abs=1e-6
            )
    manifest = dataset_in(mini_run).manifest
    assert manifest.images["val"]["accepted"] == 151
    assert manifest.images["val"]["accepted"] + manifest.images["val"]["rejected"] == 270
    assert manifest.rejections["val"] == {
        "box_too_large": 76,
        "not_one_box": 36,
        "segmentation_failed": 7,
    }


@pytest.fixture(scope="module")
def reference_run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lossless dataset of the pictures that have reference pixels, at the reference's size."""
    root = tmp_path_factory.mktemp("reference")
    mini = shared / "imagenet-mini"
    stems = {path.stem for path in (shared / "reference" / "masks").glob("*.png")}
    for image in mini.glob("val/*/*.JPEG"):
        if image.stem in stems:
            folder = root / "in" / "val" / image.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, folder)
    shutil.copytree(mini / "Annotations", root / "in" / "Annotations")
    run_in9(
        *("generate", "--output", root / "out", "--input", root / "in"),
        *("--image_size", 256, *keys(encoding="png"), "--own_background"),
    )
    return root / "out"


def reference_picture(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_masks_equal_the_scripts(shared: Path, reference_run: Path) -> None:
    by_key = dict(layers(reference_run))
    references = sorted((shared / "reference" / "masks").glob("*.png"))
    assert len(references) >= 19
    compared = 0
    for path in references:
        if path.stem not in by_key:
            continue  # A picture on which GrabCut fails has a mask but no layer.
        native = decode_mask(path.read_bytes())
        resized = Image.fromarray(native)
        width, height = resized.size
        size = (256, height * 256 // width) if width <= height else (width * 256 // height, 256)
        resized = resized.resize(size, Image.Resampling.NEAREST)
        left, top = round((size[0] - 256) / 2), round((size[1] - 256) / 2)
        expected = np.asarray(resized.crop((left, top, left + 256, top + 256)))
        np.testing.assert_array_equal(by_key[path.stem].mask, expected, err_msg=path.stem)
        compared += 1
    assert compared >= 12


@pytest.mark.parametrize("variant", ["only_bg_t", "only_fg"])
def test_variants_equal_the_scripts(shared: Path, reference_run: Path, variant: str) -> None:
    actual = pictures(reference_run, variant)
    references = sorted((shared / "reference" / variant).glob("*.png"))
    assert len(references) >= 12
    for path in references:
        np.testing.assert_array_equal(actual[path.stem], reference_picture(path), err_msg=path.stem)


def test_composites_equal_the_scripts_but_for_black_foregrounds(
    shared: Path, reference_run: Path
) -> None:
    by_key = dict(layers(reference_run))
    pairs = csv_rows(shared / "reference" / "mixed" / "pairs.csv")
    assert len(pairs) >= 12
    for pair in pairs:
        layer = by_key[pair["fg_key"]]
        mixed = VARIANTS["mixed_same"].compose(layer, by_key[pair["bg_key"]].only_bg_t)
        expected = reference_picture(shared / "reference" / "mixed" / f"{pair['fg_key']}.png")
        black = layer.mask & ~layer.image.any(axis=2)
        np.testing.assert_array_equal(mixed[~black], expected[~black], err_msg=pair["fg_key"])
        assert not mixed[black].any()
