"""Tests reruns after changes, kills and damage: they repeat no work and lose nothing."""

import itertools
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from runs import (
    ONE,
    QUICK,
    SHARDS,
    TINY_MODEL,
    Run,
    index_of,
    keys,
    manifest_of,
    pictures_of,
    refusal,
    results_of,
    run_here,
    run_in9,
    run_program,
    stamps,
    words_of,
)
from soundness import assert_sound

import in9
from pipeline.commands.cli import main
from pipeline.dataset.records import ShardCounts
from pipeline.storage.files import LocalFiles
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9
from transforms.variants import MIXED


def changed_shards(before: dict[str, int], after: dict[str, int], folder: str) -> set[int]:
    """Returns the numbers of a folder's shards that were written or removed in between."""
    return {
        int(Path(path).stem.split("-")[1])
        for path in before.keys() | after.keys()
        if path.startswith(f"{folder}/") and before.get(path) != after.get(path)
    }


def rows_of(output: Path) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in index_of(output)}


@pytest.mark.usefixtures("no_figures")
def test_an_update_makes_what_has_changed_and_no_more(small_input: Path, tmp_path: Path) -> None:
    """Adds a picture, alters one, and removes one."""
    output, aside = tmp_path / "out", tmp_path / "aside.JPEG"
    flags = (*QUICK, *keys(images_per_shard=2), "--variants", ",".join(("original", *MIXED)), *ONE)
    models = (*TINY_MODEL, "--pictures", "none")
    removed, altered, added = pictures_of(small_input)[3:14:5]
    added.rename(aside)
    run_here("run", "--input", small_input, *flags, *models, "--output", output)
    before, old = stamps(output), rows_of(output)
    aside.rename(added)
    removed.unlink()
    # A JPEG comment changes the bytes but not the pixels.
    altered.write_bytes(altered.read_bytes()[:-2] + b"\xff\xfe\x00\x04in\xff\xd9")
    update = ("--output", output, "--overwrite", "rebuild")
    printed, after, now = (
        run_here("run", "--input", small_input, *flags, *models, *update).out,
        stamps(output),
        rows_of(output),
    )
    counts = ShardCounts(**manifest_of(output)["shards"]["val"])
    concerned = {removed.stem, altered.stem, added.stem}
    assert "done now: 2 images segmented" in printed
    made = {counts.source_shard(key) for key in concerned}
    assert changed_shards(before, after, "layers") == made
    assert f"shards made: {len(made)} of {counts.source} source" in printed
    pairs = [f"{name}_bg_key" for name in MIXED]
    kept = now.keys() & old.keys()
    repaired = {key for key in kept if any(now[key][name] != old[key][name] for name in pairs)}
    composed = {counts.source_shard(key) % counts.output for key in concerned | repaired}
    assert len(composed) < counts.output
    for folder in ("index", *(f"parquet/{name}" for name in ("original", *MIXED))):
        assert changed_shards(before, after, folder) == composed
    assert changed_shards(before, after, "results/python_tiny_models_first") <= composed
    held = [output / path for path in after if path.endswith((".parquet", ".tar"))]
    assert not any(removed.stem.encode() in path.read_bytes() for path in held)
    run_here("generate", "--input", small_input, *flags, "--output", tmp_path / "fresh")
    fresh = (tmp_path / "fresh" / "manifest.json").read_bytes()
    assert fresh == (output / "manifest.json").read_bytes()


