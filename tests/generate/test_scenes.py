"""Tests pictures with several objects, their groups, and scenes, through the command line."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image
from runs import (
    ONE,
    TINY_MODEL,
    dataset_in,
    index_of,
    keys,
    manifest_of,
    pixels_of,
    refusal,
    run_here,
    run_in9,
    table_of,
)
from soundness import assert_sound
from two_way_by_hand import share_interval

from pipeline.dataset.config import ComposeConfig, SegmentConfig
from pipeline.dataset.records import Staging
from pipeline.generate.scenes import SCENES, DrawnScenes, examine_scenes, list_scenes
from pipeline.storage.store import Store
from transforms.annotations import Box
from transforms.codec import decode_image
from transforms.geometry import ResizeCrop

CLASSES = ("n02085620", "n01514668", "n01440764")
SMALL = ("--image_size", "64", *keys(resize=72, encoding="png"), "--segmenter", "box", *ONE)
SHARDS = (*keys(images_per_shard=5), "--formats", "parquet")


def box_line(*boxes: Box) -> str:
    objects = "".join(
        f"<object><name>x</name><bndbox><xmin>{box.xmin}</xmin><ymin>{box.ymin}</ymin>"
        f"<xmax>{box.xmax}</xmax><ymax>{box.ymax}</ymax></bndbox></object>"
        for box in boxes
    )
    size = "<size><width>120</width><height>90</height></size>"
    return f"<annotation>{size}{objects}</annotation>"


def write_noise(path: Path, seed: int, width: int = 120, height: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(coarse).resize((width, height)).save(path)


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifteen pictures of three classes: twelve with two objects, three with one."""
    root = tmp_path_factory.mktemp("street")
    boxes = root / "Annotations" / "val"
    boxes.mkdir(parents=True)
    for number in range(15):
        key = f"street_{number}"
        write_noise(root / "val" / CLASSES[number % 3] / f"{key}.png", number)
        both = (Box(10, 15, 50, 70), Box(60, 20, 90 + number, 80))
        (boxes / f"{key}.xml").write_text(box_line(*both[: 1 if number < 3 else 2]))
    return root


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five scenes, a broken picture and a text file."""
    folder = tmp_path_factory.mktemp("places")
    for number in range(5):
        write_noise(folder / ("old" if number % 2 else "") / f"place_{number}.png", 100 + number)
    (folder / "broken.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("of last year")
    return folder


@pytest.fixture(scope="module")
def made(street: Path, places: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A dataset of single objects with scenes, evaluated and attacked, and the job's output."""
    output = tmp_path_factory.mktemp("made") / "out"
    flags = ("--objects", "each", "--backgrounds", places, *TINY_MODEL, "--attack", 6)
    done = run_in9("run", "--output", output, "--input", street, *flags, *SMALL, *SHARDS)
    return output, done.stdout


def files_of(output: Path) -> dict[str, str]:
    """Returns the SHA-256 of each file with pictures or index."""
    files = manifest_of(output)["files"]
    return {f["path"]: f["sha256"] for f in files if f["path"].startswith(("parquet/", "index/"))}


def test_every_object_is_an_image(made: tuple[Path, str]) -> None:
    output, printed = made
    rows = index_of(output)
    assert len(rows) == 12 * 2 + 3
    for row in rows:
        source, _, number = row["key"].rpartition("_")
        assert row["path"].endswith(f"{source}.png")
        assert (row["group"], row["object"]) == (source, int(number))
    images = manifest_of(output)["images"]["val"]
    assert (images["listed"], images["objects"], images["accepted"]) == (15, 27, 27)
    assert "val: 15 images, 27 objects, 27 accepted, 0 rejected" in printed
    # Page and card count objects as objects, not as images.
    page, card = ((output / name).read_text() for name in ("report.html", "README.md"))
    assert "27 objects of split" in page
    assert "15 images listed, 27 objects, 27 accepted" in page
    assert "27 objects in each variant." in card
    for row in rows:
        for variant in ("mixed_same", "mixed_rand", "mixed_next"):
            # A background comes from another picture, never from an object of the same one.
            assert row[f"{variant}_bg_key"].rpartition("_")[0] != row["group"]
    assert_sound(output)
    # An object is found by its key, as an image is.
    dataset = dataset_in(output)
    for shard in dataset.shards("val"):
        for row in dataset.index_of_shard("val", shard):
            assert dataset.shard_of("val", row["key"]) == shard


