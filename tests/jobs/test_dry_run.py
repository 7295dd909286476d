"""Tests that --dry_run forecasts what the job then does, and writes nothing."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from runs import (
    TINY_MODEL,
    Run,
    keys,
    manifest_of,
    pictures_of,
    run_here,
    run_in9,
    stamps,
    table_of,
)

pytestmark = pytest.mark.usefixtures("no_figures")

MODEL = TINY_MODEL[1]


class Told(NamedTuple):
    """The lines of dry runs: before the job, after it, and after a picture has changed."""

    first: list[str]
    again: list[str]
    changed: list[str]
    output: Path
    flags: tuple[object, ...]


@pytest.fixture(scope="module")
def told(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What is said of 18 pictures with faults, and of one of another class."""
    folder = tmp_path_factory.mktemp("told")
    source = Path(shutil.copytree(small_sample, folder / "input"))
    images = sorted(source.glob("val/*/*.JPEG"))
    xml = [source / "Annotations" / "val" / f"{image.stem}.xml" for image in images]
    boxes = re.findall("<object>.*?</object>", xml[0].read_text(), re.DOTALL)
    xml[0].write_text(xml[0].read_text().replace(boxes[0], boxes[0] * 2))
    xml[-1].unlink()
    shutil.copy(images[2], images[2].with_name("a\x01b.JPEG"))
    (images[2].parent / "notes.txt").write_text("?")
    (source / "val" / "n02123045").mkdir()
    shutil.copy(images[2], source / "val" / "n02123045" / "cat.JPEG")
    output = folder / "new" / "out"
    flags = ("run", "--input", source, "--output", output, *keys(images_per_shard=6), *TINY_MODEL)

    first = run_in9(*flags, "--dry_run").stdout.splitlines()
    assert list(folder.iterdir()) == [source]
    assert "done now: 16 images segmented, 12 composed" in run_in9(*flags).stdout
    before = stamps(output)
    again = run_in9(*flags, "--dry_run").stdout.splitlines()
    images[5].write_bytes(images[5].read_bytes()[:-2] + b"\xff\xfe\x00\x04in\xff\xd9")
    changed = run_in9(*flags, "--dry_run").stdout.splitlines()
    assert stamps(output) == before
    return Told(first, again, changed, output, flags)


def test_what_names_and_annotations_show_is_said(told: Told) -> None:
    counts = [int(count) for count in re.findall(r"[a-z] (\d+)[,)]", told.first[0])]
    assert told.first[0].startswith("val: 19 images (dog ")
    assert (len(counts), sum(counts)) == (9, 19)
    assert told.first[0].endswith("1 of other classes, 1 other file")
    # The only images left of their classes have no partner for mixed_same.
    assert told.first[1:4] == [
        "val: 3 rejected for name or annotation alone "
        "(1 invalid_key, 1 missing_annotation, 1 not_one_box)",
        "val: 0 segmented already, 16 to segment",
        "val: 2 of them without a background for every mixed variant (no_background), or more, if "
        "others are rejected",
    ]
    assert told.first[-1] == "dry run: nothing was written"


def test_times_follow_from_what_was_measured(told: Told) -> None:
    printed = "\n".join(told.first)
    measured = re.findall(r": segment ([\d.]+) s an .* compose ([\d.]+) s\n", printed)
    segment, compose = map(float, measured[0])
    estimate = re.search(
        r"^estimate: (\d+) s with --direct_num_workers (\d+) \(one core: (\d+) s \+- \d+ s "
        r"to segment, at most (\d+) s to compose\)$",
        printed,
        re.MULTILINE,
    )
    assert estimate
    seconds, workers, *of_one_core = map(int, estimate.groups())
    parts = 16 * segment, 12 * compose
    expected = (sum(parts) / workers, *parts)
    assert [seconds, *of_one_core] == pytest.approx(expected, abs=0.6)
    assert re.search(rf"{MODEL}: about .* pictures on cpu \(.* a second\)", printed)


def test_the_smallest_gap_that_would_show_is_said(told: Told) -> None:
    # Nothing is known of the model yet: x = (t(0.975) + t(0.8)) sqrt((0.2 + x (1 - x)) / 12), by
    # tables of t.
    x = 0.5904
    assert x == pytest.approx((2.201 + 0.876) * ((0.2 + x * (1 - x)) / 12) ** 0.5, abs=1e-4)
    unseen = "points will often be missed with 12 images"
    assert f"gaps below about 59.0 {unseen}" in told.first
    gap = 100 * float(table_of(told.output, "gaps")[0]["smallest_gap"])
    assert f"gaps of {MODEL}, by its results, below about {gap:.1f} {unseen}" in told.again
    assert "models: tested on 12 images of split val" in told.first
    assert "models: tested on 12 images of split val" in told.again


