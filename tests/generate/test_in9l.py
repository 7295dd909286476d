"""Tests IN-9L: whole images of all classes, with or without boxes."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from runs import (
    ONE,
    SHARDS,
    TINY_MODEL,
    keys,
    manifest_of,
    refusal,
    run_here,
    run_in9,
    stamps,
    table_of,
)
from soundness import assert_sound

IN9L = ("--selection", "in9l", *ONE)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Reads the rows of all Parquet files in a folder, sorted by key."""
    rows: list[dict[str, Any]] = pq.read_table(folder).to_pylist()
    return sorted(rows, key=lambda row: str(row["key"]))


@pytest.fixture(scope="module")
def without_boxes(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without annotations: 18 in `val`, one of them broken, and 18 in `train`."""
    root = tmp_path_factory.mktemp("boxless") / "input"
    for split in ("val", "train"):
        shutil.copytree(small_sample / "val", root / split)
    victim = min(root.glob("val/*/*.JPEG"))
    victim.write_bytes(victim.read_bytes()[:700])
    return root


@pytest.fixture(scope="module")
def in9l(without_boxes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of both splits, evaluated and with its report. Tests must not change it."""
    output = tmp_path_factory.mktemp("in9l") / "out"
    command = ("run", "--output", output, "--input", without_boxes, "--split", "val,train")
    run_in9(*command, *IN9L, *SHARDS, *TINY_MODEL)
    return output


def test_every_image_that_can_be_decoded_is_there(in9l: Path) -> None:
    manifest = manifest_of(in9l)
    assert manifest["rejections"] == {"val": {"undecodable": 1}, "train": {}}
    assert [manifest["images"][split]["selected"] for split in ("val", "train")] == [17, 18]
    rows = [row for row in rows_of(in9l / "parquet" / "original") if row["key"]]
    assert len(rows) == 35
    for row in rows:
        assert (row["box"], row["fg_fraction"], row["bg_key"]) == (None, None, None)
    index = rows_of(in9l / "index")
    assert {row["status"] for row in index} == {"accepted", "undecodable"}
    assert all(row["mask_over_box"] is None and row["width"] for row in index if row["selected"])


def test_nothing_is_stored_that_is_not_needed(in9l: Path) -> None:
    assert not list((in9l / "layers").glob("*.tar"))
    assert [path.name for path in (in9l / "parquet").iterdir()] == ["original"]
    assert "segmenter" not in manifest_of(in9l)
    assert_sound(in9l)


def test_its_pictures_are_those_of_in9(
    small_sample: Path, one_worker: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = ("generate", "--output", output, "--input", small_sample, *IN9L, *SHARDS)
    assert "val: 0 looked at already, 18 to look at" in run_in9(*command, "--dry_run").stdout
    run_in9(*command)
    both = [
        {row["key"]: row["image"] for row in rows_of(dataset / "parquet" / "original")}
        for dataset in (one_worker, output)
    ]
    assert len(both[1]) == 18
    assert both[0].items() <= both[1].items()


def test_models_are_evaluated_on_it(in9l: Path) -> None:
    rows = table_of(in9l, "summary")
    assert {(row["variant"], row["n"]) for row in rows} == {("original", "17")}
    for name in ("gaps", "decomposition", "groups", "sizes"):
        assert table_of(in9l, name) == []
    page = (in9l / "report.html").read_text().replace("<wbr>", "")
    assert 'id="accuracy"' in page
    assert not any(f'id="{part}"' in page for part in ("claims", "backgrounds", "saliency"))
    assert "hand-cleaned" not in page
    assert TINY_MODEL[1] in page


def test_only_what_has_changed_is_made_again(
    in9l: Path, without_boxes: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(in9l, tmp_path / "out", copy_function=shutil.copy2))
    images = Path(shutil.copytree(without_boxes, tmp_path / "input"))
    flags = ("--split", "val,train", *IN9L, *SHARDS)
    command = ("generate", "--output", output, "--input", images, *flags)
    before = stamps(output)
    assert "--annotations" in refusal(*command, "--annotations", images / "none")
    # The same pictures in another folder are no change.
    assert "nothing to do" in run_here(*command).out
    assert stamps(output) == before
    added = max(images.glob("val/*/*.JPEG"))
    shutil.copy(added, added.with_name("added_1.JPEG"))
    # The other images of the shard are known from their records and not opened again.
    assert "1 image looked at" in run_here(*command).out
    assert manifest_of(output)["images"]["val"]["selected"] == 18
    assert_sound(output)
    # It has no masks, so it has no recipe.
    recipe = ("--layout", "recipe", "--to", tmp_path / "r")
    assert "in9l" in refusal("export", "--dataset", output, *recipe)


def test_images_without_folder_or_annotation_have_no_class(
    without_boxes: Path, tmp_path: Path
) -> None:
    flat = tmp_path / "input" / "val"
    flat.mkdir(parents=True)
    for image in without_boxes.glob("val/*/*.JPEG"):
        shutil.copy(image, flat)
    command = ("generate", "--output", tmp_path / "out", "--input", flat.parent, *IN9L)
    refused = refusal(*command)
    assert "nothing tells the class" in refused
    assert "--annotations" in refused


def test_an_image_that_changed_unseen_stops_the_job(in9l: Path, tmp_path: Path) -> None:
    """Replaces a picture so that listing cannot notice; composing reads it again and must."""
    images = tmp_path / "input"
    output = tmp_path / "out"
    source = Path(json.loads((in9l / ".in9" / "input.json").read_text()))
    shutil.copytree(source / "val", images / "val")
    command = ("generate", "--output", output, "--input", images, *IN9L)
    run_in9(*command)
    *_, small, large = sorted(images.glob("val/*/*.JPEG"), key=lambda path: path.stat().st_size)
    stat = large.stat()
    content = small.read_bytes()
    # The file holds another picture, but keeps its size and time.
    large.write_bytes(content + bytes(stat.st_size - len(content)))
    os.utime(large, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    done = run_in9(*command, *keys(jpeg_quality=50), "--overwrite", "config", check=1)
    assert f"{large} gives another layer than before" in done.stderr
