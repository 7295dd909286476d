"""Tests the job as users run it: bytes do not depend on workers, and every image is counted."""

import builtins
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import (
    ONE,
    QUICK,
    SHARDS,
    THREADS,
    TINY_MODEL,
    index_of,
    keys,
    manifest_of,
    pictures_of,
    refusal,
    run_here,
    stamps,
)
from soundness import assert_sound

from pipeline.generate.compose import ComposeShard
from pipeline.generate.segment import SegmentShard


def test_the_manifest_does_not_depend_on_the_number_of_threads(
    one_worker: Path, small_sample: Path, tmp_path: Path
) -> None:
    """Checks it in one process; `test_spread` compares several with threads."""
    output, two = tmp_path / "out", (*THREADS, "--direct_num_workers=2")
    run_here("generate", "--output", output, "--input", small_sample, *SHARDS, *two)
    assert (output / "manifest.json").read_bytes() == (one_worker / "manifest.json").read_bytes()
    assert_sound(output)


def test_the_output_tree_is_as_documented(one_worker: Path) -> None:
    manifest = manifest_of(one_worker)
    assert manifest["shards"]["val"] == {"source": 3, "output": 3}
    files = {file["path"] for file in manifest["files"]}
    assert {"README.md", "classes.txt", "croissant.json"} <= files
    assert "layers/val-00002.parquet" in files
    assert "index/val-00000-of-00003.parquet" in files
    samples = {file["path"]: file["samples"] for file in manifest["files"]}
    for shard in range(3):
        rows = samples[f"parquet/mixed_rand/val-{shard:05d}-of-00003.parquet"]
        assert (f"webdataset/fg_mask/val-{shard:06d}.tar" in files) == (rows > 0)
    assert set(stamps(one_worker)) == files | {"manifest.json"}
    images = manifest["images"]["val"]
    assert images["listed"] == images["accepted"] + images["rejected"] == 18
    assert "time" not in (one_worker / "manifest.json").read_text()


def test_empty_buckets_and_images_without_partners(small_sample: Path, tmp_path: Path) -> None:
    """Limits the input to one picture a class, so that mixed_same finds no partner for any."""
    output, flags = tmp_path / "out", ("--limit", 1, *keys(images_per_shard=2), *ONE)
    printed = run_here(
        "generate", "--input", small_sample, "--output", output, "--segmenter", "box", *flags
    ).out
    assert "because all of them were rejected: mixed_same needs two images" in printed
    manifest = manifest_of(output)
    assert manifest["rejections"]["val"]["no_background"] >= 8
    assert manifest["images"]["val"]["selected"] == 0
    # An empty shard has a record and an empty Parquet file, but no tar.
    shards = manifest["shards"]["val"]["output"]
    assert len(list(output.glob("parquet/original/*.parquet"))) == shards == 4
    assert not (output / "webdataset").exists()
    assert_sound(output)


def test_a_run_without_any_image_fails_and_says_why(small_sample: Path, tmp_path: Path) -> None:
    flags = ("--input", small_sample, *TINY_MODEL, "--variants", "original,mixed_same", *ONE)
    run = ("run", *flags, "--segmenter", "box", "--output")
    printed = run_here(*run, tmp_path / "a", *keys(max_box=0.001), code=1)
    assert "val: no image is in the dataset, because all of them were rejected." in printed.out
    assert "no model was evaluated, because the dataset holds no image" in printed.err
    training = tmp_path / "new" / "training"
    train = ("train", "--dataset", tmp_path / "a", "--train_split", "val", "--output", training)
    assert "no images of val are left to train on" in refusal(*train)
    assert not training.parent.exists()
    alone = run_here(*run, tmp_path / "b", "--per_class", 1, code=1).out
    assert "because --per_class 1 leaves no image a background" in alone
    assert "or raise --per_class" in alone


def test_one_bad_image_never_stops_a_job(small_input: Path, tmp_path: Path) -> None:
    images, annotations = pictures_of(small_input), small_input / "Annotations" / "val"
    images[0].write_bytes(b"")
    images[1].write_bytes(images[1].read_bytes()[:2000])
    images[2].write_bytes(b"not a picture")
    (annotations / f"{images[3].stem}.xml").unlink()
    (annotations / f"{images[4].stem}.xml").write_text("<annotation>")
    shutil.copy(images[5], images[5].with_name("key.with.dots.JPEG"))
    shutil.copy(images[6], images[9].with_name(images[6].name))
    output = tmp_path / "out"
    printed = run_here("generate", "--input", small_input, "--output", output, *QUICK, *ONE).out
    assert "3 undecodable" in printed
    expected = {"undecodable": 3, "missing_annotation": 1, "unreadable_annotation": 1}
    expected |= {"invalid_key": 1, "duplicate_key": 1}
    assert expected.items() <= manifest_of(output)["rejections"]["val"].items()
    details = {row["status"]: row["detail"] for row in index_of(output)}
    assert details["missing_annotation"] == "no box"
    counts = manifest_of(output)["images"]["val"]
    assert counts["listed"] == counts["accepted"] + counts["rejected"] == 20
    assert_sound(output)


@pytest.mark.parametrize("reader", ["first", "checksum", "segment"])
def test_an_io_error_is_not_a_rejection(
    tiny_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """Lets one read of one picture fail; a later run reads a changed picture twice."""
    picture = pictures_of(tiny_input)[0]
    victim, reads = str(picture), {"first": 1, "checksum": 1, "segment": 2}[reader]
    opened = builtins.open

    def broken(file: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal reads
        if file == victim:
            reads -= 1
            if reads == 0:
                raise OSError(5, "Input/output error", victim)
        return opened(file, *arguments, **options)

    output = tmp_path / "out"
    flags, before = ("generate", "--input", tiny_input, "--output", output, *QUICK, *ONE), None
    if reader != "first":
        run_here(*flags)
        before = manifest_of(output)
        picture.write_bytes(picture.read_bytes()[:-2] + b"\xff\xfe\x00\x04in\xff\xd9")
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", broken)
        run_here(*flags, code=1)
    assert reads == 0
    assert (manifest_of(output) if (output / "manifest.json").exists() else None) == before
    run_here(*flags)
    assert manifest_of(output)["images"]["val"]["listed"] == 6
    assert not manifest_of(output)["rejections"]["val"].get("undecodable")


@pytest.mark.parametrize("stage", [SegmentShard, ComposeShard])
def test_work_that_a_runner_loses_is_noticed(
    tiny_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Any
) -> None:
    original = stage.process

    def lossy(self: Any, shard: Any) -> Any:
        return original(self, shard) if shard.shard else iter(())

    monkeypatch.setattr(stage, "process", lossy)
    output = tmp_path / "out"
    flags = ("--input", tiny_input, "--output", output, *QUICK, *keys(images_per_shard=2), *ONE)
    assert "2 of 3 shards" in run_here("generate", *flags, code=1).err
    assert not (output / "manifest.json").exists()