def test_mixed_external_is_the_foreground_on_a_scene(made: tuple[Path, str], places: Path) -> None:
    output, printed = made
    files = {path.stem: path for path in places.rglob("*.png")}
    scenes = {
        key: ResizeCrop.for_size(
            native_width=pixels.shape[1], native_height=pixels.shape[0], resize=72, crop=64
        ).image(pixels)
        for key, path in files.items()
        for pixels in [decode_image(path.read_bytes())]
    }
    originals, masks = pixels_of(output, "original"), pixels_of(output, "fg_mask")
    table = ds.dataset(output / "parquet" / "mixed_external").to_table().to_pylist()
    assert len(table) == 27
    for row in table:
        key = row["key"]
        expected = np.where(masks[key][..., None] > 0, originals[key], scenes[row["bg_key"]])
        np.testing.assert_array_equal(decode_image(row["image"]["bytes"]), expected)
        assert (row["bg_label"], row["bg_wnid"]) == (None, None)
    bg_keys = {row["key"]: row["mixed_external_bg_key"] for row in index_of(output)}
    assert bg_keys == {row["key"]: row["bg_key"] for row in table}
    assert len(set(bg_keys.values())) >= 4
    # A broken picture is counted and does no harm.
    assert manifest_of(output)["backgrounds"] == {"accepted": 5, "undecodable": 1}
    assert "backgrounds: 6 pictures (5 accepted, 1 undecodable)" in printed
    rows = pq.read_table(output / "backgrounds" / "scenes.parquet").to_pylist()
    assert [row["path"] for row in rows if row["status"] != "accepted"] == ["broken.jpg"]


def group(key: str) -> str:
    return key.rpartition("_")[0]


def predictions_in(output: Path, variant: str) -> list[dict[str, Any]]:
    """Returns the predictions of a variant by one rule."""
    files = sorted((output / "results").rglob("predictions/*.parquet"))
    rows = ds.dataset(files).to_table().to_pylist()
    return [row for row in rows if (row["label_rule"], row["variant"]) == ("mapped_only", variant)]


def test_models_are_measured_on_scenes(made: tuple[Path, str]) -> None:
    output, printed = made
    assert "mixed_external" in printed
    external = predictions_in(output, "mixed_external")
    (row,) = (
        row
        for row in table_of(output, "summary")
        if (row["label_rule"], row["variant"]) == ("mapped_only", "mixed_external")
    )
    assert int(row["n"]) == 27
    # A scene serves several foregrounds, which count as related.
    assert len({row["bg_key"] for row in external}) < len(external)
    expected = share_interval((group(p["fg_key"]), p["bg_key"], p["correct"]) for p in external)
    assert (float(row["ci_low"]), float(row["ci_high"])) == pytest.approx(expected, abs=1e-6)
    page = (output / "report.html").read_text()
    assert '<strong>a scene</strong><span class="key">, <code>place_' in page
    assert int(table_of(output, "attack")[0]["foregrounds"]) == 6


def test_a_change_makes_no_more_than_it_must(street: Path, places: Path, tmp_path: Path) -> None:
    output, source, scenes = tmp_path / "out", tmp_path / "street", tmp_path / "places"
    shutil.copytree(street, source)
    shutil.copytree(places, scenes)
    flags = ("--objects", "each", "--variants", "original,mixed_rand", *SMALL)
    flags = (*flags, "--formats", "parquet", *keys(images_per_shard=1))

    def generate(target: Path) -> str:
        printed = run_here(
            "generate", "--output", target, "--input", source, "--backgrounds", scenes, *flags
        ).out
        return printed

    generate(output)
    before = files_of(output)
    # The location of the scenes is not part of the dataset.
    scenes = scenes.rename(tmp_path / "elsewhere")
    assert "nothing to do" in generate(output)
    # A new scene is drawn by few foregrounds, and the others stay as they are.
    write_noise(scenes / "another.png", 7)
    assert "done now: 0 images segmented" in generate(output)
    after = files_of(output)
    changed = {path for path in before if before[path] != after.get(path)}
    with_scenes = {path for path in changed if path.startswith("parquet/mixed_external")}
    assert 0 < len(with_scenes) < len(list((output / "index").glob("*.parquet")))
    assert {Path(path).name for path in changed} == {Path(path).name for path in with_scenes}
    assert manifest_of(output)["backgrounds"]["accepted"] == 6
    # A dataset made at once is the same.
    generate(tmp_path / "fresh")
    assert manifest_of(output) == manifest_of(tmp_path / "fresh")
    # A removed image takes its objects along; other objects are not segmented again.
    next((source / "val").rglob("street_14.png")).unlink()
    assert "done now: 0 images segmented" in generate(output)
    assert "street_14" not in {row["group"] for row in index_of(output)}