@pytest.fixture(scope="module")
def in_groups(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Flags for 30 pictures of two classes; those of a class come from five kitchens."""
    folder = tmp_path_factory.mktemp("groups")
    rng = np.random.default_rng(0)
    rows = ["image,class,xmin,ymin,xmax,ymax,group"]
    for number in range(30):
        pixels = rng.integers(0, 255, (72, 72, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{('cup', 'fork')[number % 2]},24,24,48,48,kitchen {number % 5}")
    (folder / "input_table.csv").write_text("\n".join(rows))
    (folder / "kinds.csv").write_text("class,superclass\ncup,dishes\nfork,cutlery\n")
    flags = ("--input", folder, "--taxonomy", folder / "kinds.csv", "--segmenter", "box")
    flags += ("--variants", "original,mixed_same,mixed_rand", "--formats", "parquet")
    return (*flags, "--image_size", "64", *keys(resize=72))


GATE = ("--fail_if", "bg_gap>0.1,original<0.7", *TINY_MODEL)
UNDECIDED = (
    "30 images in 5 groups: no gate can decide, because that takes 10 images, or groups that count "
    "alike"
)


def test_of_images_in_groups_few_are_known_to_decide_nothing(
    in_groups: tuple[object, ...], tmp_path: Path
) -> None:
    printed = run_here(
        "run", *in_groups, "--output", tmp_path / "out", "--dry_run", *GATE
    ).out.splitlines()
    assert UNDECIDED in printed
    # As above, with the degrees of freedom of five groups.
    x = 0.4542
    assert x == pytest.approx((2.776 + 0.941) * ((0.2 + x * (1 - x)) / 30) ** 0.5, abs=1e-4)
    missed = "gaps below about 45.4 points will often be missed with 30 images in 5 groups"
    assert missed in printed
    assert not (tmp_path / "out").exists()
    # The same is said of the finished dataset, by the command that would test the models.
    run_here("generate", *in_groups, "--output", tmp_path / "out")
    before = stamps(tmp_path / "out")
    printed = run_here(
        "evaluate", "--dataset", tmp_path / "out", "--dry_run", *GATE
    ).out.splitlines()
    assert printed[:3] == [
        "models: tested on 30 images in 5 groups of split val",
        UNDECIDED,
        missed,
    ]
    assert stamps(tmp_path / "out") == before


def test_a_dry_run_of_an_evaluation_says_what_is_left(told: Told) -> None:
    before = stamps(told.output)
    flags = ("evaluate", "--dataset", told.output, "--dry_run", "--models")
    tested, gate, of_model, of_other, done, left, end = run_here(
        *flags, f"{MODEL},python:tiny_models:second", "--fail_if", "bg_gap>0.1,original<0.7"
    ).out.splitlines()
    assert tested == "models: tested on 12 images of split val"
    # Two conditions on two models: intervals are at 1 - 0.05 / 4.
    (points,) = re.findall(
        r"^--fail_if: true values within about ([\d.]+) points of a limit will often stay open, "
        r"with 98\.75 % intervals$",
        gate,
    )
    missed = "points will often be missed with 12 images"
    known = f"gaps of {MODEL}, by its results, below about"
    assert re.fullmatch(rf"{known} [\d.]+ {missed}", of_model)
    assert of_other == f"gaps below about 59.0 {missed}"
    assert float(points) > 59.0
    assert done == f"{MODEL}: evaluated already"
    assert re.match(r"python:tiny_models:second: about .* for 96 pictures on cpu \(", left)
    assert end == "dry run: nothing was written"
    assert stamps(told.output) == before


def test_a_file_of_answers_needs_no_time(told: Told, tmp_path: Path) -> None:
    dataset = ("--dataset", told.output)
    run_here("export", *dataset, "--layout", "answers", "--to", tmp_path / "table.csv")
    head, *rows = (tmp_path / "table.csv").read_text().splitlines()
    answers = tmp_path / "answers.csv"
    answers.write_text("\n".join([f"{head},label", *(f"{row},0" for row in rows)]))
    done = run_in9("evaluate", *dataset, "--models", f"answers:{answers}", "--dry_run")
    assert f"answers:{answers}: its file has the answers to 96 pictures\n" in done.stdout


def test_the_job_makes_what_was_forecast(told: Told) -> None:
    printed = "\n".join(told.first)
    (accepted,) = re.findall(r"an image, (\d+) of 16 accepted", printed)
    (forecast,) = re.findall(r"about (\d+) images in the dataset, ([\d.]+) MB", printed)
    manifest = manifest_of(told.output)
    images_of, rejections = manifest["images"]["val"], manifest["rejections"]["val"]
    assert (images_of["listed"], rejections["no_background"]) == (19, 2)
    assert rejections["invalid_key"] == rejections["missing_annotation"] == 1
    # Two images of one class could not be segmented.
    assert images_of["accepted"] == int(forecast[0]) == int(accepted) - 2 == 12
    size = sum(f["bytes"] for f in manifest["files"] if not f["path"].startswith("index/"))
    assert abs(float(forecast[1]) * 1e6 / size - 1) < 0.15


def test_what_is_done_is_not_to_be_done_again(told: Told) -> None:
    assert told.again[:4] == [
        *told.first[:2],
        "val: 16 segmented already, 0 to segment",
        told.first[3].removesuffix(", or more, if others are rejected"),
    ]
    assert told.again[4] == "dataset: up to date"
    assert told.again[7:] == [f"{MODEL}: evaluated already", "dry run: nothing was written"]
    assert told.changed[2] == "val: 15 segmented already, 1 to segment"
    # Another seed leaves nothing to segment, but everything to compose.
    seed = ("generate", *told.flags[1:-2], "--dry_run", "--seed", 1)
    assert "--seed=1 (the dataset has 0)" in run_in9(*seed, check=2).stderr
    assert "up to date" not in run_in9(*seed, "--overwrite", "config").stdout


def test_a_dataset_of_broken_pictures_is_estimated_as_empty(
    run_small: Run, small_input: Path
) -> None:
    for picture in pictures_of(small_input):
        picture.write_bytes(picture.read_bytes()[:100])
    printed = run_small("run", "--dry_run", *TINY_MODEL)
    assert "0 of 18 accepted; compose 0.000 s" in printed
    assert "estimate: about 0 images in the dataset, 0 B (0 B layers, 0 B parquet)" in printed


def test_nothing_to_estimate_is_said(tiny_input: Path, run_small: Run, tmp_path: Path) -> None:
    for xml in tiny_input.glob("Annotations/val/*.xml"):
        xml.write_text("<annotation>")
    printed = run_small("generate", "--dry_run")
    assert "6 rejected for name or annotation alone (6 unreadable_annotation)" in printed
    assert "no image is left to segment" in printed
    assert not (tmp_path / "out").exists()


def test_what_an_attack_will_take_is_said(run_small: Run) -> None:
    variants = ("--variants", "original,fg_mask,only_bg_t")
    printed = run_small("run", "--dry_run", "--attack", "4x3", *variants, *TINY_MODEL)
    assert re.search(rf"{MODEL}: about .* with 12 composites", printed)


def test_an_impossible_size_in_an_annotation_rejects_before_the_first_run(
    run_small: Run, small_input: Path
) -> None:
    xml = min(small_input.glob("Annotations/val/*.xml"))
    xml.write_text(re.sub("<width>.*?</width>", "<width>0</width>", xml.read_text()))
    printed = run_small("generate", "--dry_run")
    assert "1 rejected for name or annotation alone (1 size_mismatch)" in printed
    assert "0 segmented already, 17 to segment" in printed


def test_what_is_held_out_of_the_evaluation_is_not_estimated(run_small: Run) -> None:
    flags = ("--dry_run", *TINY_MODEL)
    counts = [
        int(re.findall(r"for (\d+) pictures on", run_small("run", *flags, *holdout))[0])
        for holdout in ((), ("--holdout", "0.5"))
    ]
    assert counts[1] == pytest.approx(counts[0] / 2, abs=1)


def test_a_dataset_that_does_not_fit_on_the_disk_is_foreseen(
    run_small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("generate", "--dry_run")
    assert "too little" not in run_small(*flags)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    printed = " ".join(run_small(*flags).split())
    assert "; 1 kB free, too little; free some space for " in printed


def test_images_with_several_objects_are_measured_once(run_small: Run, small_input: Path) -> None:
    for xml in small_input.glob("Annotations/val/*.xml"):
        boxes = re.findall("<object>.*?</object>", xml.read_text(), re.DOTALL)
        xml.write_text(xml.read_text().replace(boxes[0], boxes[0] * 2))
    flags = ("--objects", "each")
    run_small("generate", *flags)
    again = (*flags, "--seed", "1", "--overwrite", "config", "--dry_run")
    assert "measured on 18 images" in run_small("generate", *again)
