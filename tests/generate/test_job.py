"""Tests the job as users run it: bytes do not depend on workers, and every image is counted."""

from __future__ import annotations

import builtins
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from runs import ONE, SHARDS, TINY_MODEL, index_of, keys, manifest_of, run_here, run_in9, stamps
from soundness import assert_sound

from pipeline.commands.cli import main
from pipeline.generate.compose import ComposeShard
from pipeline.generate.segment import SegmentShard
from pipeline.inputs.layout import find_layout, list_images
from pipeline.inputs.location import NOWHERE, read_location
from transforms.taxonomy import imagenet9


@pytest.mark.parametrize(
    "how",
    [
        ("--direct_num_workers=2",),
        ("--direct_num_workers=2", "--direct_running_mode=multi_processing"),
        ("--direct_runner_bundle_repeat=1",),
    ],
    ids=["threads", "processes", "bundles twice"],
)
def test_the_manifest_does_not_depend_on_the_workers(
    one_worker: Path,
    small_sample: Path,
    tmp_path: Path,
    how: tuple[str, ...],
) -> None:
    output = tmp_path / "out"
    run_in9("generate", "--output", output, "--input", small_sample, *SHARDS, *how)
    assert (output / "manifest.json").read_bytes() == (one_worker / "manifest.json").read_bytes()
    assert_sound(output)


def test_the_output_tree_is_as_documented(one_worker: Path) -> None:
    manifest = manifest_of(one_worker)
    shards = manifest["shards"]["val"]
    assert shards == {"source": 3, "output": 3}
    files = {file["path"] for file in manifest["files"]}
    assert {"README.md", "classes.txt", "croissant.json"} <= files
    assert "layers/val-00002.parquet" in files
    assert "index/val-00000-of-00003.parquet" in files
    samples = {file["path"]: file["samples"] for file in manifest["files"]}
    for shard in range(3):
        rows = samples[f"parquet/mixed_rand/val-{shard:05d}-of-00003.parquet"]
        assert (f"webdataset/fg_mask/val-{shard:06d}.tar" in files) == (rows > 0)
    paths = set(stamps(one_worker))
    assert paths == files | {"manifest.json"}
    images = manifest["images"]["val"]
    assert images["listed"] == images["accepted"] + images["rejected"] == 18
    assert "time" not in (one_worker / "manifest.json").read_text()


def test_empty_buckets_and_images_without_partners(small_sample: Path, tmp_path: Path) -> None:
    """Limits the input to one picture a class, so that mixed_same finds no partner for any."""
    output = tmp_path / "out"
    flags = ("--input", small_sample, "--limit", 1, *keys(images_per_shard=2))
    done = run_in9("generate", "--output", output, *flags)
    assert "because all of them were rejected: mixed_same needs two images" in done.stdout
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
    rejected = run_in9("run", "--output", tmp_path / "a", *flags, *keys(max_box=0.001), check=1)
    assert "val: no image is in the dataset, because all of them were rejected." in rejected.stdout
    assert "no model was evaluated, because the dataset holds no image" in rejected.stderr
    training = tmp_path / "new" / "training"
    train = ("train", "--dataset", tmp_path / "a", "--train_split", "val", "--output", training)
    assert "no images of val are left to train on" in run_in9(*train, check=2).stderr
    assert not training.parent.exists()
    box = ("--segmenter", "box", "--per_class", 1)
    alone = run_in9("run", "--output", tmp_path / "b", *flags, *box, check=1)
    assert "because --per_class 1 leaves no image a background" in alone.stdout
    assert "or raise --per_class" in alone.stdout


def test_splits_keep_to_themselves(small_input: Path, tmp_path: Path) -> None:
    train = small_input / "train"
    moved = sorted(small_input.glob("val/*/*.JPEG"))[::2]
    for image in moved:
        folder = train / image.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        image.rename(folder / image.name)
    annotations = small_input / "Annotations"
    shutil.copytree(annotations / "val", annotations / "train")
    output = tmp_path / "out"
    variants = "original,mixed_rand"
    run_in9(
        *("generate", "--input", small_input, "--output", output, "--split", "val,train"),
        *("--variants", variants, "--formats", "parquet"),
    )
    import pyarrow.dataset as ds

    keys = {}
    for split in ("val", "train"):
        files = [str(path) for path in output.glob(f"parquet/mixed_rand/{split}-*.parquet")]
        table = ds.dataset(files).to_table(columns=["key", "bg_key"])
        keys[split] = set(table["key"].to_pylist())
        assert set(table["bg_key"].to_pylist()) <= keys[split]
    assert not keys["val"] & keys["train"]
    assert {path.stem for path in moved} >= keys["train"]
    assert not (output / "webdataset").exists()


def test_one_bad_image_never_stops_a_job(small_input: Path, tmp_path: Path) -> None:
    images = sorted(small_input.glob("val/*/*.JPEG"))
    images[0].write_bytes(b"")
    images[1].write_bytes(images[1].read_bytes()[:2000])
    images[2].write_bytes(b"not a picture")
    (small_input / "Annotations" / "val" / f"{images[3].stem}.xml").unlink()
    (small_input / "Annotations" / "val" / f"{images[4].stem}.xml").write_text("<annotation>")
    shutil.copy(images[5], images[5].with_name("key.with.dots.JPEG"))
    shutil.copy(images[6], images[9].with_name(images[6].name))
    output = tmp_path / "out"
    done = run_in9("generate", "--input", small_input, "--output", output)
    rejections = manifest_of(output)["rejections"]["val"]
    expected = {
        "undecodable": 3,
        "missing_annotation": 1,
        "unreadable_annotation": 1,
        "invalid_key": 1,
        "duplicate_key": 1,
    }
    assert {reason: rejections.get(reason) for reason in expected} == expected
    assert "3 undecodable" in done.stdout
    details = {row["status"]: row["detail"] for row in index_of(output)}
    assert details["missing_annotation"] == "no box"
    images_counts = manifest_of(output)["images"]["val"]
    assert images_counts["listed"] == images_counts["accepted"] + images_counts["rejected"] == 20
    assert_sound(output)


