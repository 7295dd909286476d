"""Tests imports of the released layout: its pixels stay, and true backgrounds are found."""

import dataclasses
import io
import itertools
import os
import re
import shutil
import signal
import tarfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import killed_before_change
from PIL import Image
from released_folders import samples_of, truth_of
from runs import (
    ONE,
    TINY_MODEL,
    dataset_in,
    index_of,
    keys,
    manifest_of,
    refusal,
    run_here,
    run_in9,
    stamps,
    start_in9,
    table_of,
    wait_until,
)
from soundness import assert_sound

from pipeline.dataset.manifest import About
from pipeline.errors import UsageError
from pipeline.generate.commit import read_prepared, restate
from pipeline.released.archive_listing import (
    ArchiveLocation,
    ReleasedArchive,
    read_listing,
)
from pipeline.runtime import progress
from pipeline.storage.store import Store
from transforms.codec import decode_image, decode_mask, encode_npy
from transforms.matching import block_means, block_means_outside, compare, decide, nearest
from transforms.taxonomy import imagenet9
from transforms.variants import MIXED, PAPER

pytestmark = pytest.mark.usefixtures("no_figures")

SMALL = keys(images_per_shard=20)


@pytest.fixture(scope="module")
def archive(export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export as a compressed tar, with three faults that real archives have.

    The pictures of mixed_rand carry the names of mixed_next, one picture is cut off, and one is
    missing in one version.
    """
    path = tmp_path_factory.mktemp("archive") / "bg_challenge.tar.gz"
    broken, absent = sorted(truth_of(export))[:2]
    next_names = {p.name[:22]: p.name for p in (export / "mixed_next").rglob("*.JPEG")}
    assert len(next_names) == 70
    with tarfile.open(path, "w:gz") as tar:
        for file in sorted(export.rglob("*")):
            if not file.is_file() or ".in9" in file.parts:
                continue
            name, data = file.relative_to(export), file.read_bytes()
            if name.parts[0] == "mixed_rand":
                name = name.with_name(next_names[name.name[:22]])
            if name.parts[0] == "no_fg" and name.stem == broken:
                data = data[: len(data) // 2]
            if name.parts[0] == "only_fg" and name.stem == absent:
                continue
            member = tarfile.TarInfo(f"bg_challenge/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def imported(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset imported from the archive."""
    output = tmp_path_factory.mktemp("imported") / "out"
    done = run_in9("import", "--from", archive, "--output", output, *SMALL)
    assert "70 images, 68 accepted, 2 rejected (1 excluded, 1 undecodable)" in done.stdout
    assert "val mixed_next: found the true background of 68 of 68 images" not in done.stdout
    assert "only_bg_t is missing" not in done.stdout
    return output


def test_an_import_keeps_the_pixels_and_finds_the_true_backgrounds(
    imported: Path, export: Path, sample_run: Path
) -> None:
    assert_sound(imported)
    truth = truth_of(export)
    stems = {row["key"]: stem for stem, row in truth.items()}
    rejected = set(sorted(truth)[:2])
    for variant in PAPER:
        expected = {stems[s.key]: s for s in samples_of(sample_run, variant)}
        actual = {s.key: s for s in samples_of(imported, variant)}
        assert actual.keys() == truth.keys() - rejected
        for stem, sample in actual.items():
            ours, theirs = sample.fields, expected[stem].fields
            assert (ours["label"], ours["wnid"]) == (theirs["label"], theirs["wnid"])
            assert ours["fg_fraction"] == pytest.approx(theirs["fg_fraction"])
            if variant == "fg_mask":
                both = (decode_mask(s.image) for s in (sample, expected[stem]))
                assert np.array_equal(*both)
            else:
                assert sample.image == expected[stem].image
            if variant in MIXED:
                true = stems[truth[stem][f"{variant}_bg_key"]]
                # A background from a rejected image cannot be named, and no other is named instead.
                assert ours["bg_key"] == (None if true in rejected else true)
    selected = [row for row in index_of(imported) if row["selected"]]
    assert all(row["mixed_rand_bg_named"] is not None for row in selected)
    wrong = sum(row["mixed_rand_bg_named"] != row["mixed_rand_bg_key"] for row in selected)
    assert wrong >= 50
    # Nobody knows how they were cut out.
    assert "segmenter" not in manifest_of(imported)
    assert manifest_of(imported)["stages"] == {"import": 1}
    assert "GrabCut" not in (imported / "README.md").read_text()


def test_an_import_is_repeatable_and_rewrites_its_card_alone(
    imported: Path, archive: Path, tmp_path: Path
) -> None:
    before, command = stamps(imported), ("import", "--from", archive, *SMALL, "--output")
    assert "nothing to do" in run_here(*command, imported).out
    assert stamps(imported) == before
    assert not list((imported / ".in9").rglob("*.tar"))
    assert "was imported" in refusal("run", "--output", imported)
    recipe = ("--layout", "recipe", "--to", tmp_path / "r")
    assert "it was imported" in refusal("export", "--dataset", imported, *recipe)
    output = Path(shutil.copytree(imported, tmp_path / "out", copy_function=shutil.copy2))
    run_here(*command, output, *keys(creator="Ann"))
    rewritten = {path for path, time in stamps(output).items() if time != before[path]}
    assert rewritten == {"README.md", "croissant.json", "manifest.json"}
    assert manifest_of(output)["about"]["creator"] == "Ann"
    assert_sound(output)
    before = stamps(output)
    run_here(*command, output)
    assert stamps(output) == before


def test_an_import_can_be_stopped_and_goes_on(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    command = ("import", "--from", export, "--output", output, *keys(images_per_shard=3))
    running = start_in9(*command)
    wait_until(lambda: list(output.glob(".in9/staging/*/index/*.parquet")), running)
    os.killpg(running.pid, signal.SIGINT)
    out, error = running.communicate(timeout=60)
    assert (running.returncode, out) == (1, "")
    assert error == "in9 import: stopped; run the same command again to go on\n"
    assert not list(output.glob(".in9/lock*"))
    finished = {path.name: path.stat().st_mtime_ns for path in output.rglob("index/*.parquet")}
    assert not (output / "manifest.json").exists()
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.002)
    lines = run_here(*command).err.splitlines()
    shards = {path.name: path.stat().st_mtime_ns for path in output.glob("index/*.parquet")}
    assert {name: shards[name] for name in finished} == finished
    assert 0 < len(finished) < len(shards)
    assert {line.partition(":")[0] for line in lines} <= {"examine", "import"}
    assert any(re.match(r"import: \d+ of 70 images", line) for line in lines)
    assert not (output / ".in9" / "progress").exists()
    assert_sound(output)


def test_models_are_evaluated_and_attacked_on_published_pixels(imported: Path) -> None:
    """The pixels, whose predictions would be the same, are compared above."""
    flags = ("--dataset", imported, *TINY_MODEL, "--pictures", "none", *ONE)
    run_here("evaluate", *flags)
    run_here("attack", *flags, "--grid", 3)
    rows = table_of(imported, "summary", label_rule="argmax_then_map")
    assert [row["variant"] for row in rows] == [name for name in PAPER if name != "fg_mask"]
    assert {row["n"] for row in rows} == {"68"}
    (row,) = table_of(imported, "attack", label_rule="argmax_then_map")
    assert (row["foregrounds"], row["backgrounds"]) == ("3", "3")


def test_backgrounds_are_found_in_strong_jpeg_noise_and_never_guessed(sample_run: Path) -> None:
    dataset = [list(samples_of(sample_run, v))[:18] for v in ("original", "fg_mask", "only_bg_t")]
    originals = [decode_image(s.image) for s in dataset[0]]
    masks = [decode_mask(s.image) for s in dataset[1]]
    backgrounds = [_noisy(decode_image(s.image), 75) for s in dataset[2]]
    pool = np.stack([block_means(background) for background in backgrounds])
    for position, (image, mask) in enumerate(zip(originals, masks, strict=True)):
        true = (position + 7) % len(backgrounds)
        mixed = _noisy(np.where(mask[..., None], image, decode_image(dataset[2][true].image)), 50)
        means, free = block_means_outside(mixed, mask)
        (near,) = nearest(pool, means[None], free[None], 4)
        differences = compare(mixed, mask, [backgrounds[i] for i in near])
        assert differences is not None
        match = decide(differences)
        assert match.is_sure
        assert near[match.position] == true
        others = [backgrounds[i] for i in near if i != true]
        without = compare(mixed, mask, others)
        assert without is not None
        assert not decide(without).is_sure
        twice = compare(mixed, mask, [backgrounds[true], backgrounds[true]])
        assert twice is not None
        assert not decide(twice).is_sure
    assert compare(mixed, np.ones_like(mask), backgrounds) is None


def _noisy(image: Any, quality: int) -> Any:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=quality, subsampling=2)
    return decode_image(content.getvalue())


