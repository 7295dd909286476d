"""Tests that --dry_run forecasts what the job then does, and writes nothing."""

from __future__ import annotations

import re
import shutil
from hashlib import md5
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import Run, darken, index_of, keys, manifest_of, pictures_of, run_in9, stamps, table_of

from pipeline.commands.command_line import parse_command_line
from pipeline.commands.job_flags import job_from_flags
from pipeline.jobs.dry_run import forecast_split
from pipeline.storage.store import Store

pytestmark = pytest.mark.usefixtures("no_figures")


def test_a_forecast_agrees_with_the_job(small_input: Path, tmp_path: Path) -> None:
    annotations = small_input / "Annotations" / "val"
    images = sorted(small_input.glob("val/*/*.JPEG"))
    xml = annotations / f"{images[0].stem}.xml"
    boxes = re.findall("<object>.*?</object>", xml.read_text(), re.DOTALL)
    xml.write_text(xml.read_text().replace(boxes[0], boxes[0] * 2))
    (annotations / f"{images[-1].stem}.xml").unlink()
    shutil.copy(images[2], images[2].with_name("a.b.JPEG"))
    (small_input / "val" / "n02123045").mkdir()
    shutil.copy(images[2], small_input / "val" / "n02123045" / "cat.JPEG")
    output = tmp_path / "new" / "out"
    flags = ("run", "--input", small_input, "--output", output, *keys(images_per_shard=6))

    dry_run = run_in9(*flags, "--dry_run")
    assert list(tmp_path.iterdir()) == [small_input]
    lines = dry_run.stdout.splitlines()
    counts = [int(count) for count in re.findall(r"[a-z] (\d+)[,)]", lines[0])]
    assert lines[0].startswith("val: 19 images (dog ")
    assert (len(counts), sum(counts)) == (9, 19)
    assert lines[0].endswith("1 of other classes, 0 other files")
    assert lines[1] == (
        "val: 3 rejected for name or annotation alone "
        "(1 invalid_key, 1 missing_annotation, 1 not_one_box)"
    )
    assert lines[2] == "val: 0 segmented already, 16 to segment"
    # The only images left of their classes have no partner for mixed_same.
    (without_partner,) = re.findall(
        r"^val: (\d+) of them without a background for every mixed variant \(no_background\), or "
        "more, if others are rejected$",
        lines[3],
    )
    (accepted,) = re.findall(r"an image, (\d+) of 16 accepted", dry_run.stdout)
    (forecast,) = re.findall(r"about (\d+) images in the dataset, ([\d.]+) MB", dry_run.stdout)
    assert re.search(
        r"efficientnet_lite0: about .* pictures on cpu \(.* a second\)", dry_run.stdout
    )
    # Nothing is known of the model yet: x = (t(0.975) + t(0.8)) sqrt((0.2 + x (1 - x)) / 12), by
    # tables of t.
    x = 0.5904
    assert x == pytest.approx((2.201 + 0.876) * ((0.2 + x * (1 - x)) / 12) ** 0.5, abs=1e-4)
    assert "smallest BG-Gap that 12 images would show in 8 of 10 draws, in points: 59.0 for a" in (
        dry_run.stdout
    )
    measured = re.findall(r": segment ([\d.]+) s an .* compose ([\d.]+) s\n", dry_run.stdout)
    segment, compose = map(float, measured[0])
    parts = 16 * segment, int(forecast[0]) * compose
    estimate = re.search(
        r"^estimate: (\d+) s with --direct_num_workers (\d+) \(one core: (\d+) s \+- \d+ s "
        r"to segment, at most (\d+) s to compose\)$",
        dry_run.stdout,
        re.MULTILINE,
    )
    assert estimate
    seconds, workers, *of_one_core = map(int, estimate.groups())
    expected = (sum(parts) / workers, *parts)
    assert [seconds, *of_one_core] == pytest.approx(expected, abs=0.6)
    assert lines[-1] == "dry run: nothing was written"

    assert "done now: 16 images segmented, 12 composed" in run_in9(*flags).stdout
    manifest = manifest_of(output)
    images_of = manifest["images"]["val"]
    assert images_of["listed"] == 19
    assert manifest["rejections"]["val"]["no_background"] == int(without_partner) == 2
    # Two images of one class could not be segmented.
    assert images_of["accepted"] == int(forecast[0]) == int(accepted) - int(without_partner) == 12
    size = sum(f["bytes"] for f in manifest["files"] if not f["path"].startswith("index/"))
    assert abs(float(forecast[1]) * 1e6 / size - 1) < 0.15
    rejections = manifest["rejections"]["val"]
    assert rejections["invalid_key"] == rejections["missing_annotation"] == 1

    before = stamps(output)
    again = run_in9(*flags, "--dry_run").stdout.splitlines()
    assert again[1] == lines[1]
    assert again[2] == "val: 16 segmented already, 0 to segment"
    assert again[3] == lines[3].removesuffix(", or more, if others are rejected")
    gap = table_of(output, "gaps")[0]
    assert again[4:7] == [
        "dataset: up to date",
        "smallest BG-Gap that 12 images would show in 8 of 10 draws, in points: "
        f"{100 * float(gap['smallest_gap']):.1f} for efficientnet_lite0, by its results on 12 "
        "images",
        "efficientnet_lite0: evaluated already",
    ]
    assert stamps(output) == before

    # After a change of one picture, only that one is to be segmented.
    images[5].write_bytes(images[5].read_bytes()[:-2] + b"\xff\xfe\x00\x04in\xff\xd9")
    third = run_in9(*flags, "--dry_run").stdout.splitlines()
    assert third[2] == "val: 15 segmented already, 1 to segment"
    # Another seed leaves nothing to segment, but everything to compose.
    other = run_in9("generate", *flags[1:], "--dry_run", "--seed", 1, check=2)
    assert "--seed=1 (the dataset has 0)" in other.stderr
    other = run_in9("generate", *flags[1:], "--dry_run", "--seed", 1, "--overwrite", "config")
    assert "up to date" not in other.stdout
    assert stamps(output) == before