def test_the_flag_that_would_help_is_named(street: Path, tmp_path: Path) -> None:
    command = ("generate", "--input", street, *SMALL, "--variants", "original", "--output")

    def said(*words: object) -> str:
        return run_here(*words).out

    printed = said(*command, tmp_path / "one")
    assert "val: 15 images, 3 accepted, 12 rejected (12 not_one_box)" in printed
    advice = "val: over half are rejected. not_one_box (12): --objects largest, union or each"
    assert advice in printed
    assert advice in said(*command, tmp_path / "dry", "--dry_run")
    dry = said(*command, tmp_path / "dry", "--objects", "each", "--dry_run")
    assert "15 to segment" in dry
    assert "about 27 images in the dataset" in dry
    refused = refusal(*command, tmp_path / "one", *keys(max_box=0.8), "--objects", "union")
    assert "max_box=0.8 (the dataset has 0.9), --objects=union (the dataset has one)" in refused
    # A recipe has decided on its images.
    run_here("export", "--dataset", tmp_path / "one", "--layout", "recipe", "--to", tmp_path / "r")
    again = ("generate", "--recipe", tmp_path / "r", "--input", street / "val", *ONE)
    told = said(*again, "--output", tmp_path / "again")
    assert "12 not_one_box" in told
    assert "over half" not in told


def test_scenes_without_a_picture(street: Path, tmp_path: Path) -> None:
    folder = tmp_path / "places"
    folder.mkdir()
    flags = ("--input", street, "--backgrounds", folder, *SMALL)
    command = ("generate", "--output", tmp_path / "out", *flags)
    assert "holds no picture" in refusal(*command)
    (folder / "broken.png").write_bytes(b"")
    refused = run_here(*command, "--objects", "each", code=2).err
    assert "no picture" in refused
    assert "broken.png is undecodable" in refused


def test_a_damaged_table_of_scenes_is_made_again(tmp_path: Path) -> None:
    folder, store = tmp_path / "places", Store(str(tmp_path / "out"))
    write_noise(folder / "place_0.png", 0)
    config, staging = SegmentConfig(image_size=32, resize=32), Staging(store, "staging")

    def examined() -> tuple[tuple[str, int], ...]:
        summary = list_scenes(str(folder)).summary
        return examine_scenes(str(folder), summary, config, staging).statuses

    assert examined() == (("accepted", 1),)
    whole = store.read(staging.staged(SCENES))
    damaged = b"PAR1" + bytes(200) + whole[204:]
    for path in (SCENES, staging.staged(SCENES)):
        store.write(path, damaged)
    assert examined() == (("accepted", 1),)
    assert store.read(staging.staged(SCENES)) == whole
    # Other pictures, and what is known of them is damaged.
    write_noise(folder / "place_1.png", 1)
    (folder / "circle.png").symlink_to("circle.png")
    assert examined() == (("accepted", 2), ("undecodable", 1))


def test_every_accepted_scene_can_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "places"
    for number, name in enumerate(
        ("plain", "tab\tname", "latin\udce9", "x" * 150 + "/" + "y" * 150)
    ):
        write_noise(folder / name / f"place_{number}.png", number)
    config = SegmentConfig(image_size=32, resize=32)
    staging = Staging(Store(str(tmp_path / "out")), "staging")
    summary = list_scenes(str(folder)).summary
    table = examine_scenes(str(folder), summary, config, staging)
    assert table.statuses == (("accepted", 1), ("invalid_key", 3))
    scenes = DrawnScenes(table, staging, config, ComposeConfig())
    assert [scenes.picture(scene).shape for scene in scenes.scenes] == [(32, 32, 3)]