@pytest.mark.parametrize("reader", ["first", "checksum", "segment"])
def test_an_io_error_is_not_a_rejection(
    tiny_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: str
) -> None:
    """Lets one read of one picture fail.

    A first run reads a picture once. A later run reads a changed picture twice: for its checksum
    and for segmentation.
    """
    picture = sorted(tiny_input.glob("val/*/*.JPEG"))[0]
    victim = str(picture)
    reads = {"first": 1, "checksum": 1, "segment": 2}[reader]
    opened = builtins.open

    def broken(file: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal reads
        if file == victim:
            reads -= 1
            if reads == 0:
                raise OSError(5, "Input/output error", victim)
        return opened(file, *arguments, **options)

    output = tmp_path / "out"
    flags = ["generate", "--input", str(tiny_input), "--output", str(output), *ONE]
    before = None
    if reader != "first":
        assert main(flags) == 0
        before = manifest_of(output)
        picture.write_bytes(picture.read_bytes()[:-2] + b"\xff\xfe\x00\x04in\xff\xd9")
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", broken)
        assert main(flags) == 1
    assert reads == 0
    assert (manifest_of(output) if (output / "manifest.json").exists() else None) == before
    assert main(flags) == 0
    assert manifest_of(output)["images"]["val"]["listed"] == 6
    assert not manifest_of(output)["rejections"]["val"].get("undecodable")


def test_flat_images_without_a_class_are_rejected(tiny_input: Path, tmp_path: Path) -> None:
    flat, output = tmp_path / "flat", tmp_path / "out"
    shutil.copytree(tiny_input / "Annotations", flat / "Annotations")
    (flat / "val").mkdir()
    for image in tiny_input.glob("val/*/*.JPEG"):
        shutil.copy(image, flat / "val")
    first, second = sorted(flat.glob("Annotations/val/*.xml"))[:2]
    first.write_text(re.sub("<name>.*</name>", "", first.read_text()))
    second.unlink()
    flags = ["--input", str(flat), "--formats", "parquet", "--variants", "original", *ONE]
    run_here("generate", "--output", output, *flags)
    rejections = manifest_of(output)["rejections"]["val"]
    assert rejections["unreadable_annotation"] == rejections["missing_annotation"] == 1


@pytest.mark.parametrize("stage", [SegmentShard, ComposeShard])
def test_work_that_a_runner_loses_is_noticed(
    tiny_input: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: Any,
) -> None:
    original = stage.process

    def lossy(self: Any, shard: Any) -> Any:
        return original(self, shard) if shard.shard else iter(())

    monkeypatch.setattr(stage, "process", lossy)
    output = tmp_path / "out"
    flags = ["--input", str(tiny_input), "--output", str(output), *keys(images_per_shard=2), *ONE]
    run_here("generate", *flags, code=1)
    assert "2 of 3 shards" in capsys.readouterr().err
    assert not (output / "manifest.json").exists()
    monkeypatch.undo()
    run_here("generate", *flags)


def test_layouts_are_found_without_being_told(tiny_input: Path, tmp_path: Path) -> None:
    """Lists the same pictures from val/<wnid>, a flat val, the Kaggle trees and nested XML."""
    flat, kaggle, nested = tmp_path / "flat", tmp_path / "kaggle" / "ILSVRC", tmp_path / "nested"
    (flat / "val").mkdir(parents=True)
    annotations = tiny_input / "Annotations" / "val"
    shutil.copytree(annotations, kaggle / "Annotations" / "CLS-LOC" / "val")
    shutil.copytree(annotations, flat / "Annotations" / "val")
    for image in tiny_input.glob("val/*/*.JPEG"):
        os.link(image, flat / "val" / image.name)
        for root in (kaggle / "Data" / "CLS-LOC", nested):
            target = root / "val" / image.parent.name / image.name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(image, target)
        xml = nested / "Annotations" / "val" / image.parent.name / f"{image.stem}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        os.link(annotations / f"{image.stem}.xml", xml)

    def found(root: Path, where: Path | None = None) -> set[tuple[Any, ...]]:
        layout = find_layout(str(root), where and str(where), "val")
        images, skipped, _ = list_images(layout, imagenet9())
        assert not skipped
        return {
            (image.key, image.wnid, image.label, read_location(image.annotation or NOWHERE))
            for image in images
        }

    expected = found(tiny_input)
    assert len(expected) == 6
    for root in (flat, tmp_path / "kaggle", kaggle, nested):
        assert found(root) == expected, root
    # Here images are flat, and annotations lie in folders of their class.
    shutil.rmtree(flat / "Annotations")
    shutil.copytree(nested / "Annotations", flat / "Annotations")
    assert found(flat) == expected
    # The input may be the folder of the split itself, with or without --annotations.
    assert found(kaggle / "Data" / "CLS-LOC" / "val", annotations) == expected
    assert found(tiny_input / "val") == expected


def test_other_classes_and_files_are_counted(tiny_input: Path) -> None:
    (tiny_input / "val" / "n02123045").mkdir()
    image = next(tiny_input.glob("val/*/*.JPEG"))
    shutil.copy(image, tiny_input / "val" / "n02123045" / "cat.JPEG")
    (image.parent / "notes.txt").write_text("?")
    images, skipped, _ = list_images(find_layout(str(tiny_input), None, "val"), imagenet9())
    assert (len(images), skipped) == (6, {"outside": 1, "other_files": 1})