def test_what_the_maker_states_stays_and_rewrites_the_card_alone(
    small_sample: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = ("generate", "--input", small_sample, *QUICK, *ONE, "--output", output)
    run_here(*command)
    first, files, times = manifest_of(output), results_of(output), stamps(output)
    assert "dataset: up to date" not in run_here(*command, *keys(creator="Ann"), "--dry_run").out
    assert stamps(output) == times
    printed = run_here(*command, *keys(creator="Ann", terms="research only")).out
    assert "0 images segmented, 0 composed" in printed
    rewritten = {path for path, time in stamps(output).items() if time != times[path]}
    assert rewritten == {"README.md", "croissant.json", "manifest.json"}
    after = manifest_of(output)
    assert after["about"] == {"creator": "Ann", "contact": "", "terms": "research only"}
    assert {**after, "about": None, "files": None} == {**first, "about": None, "files": None}
    assert_sound(output)
    run_here(*command, *keys(terms="", contact="ann@example.org"))
    expected = {"creator": "Ann", "contact": "ann@example.org", "terms": ""}
    assert manifest_of(output)["about"] == expected
    run_here(*command, *keys(creator="", contact=""))
    assert results_of(output) == files


def test_a_background_that_moves_to_a_sibling_class_changes_the_samples_that_show_it(
    small_input: Path, tmp_path: Path
) -> None:
    output, fresh = tmp_path / "out", tmp_path / "fresh"
    flags = ("generate", "--input", small_input, *QUICK, *keys(images_per_shard=2), *ONE)
    flags += ("--variants", "original,mixed_same,mixed_rand")
    run_here(*flags, "--output", output)
    shown = in9.open_dataset(output, "mixed_rand")[0][2]
    (picture,) = small_input.glob(f"val/*/{shown['bg_key']}.JPEG")
    taxonomy, wnid = imagenet9(), picture.parent.name
    siblings = (each for each in taxonomy.wnids if taxonomy.label_of(each) == shown["bg_label"])
    sibling = next(each for each in siblings if each != wnid)
    (small_input / "val" / sibling).mkdir()
    picture.rename(small_input / "val" / sibling / picture.name)
    annotation = small_input / "Annotations" / "val" / f"{picture.stem}.xml"
    annotation.write_text(annotation.read_text().replace(wnid, sibling))
    run_here(*flags, "--output", output, "--overwrite", "rebuild")
    run_here(*flags, "--output", fresh)
    assert in9.open_dataset(output, "mixed_rand")[0][2] == {**shown, "bg_wnid": sibling}
    assert (output / "manifest.json").read_bytes() == (fresh / "manifest.json").read_bytes()


def test_without_a_compiler_opencv_segments_with_a_warning(
    one_worker: Path, small_sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    folders = ("--input", small_sample, "--output", tmp_path / "out")
    # A new interpreter, because forks inherit loaded kernels.
    command = (sys.executable, "-m", "pipeline", "generate", *folders, *SHARDS)
    done = run_program(*command)
    assert done.stderr.count("GrabCut runs in OpenCV") == 1
    assert "NUMBA_DISABLE_JIT" in done.stderr
    assert "18 of the images were segmented by OpenCV" in done.stdout
    assert manifest_of(tmp_path / "out") == manifest_of(one_worker)


@pytest.fixture
def killed_at_move(monkeypatch: pytest.MonkeyPatch) -> Callable[..., bool]:
    """A function that runs a command and tells whether it failed: at a move of this number."""
    original = Store.move

    def run(number: int, *command: object) -> bool:
        moves = iter(range(1000))

        def move(self: Store, source: str, target: str) -> None:
            if next(moves) == number:
                raise OSError("killed")
            original(self, source, target)

        with monkeypatch.context() as patch:
            patch.setattr(Store, "move", move)
            return main(words_of(command)) != 0

    return run


def test_resharding_copies_layers_and_is_finished_by_the_same_command_if_it_is_killed(
    one_worker: Path, small_sample: Path, tmp_path: Path, killed_at_move: Callable[..., bool]
) -> None:
    command = ("generate", "--input", small_sample, *keys(images_per_shard=18), *ONE, "--output")
    run_here(*command, tmp_path / "fresh")
    expected = (tmp_path / "fresh" / "manifest.json").read_bytes()
    # The run is killed after the manifest's move, or after the layers'.
    for last in (1, 3):
        output = Path(shutil.copytree(one_worker, tmp_path / str(last)))
        assert " images_per_shard=18" in refusal(*command, output)
        run = (*command, output, "--overwrite", "shards")
        assert killed_at_move(last, *run)
        assert "0 images segmented" in run_here(*run).out
        assert (output / "manifest.json").read_bytes() == expected


def test_a_commit_can_be_killed_after_any_move(
    tiny_input: Path, tmp_path: Path, killed_at_move: Callable[..., bool]
) -> None:
    """Kills Commit before each of its moves, and checks that the next run mends the dataset."""
    flags = (*QUICK, "--variants", "original,mixed_rand", *ONE)
    command = ("generate", "--input", tiny_input, *flags, "--output")
    run_here(*command, tmp_path / "before")
    victim = pictures_of(tiny_input)[0]
    # A JPEG comment changes the bytes but not the pixels.
    victim.write_bytes(victim.read_bytes()[:-2] + b"\xff\xfe\x00\x04in\xff\xd9")
    run_here(*command, tmp_path / "after")
    expected = (tmp_path / "after" / "manifest.json").read_bytes()
    assert expected != (tmp_path / "before" / "manifest.json").read_bytes()
    for number in itertools.count():
        output = Path(shutil.copytree(tmp_path / "before", tmp_path / f"killed-{number}"))
        was_killed = killed_at_move(number, *command, output)
        if number == 0:
            # Until Commit moves files, the dataset keeps every byte.
            assert results_of(output) == results_of(tmp_path / "before")
        run_here(*command, output)
        assert (output / "manifest.json").read_bytes() == expected
        assert_sound(output)
        assert not (output / ".in9" / "staging").exists()
        assert not (output / ".in9" / "manifest.previous.json").exists()
        if not was_killed:
            break
    # Commit moves at least the manifest, an index and a file of each kind.
    assert number > 4


def test_a_duplicate_takes_the_place_of_the_picture_that_won(
    tiny_input: Path, tmp_path: Path
) -> None:
    images = pictures_of(tiny_input)
    shutil.copy(images[0], images[-1].parent / images[0].name)
    output, fresh = tmp_path / "out", tmp_path / "fresh"
    flags = (*QUICK, "--variants", "original", *ONE, "--output")
    command = ("generate", "--input", tiny_input, *flags)
    run_here(*command, output)
    assert manifest_of(output)["rejections"]["val"]["duplicate_key"] == 1
    images[0].unlink()
    run_here(*command, output)
    run_here(*command, fresh)
    assert "duplicate_key" not in manifest_of(output)["rejections"]["val"]
    assert (output / "manifest.json").read_bytes() == (fresh / "manifest.json").read_bytes()


def test_damage_is_not_committed_again(
    one_worker: Path, small_sample: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(one_worker, tmp_path / "out"))
    victim = output / "index" / "val-00001-of-00003.parquet"
    data, before = victim.read_bytes(), (output / "manifest.json").read_bytes()
    command = ("generate", "--output", output, "--input", small_sample, *SHARDS, *ONE)
    victim.write_bytes(data.replace(b"parquet-cpp", b"parquet-CPP"))  # All rows can be read.
    assert f"{victim} has changed since it was committed" in run_here(*command, code=1).err
    assert (output / "manifest.json").read_bytes() == before
    victim.write_bytes(data[:4] + bytes(400) + data[404:])
    # A record that lacks images, whose schema, fingerprint and footer stay valid.
    record = sorted((output / "layers").glob("*.parquet"))[0]
    whole = record.read_bytes()
    pq.write_table(pq.read_table(record)[:1], record)
    assert f"{record} is damaged (it lists 1 image)" in run_in9(*command).stderr
    assert (output / "manifest.json").read_bytes() == before
    assert (victim.read_bytes(), record.read_bytes()) == (data, whole)


def test_a_layer_that_is_corrupted_on_the_way_is_no_damage(
    run_small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small("generate", *ONE)
    read_ranges, seen = LocalFiles.read_ranges, Counter[str]()

    def read(files: LocalFiles, path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        seen[f"{path} {ranges}"] += 1
        parts = read_ranges(files, path, ranges)
        return [bytes(len(part)) for part in parts] if seen[f"{path} {ranges}"] == 1 else parts

    monkeypatch.setattr(LocalFiles, "read_ranges", read)
    again = ("generate", *ONE, "--seed", "1", "--overwrite", "config")
    assert "has changed while it was read" in run_small(*again, code=1)


def test_a_dataset_that_grows_keeps_its_shards(tiny_input: Path, tmp_path: Path) -> None:
    images, aside = pictures_of(tiny_input)[1::2], tmp_path / "aside"
    aside.mkdir()
    for image in images:
        image.rename(aside / image.name)
    command = ("generate", *QUICK, "--variants", "original", *keys(images_per_shard=2))
    command += ("--input", tiny_input, *ONE, "--output")
    output, fresh = tmp_path / "out", tmp_path / "fresh"
    run_here(*command, output)
    small = manifest_of(output)["shards"]["val"]
    for image in images:
        (aside / image.name).rename(image)
    run_here(*command, output, "--overwrite", "rebuild")
    assert manifest_of(output)["shards"]["val"] == small
    run_here(*command, output, "--overwrite", "shards")
    run_here(*command, fresh)
    assert manifest_of(fresh)["shards"]["val"] != small
    assert (output / "manifest.json").read_bytes() == (fresh / "manifest.json").read_bytes()
