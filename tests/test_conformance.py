"""Tests that real pictures have the pixels that the authors' own code computes."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from runs import csv_rows, dataset_in, keys, pixels_of, run_in9

from pipeline.dataset.sinks import decode_layer, read_layer
from pipeline.storage.store import Store
from transforms.layers import Layer
from transforms.variants import VARIANTS

STATUSES = (
    *("accepted", "undecodable", "missing_annotation", "size_mismatch", "not_one_box"),
    *("box_too_large", "box_off_center", "segmentation_failed"),
)
CODES = {status: code for code, status in enumerate(STATUSES)}


def layers(output: Path) -> Iterator[tuple[str, Layer]]:
    """Yields the key and the layer of each accepted picture of a dataset."""
    for record in sorted((output / "layers").glob("*.parquet")):
        for row in pq.read_table(record).to_pylist():
            if row["status"] == "accepted":
                tar = f"layers/{record.stem}.tar"
                encoded = read_layer(Store(str(output)), tar, row)
                yield row["key"], decode_layer(*encoded.values(), box=row["box"])


def index(output: Path) -> dict[str, dict[str, Any]]:
    """Returns the rows of the index, by key."""
    return {row["key"]: row for row in dataset_in(output).index("val")}


@pytest.fixture(scope="module")
def lossless_sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lossless dataset of three sample pictures of each class."""
    output = tmp_path_factory.mktemp("lossless") / "out"
    how = (*keys(encoding="png"), "--limit", 3, "--replicates", 2)
    run_in9("generate", "--output", output, "--formats", "parquet", *how)
    return output


@pytest.mark.parametrize("draw", ["", "_r1"])
def test_mixed_variants_are_of_the_variants_they_are_made_from(
    lossless_sample: Path, draw: str
) -> None:
    parts = {
        name: pixels_of(lossless_sample, name) for name in ("original", "only_bg_t", "fg_mask")
    }
    rows = index(lossless_sample)
    # The background is of another picture, from the class that the variant's name says.
    of_class = {
        "mixed_same": lambda label: {label},
        "mixed_rand": lambda label: set(range(9)),
        "mixed_next": lambda label: {(label + 1) % 9},
    }
    for variant, allowed in of_class.items():
        pictures = pixels_of(lossless_sample, variant + draw)
        assert pictures.keys() == parts["original"].keys()
        for key, picture in pictures.items():
            background = rows[key][f"{variant}{draw}_bg_key"]
            assert background != key
            assert rows[background]["label"] in allowed(rows[key]["label"])
            is_object = parts["fg_mask"][key][..., np.newaxis] > 0
            mixed = np.where(is_object, parts["original"][key], parts["only_bg_t"][background])
            np.testing.assert_array_equal(picture, mixed, err_msg=f"{variant}{draw} {key}")


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


@pytest.mark.parametrize("variant", ["only_bg_t", "only_fg"])
def test_variants_equal_the_scripts(shared: Path, reference_run: Path, variant: str) -> None:
    actual = pixels_of(reference_run, variant)
    references = sorted((shared / "reference" / variant).glob("*.png"))
    assert len(references) >= 12
    for path in references:
        np.testing.assert_array_equal(
            actual[path.stem], Image.open(path).convert("RGB"), err_msg=path.stem
        )


def test_composites_equal_the_scripts_but_for_black_foregrounds(
    shared: Path, reference_run: Path
) -> None:
    by_key = dict(layers(reference_run))
    pairs = csv_rows(shared / "reference" / "mixed" / "pairs.csv")
    assert len(pairs) >= 12
    for pair in pairs:
        layer = by_key[pair["fg_key"]]
        mixed = VARIANTS["mixed_same"].compose(layer, by_key[pair["bg_key"]].only_bg_t)
        path = shared / "reference" / "mixed" / f"{pair['fg_key']}.png"
        expected = np.asarray(Image.open(path).convert("RGB"))
        black = layer.mask & ~layer.image.any(axis=2)
        np.testing.assert_array_equal(mixed[~black], expected[~black], err_msg=pair["fg_key"])
        assert not mixed[black].any()