def test_nothing_to_estimate_is_said(tiny_input: Path, tmp_path: Path) -> None:
    for xml in tiny_input.glob("Annotations/val/*.xml"):
        xml.write_text("<annotation>")
    dry_run = run_in9("generate", "--input", tiny_input, "--output", tmp_path / "out", "--dry_run")
    assert "6 rejected for name or annotation alone (6 unreadable_annotation)" in dry_run.stdout
    assert "no image is left to segment" in dry_run.stdout
    assert not (tmp_path / "out").exists()


def test_what_an_attack_will_take_is_said_and_its_flags_are_checked(
    small_sample: Path, tmp_path: Path
) -> None:
    flags = ("run", "--input", small_sample, "--output", tmp_path / "out", "--dry_run")
    done = run_in9(*flags, "--attack", "4x3")
    assert re.search(r"efficientnet_lite0: about .* with 12 composites", done.stdout)
    refused = run_in9(*flags, "--attack", 4, "--variants", "original,only_fg", check=2)
    assert "the dataset has no fg_mask, only_bg_t" in refused.stderr


def test_an_impossible_size_in_an_annotation_rejects_before_the_first_run(
    run_small: Run, small_input: Path
) -> None:
    xml = min(small_input.glob("Annotations/val/*.xml"))
    xml.write_text(re.sub("<width>.*?</width>", "<width>0</width>", xml.read_text()))
    printed = run_small("generate", "--segmenter", "box", "--dry_run")
    assert "1 rejected for name or annotation alone (1 size_mismatch)" in printed
    assert "0 segmented already, 17 to segment" in printed