def commands_on(archive: Path, dataset: Path, new: Path) -> list[tuple[object, ...]]:
    """Returns the commands that import an archive: as a dataset, and as a variant of one."""
    outside = ("import", "--dataset", dataset, "--variant", f"haze={archive}")
    return [("import", "--from", archive, "--output", new), outside]


@pytest.mark.parametrize("name", ["../x", "/x", "link", "device"])
def test_members_that_are_no_plain_files_are_refused(
    name: str, quick_shards: Path, tmp_path: Path
) -> None:
    member = tarfile.TarInfo(name)
    member.type = {"link": tarfile.SYMTYPE, "device": tarfile.CHRTYPE}.get(name, tarfile.REGTYPE)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(member)
    for command in commands_on(tmp_path / "a.tar", quick_shards, tmp_path / "out"):
        assert "is refused" in refusal(*command)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x1f\x8b broken", "not a whole tar"),
        (b"<html>404", "is not a gzip archive (it begins with '<html>404'); download it again"),
    ],
)
def test_what_is_no_archive_is_refused(
    data: bytes, reason: str, quick_shards: Path, tmp_path: Path
) -> None:
    (tmp_path / "b.tar.gz").write_bytes(data)
    for command in commands_on(tmp_path / "b.tar.gz", quick_shards, tmp_path / "out"):
        assert reason in refusal(*command)