def test_of_images_with_one_key_the_forecast_takes_that_of_the_job(
    run_small: Run, small_input: Path, tmp_path: Path
) -> None:
    first, *_, last = pictures_of(small_input)
    keys = [first.stem, last.stem]
    # The lower path has the lower MD5 for the first key, and the higher MD5 for the second.
    for picture, is_reversed in ((first, False), (last, True)):
        other = (last if picture is first else first).parent / picture.name
        shutil.copy(picture, other)
        darken(other)
        contents = sorted(
            (md5(path.read_bytes()).hexdigest(), path.read_bytes()) for path in (picture, other)
        )
        paths = sorted([picture, other], reverse=is_reversed)
        for path, (_, content) in zip(paths, contents, strict=True):
            path.write_bytes(content)
    flags = ("--segmenter", "box", *keys(max_box=1))
    run_small("generate", *flags)
    index = index_of(tmp_path / "out")
    accepted = {row["key"]: row["path"] for row in index if row["status"] == "accepted"}
    words = ["generate", "--input", str(small_input), "--output", str(tmp_path / "out"), *flags]
    words += [*keys(images_per_shard=2), "--formats", "parquet"]
    arguments, _ = parse_command_line([*words, "--variants", "original,mixed_same,mixed_rand"])
    job = job_from_flags(arguments, Store(str(tmp_path / "out")))
    split = forecast_split(job, *job.layouts)
    images = [*split.accepted, *split.left]
    taken = {image.key: image.location.path for image in images if image.key in keys}
    assert set(taken) == set(keys)
    assert all(path.endswith(accepted[key]) for key, path in taken.items())


def test_a_name_that_cannot_be_printed_stops_no_later_forecast(
    run_small: Run, small_input: Path
) -> None:
    picture = pictures_of(small_input)[0]
    shutil.copy(picture, picture.with_name("a\x01b.JPEG"))
    run_small("generate", "--segmenter", "box")
    assert "(1 invalid_key)" in run_small("generate", "--segmenter", "box", "--dry_run")


def test_a_damaged_record_leaves_its_images_to_segment(run_small: Run, tmp_path: Path) -> None:
    run_small("generate", "--segmenter", "box")
    record = max((tmp_path / "out" / "layers").glob("*.parquet"), key=lambda p: p.stat().st_size)
    data = bytearray(record.read_bytes())
    data[4:400] = bytes(396)  # The metadata at the end stays as it is.
    record.write_bytes(data)
    printed = run_small("generate", "--segmenter", "box", "--dry_run")
    assert re.search("val: 1[0-7] segmented already, [1-8] to segment", printed)
    assert "dataset: up to date" not in printed


def test_what_is_held_out_of_the_evaluation_is_not_estimated(run_small: Run) -> None:
    flags = ("--segmenter", "box", "--dry_run")
    counts = [
        int(re.findall(r"for (\d+) pictures on", run_small("run", *flags, *holdout))[0])
        for holdout in ((), ("--holdout", "0.5"))
    ]
    assert counts[1] == pytest.approx(counts[0] / 2, abs=1)


def test_a_dataset_that_does_not_fit_on_the_disk_is_foreseen(
    run_small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("generate", "--segmenter", "box", "--dry_run")
    assert "too little" not in run_small(*flags)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    printed = " ".join(run_small(*flags).split())
    assert "; 1 kB free, too little; free some space for " in printed


def test_images_with_several_objects_are_measured_once(run_small: Run, small_input: Path) -> None:
    for xml in small_input.glob("Annotations/val/*.xml"):
        boxes = re.findall("<object>.*?</object>", xml.read_text(), re.DOTALL)
        xml.write_text(xml.read_text().replace(boxes[0], boxes[0] * 2))
    flags = ("--segmenter", "box", "--objects", "each")
    run_small("generate", *flags)
    again = (*flags, "--seed", "1", "--overwrite", "config", "--dry_run")
    assert "measured on 18 images" in run_small("generate", *again)