def listing(folder: Path, *variants: str) -> ReleasedArchive:
    """Lists an archive of one image, with these `<variant>/<split>`, as splits val and train."""
    picture = folder / "picture.png"
    Image.new("RGB", (64, 64)).save(picture)
    locations = []
    for variant in variants:
        stem = "n02085936_1"
        name = f"fg_{stem}_bg_{stem}.JPEG" if variant.startswith("mixed") else f"{stem}.JPEG"
        name = f"{stem}.npy" if variant.startswith("fg_mask") else name
        size = picture.stat().st_size
        locations.append(ArchiveLocation(f"{variant}/00_dog/{name}", str(picture), 0, size, "1"))
    return read_listing(
        "bg",
        locations,
        imagenet9(),
        splits=("val", "train"),
        formats=("parquet",),
        images_per_shard=10,
    )


def test_an_archive_without_a_variant_that_is_needed_is_told_which(tmp_path: Path) -> None:
    whole = ("original/val", "fg_mask/val", "original/train", "fg_mask/train")
    for position, missing in enumerate(whole):
        with pytest.raises(UsageError, match=f"^--from bg has no {missing}, which is needed$"):
            listing(tmp_path, *whole[:position], *whole[position + 1 :])


def test_a_draw_that_only_one_split_has_is_left_out(tmp_path: Path) -> None:
    shared = [f"{name}/{split}" for name in PAPER for split in ("val", "train")]
    draws = [f"{name}_r1/val" for name in MIXED]
    released = listing(tmp_path, *shared, *draws)
    assert released.config.compose.replicates == 1
    assert released.ignored == tuple(sorted(f"{name}_r1" for name in MIXED))
    both = listing(tmp_path, *shared, *draws, *(f"{name}_r1/train" for name in MIXED))
    assert both.config.compose.replicates == 2


def tiny_release(source: Path, stem: str, named: str) -> Path:
    """Writes the release of one picture; returns its mixed picture, whose name names `named`."""
    picture = io.BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")
    mixed = source / f"mixed_rand/val/00_dog/fg_{stem}_bg_{named}.JPEG"
    for path, data in (
        (source / f"original/val/00_dog/{stem}.JPEG", picture.getvalue()),
        (source / f"fg_mask/val/00_dog/{stem}.npy", encode_npy(np.ones((64, 64), bool))),
        (mixed, picture.getvalue()),
    ):
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    return mixed


def test_an_import_takes_up_the_background_that_a_new_name_claims(tmp_path: Path) -> None:
    source, output = tmp_path / "bg", tmp_path / "out"
    stem, other, third = "n02085936_1", "n01534433_2", "n01534433_3"
    mixed = tiny_release(source, stem, other)
    for named in (other, third):
        mixed = mixed.rename(mixed.with_name(f"fg_{stem}_bg_{named}.JPEG"))
        printed = run_here("import", "--from", source, "--output", output).out
        (row,) = index_of(output)
        assert row["mixed_rand_bg_named"] == named
        assert "\nonly_bg_t is missing, so backgrounds cannot be" in printed


def test_an_import_that_is_killed_while_it_rewrites_its_card_is_finished(tmp_path: Path) -> None:
    """Checks that the next run keeps what was stated, and imports nothing again."""
    tiny_release(tmp_path / "bg", "n02085936_1", "n01534433_2")
    command = ("import", "--from", tmp_path / "bg", "--output", tmp_path / "whole")
    run_here(*command, *keys(creator="Ann"))
    before, stated = stamps(tmp_path / "whole"), []
    for number in itertools.count(step=3):
        output = Path(
            shutil.copytree(tmp_path / "whole", tmp_path / "out", copy_function=shutil.copy2)
        )
        store, manifest = Store(str(output)), dataset_in(output).manifest
        bob = dataclasses.replace(manifest, about=About("Bob"))
        was_killed = killed_before_change(number, partial(restate, store, imagenet9(), bob))
        is_noted = read_prepared(store) is not None
        run_here(*command[:-1], output)
        stated.append(manifest_of(output)["about"]["creator"])
        assert stated[-1] == "Bob" or not is_noted
        rewritten = {path for path, time in stamps(output).items() if time != before[path]}
        assert rewritten <= {"README.md", "croissant.json", "manifest.json"}
        assert_sound(output)
        shutil.rmtree(output)
        if not was_killed:
            break
    assert stated == sorted(stated)
    assert {*stated} == {"Ann", "Bob"}
