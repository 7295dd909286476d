"""Versions of a dataset, what stops a rebuild, and what is said to have changed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import manifest_of, stamps
from gcs import BUCKET, gcs_server
from PIL import Image
from soundness import assert_sound

from pipeline.changes import note_changes
from pipeline.cli import main
from pipeline.command_line.versions import check_versioned, publish, results_store, seed
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.fingerprints import SEGMENT_VERSION
from pipeline.dataset.latest import Versions, reading_store
from pipeline.dataset.manifest import MANIFEST, stage_versions
from pipeline.dataset.records import RECORD_SCHEMA, ShardFiles, Staging, write_table
from pipeline.dataset.shards import ShardCounts, layer_record
from pipeline.errors import JobError, UsageError
from pipeline.generate.cut_source import shard_fingerprint
from pipeline.generate.guard import check_rebuild
from pipeline.sources.listing import SourceShard, SplitTotals
from pipeline.storage.gcs_files import GcsFiles
from pipeline.storage.local_files import LocalFiles
from pipeline.storage.store import Store

MODEL = """
import pathlib

import torch

def model():
    torch.manual_seed(int(pathlib.Path(__file__).with_name("seed").read_text()))
    layers = torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 1000)
    return torch.nn.Sequential(*layers)
"""
NAME = "python:versioned_models:model"

Run = Callable[..., str]


@pytest.fixture
def run(
    small_input: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs a command that makes tmp_path/out from `small_input`; gives what it prints."""
    (tmp_path / "versioned_models.py").write_text(MODEL)
    (tmp_path / "seed").write_text("1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "versioned_models", raising=False)

    def run(command: str = "run", *flags: str, code: int = 0) -> str:
        folders = ["--input", str(small_input), "--output", str(tmp_path / "out")]
        config = ["--images_per_shard", "2", "--formats", "parquet"]
        config += ["--variants", "original,mixed_same,mixed_rand", "--pictures", "none"]
        config += ["--models", NAME] if command == "run" else []
        assert main([command, *folders, *config, *flags]) == code
        printed = capsys.readouterr()
        return printed.out if code == 0 else printed.err

    return run


def pictures_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("val/*/*.JPEG"))


def darken(picture: Path) -> None:
    """Other pixels, which show the same."""
    with Image.open(picture) as before:
        after = before.point(lambda value: value * 7 // 8)
    after.save(picture, "JPEG", quality=95)


def latest_of(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "latest.json").read_text())
    return content


def changes_of(output: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / "changes.json").read_text())
    return content


def test_every_change_is_a_version_of_its_own(run: Run, small_input: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run("run", "--versioned")
    first = latest_of(output)
    fingerprint = manifest_of(output / first["version"])["fingerprint"]
    assert first["version"] == f"v-{fingerprint[:12]}"
    assert first["fingerprint"] == fingerprint
    before = stamps(output)
    assert "nothing to do" in run("run", "--versioned")
    assert stamps(output) == before

    picture = pictures_of(small_input)[3]
    original = picture.read_bytes()
    darken(picture)
    said = run("run", "--versioned")
    second = latest_of(output)
    assert second["versions"] == [second["version"], first["version"]]
    assert f"version: {output / second['version']} (older ones: 1)" in said
    assert f"report: {output / second['version'] / 'report.html'}" in said
    # The first is as it was; what both share is one file.
    assert {path: time for path, time in stamps(output).items() if path in before} == {
        **before,
        "latest.json": stamps(output)["latest.json"],
    }
    shared = {
        file["path"]
        for file in manifest_of(output / first["version"])["files"]
        if file in manifest_of(output / second["version"])["files"]
        # Of shards that were made again, other files may hold the same as before.
        and file["path"].startswith(("layers/", "index/"))
    }
    assert len(shared) > 15
    assert all(
        (output / first["version"] / path).samefile(output / second["version"] / path)
        for path in shared
    )
    for version in second["versions"]:
        assert_sound(output / version)
    assert changes_of(output / second["version"])["from"] == fingerprint
    assert not (output / first["version"] / "changes.json").exists()
    assert '<a href="changes.md">' in (output / second["version"] / "report.html").read_text()

    picture.write_bytes(original)
    run("generate", "--versioned")
    assert latest_of(output)["versions"] == [first["version"], second["version"]]
    pictures_of(small_input)[7].unlink()
    run("generate", "--versioned", "--keep", "1")
    third = latest_of(output)
    assert third["versions"][1:] == [first["version"]]
    assert {path.name for path in output.glob("v-*")} == set(third["versions"])


@pytest.fixture
def versions(one_worker: Path, tmp_path: Path) -> Versions:
    """Versions of which none is published yet."""
    made = Versions(Store(str(tmp_path / "versions")))
    shutil.copytree(one_worker, made.working.root)
    return made


def test_a_version_is_whole_or_has_no_manifest(
    versions: Versions, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = LocalFiles.copy
    for copied in (0, 5, 40, 1000):
        left = iter(range(copied))

        def copy(self: LocalFiles, source: str, target: str, left: Any = left) -> None:
            if next(left, None) is None:
                raise OSError("killed")
            whole(self, source, target)

        with monkeypatch.context() as patch:
            patch.setattr(LocalFiles, "copy", copy)
            if copied < 1000:
                with pytest.raises(OSError, match="killed"):
                    publish(versions)
                assert versions.latest() is None
                assert not list(Path(versions.output.root).glob("v-*/manifest.json"))
            else:
                name = publish(versions).folder
    assert_sound(versions.output.root)
    assert reading_store(versions.output.root) == versions.output.below(name)
    # What a job left that was killed while it published something else.
    half = Path(versions.output.root) / "v-0123456789ab"
    half.mkdir()
    (half / "README.md").write_text("")
    (Path(versions.output.root) / ".in9" / "publishing.json").write_text('"v-0123456789ab"')
    publish(versions)
    assert not half.exists()


def test_a_dataset_that_has_gone_comes_back_from_its_newest_version(
    versions: Versions,
) -> None:
    name = publish(versions).folder
    before = stamps(Path(versions.output.root))
    versions.output.delete_tree(".in9")
    with pytest.raises(UsageError, match="in9 run --versioned"):
        results_store(str(Path(versions.output.root)))
    assert seed(versions)
    assert not seed(versions)
    newest, working = versions.output.below(name), versions.working
    assert newest.sizes("") == working.sizes("")
    assert all(Path(newest.path(p)).samefile(working.path(p)) for p in newest.walk(""))
    assert publish(versions).folder == name
    assert stamps(Path(versions.output.root)) == before


def test_commands_on_results_publish_them(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    run("generate", "--versioned")
    version = output / latest_of(output)["version"]
    assert not (version / "results").exists()
    before = stamps(version)
    assert main(["evaluate", "--dataset", str(output), "--models", NAME, "--pictures=none"]) == 0
    assert latest_of(output)["version"] == version.name
    assert (version / "results" / "summary.csv").exists()
    assert (version / "report.html").exists()
    assert {path: time for path, time in stamps(version).items() if path in before} == before
    shutil.rmtree(next(output.glob(".in9/dataset/results/python*")))
    assert main(["report", "--dataset", str(output), "--pictures=none"]) == 0
    assert not list(version.glob("results/python*"))
    assert main(["verify", "--dataset", str(output)]) == 0
    (version / "index" / "val-00000-of-00009.parquet").write_bytes(b"")
    assert main(["verify", "--dataset", str(output)]) == 1


def test_outputs_stay_with_or_without_versions(
    one_worker: Path, versions: Versions, tmp_path: Path
) -> None:
    publish(versions)
    plain, versioned = Store(str(one_worker)), versions.output
    assert check_versioned(plain, False, None) is None
    assert check_versioned(versioned, True, 3) == Versions(versioned, 3)
    with pytest.raises(UsageError, match="leave --versioned out"):
        check_versioned(plain, True, None)
    with pytest.raises(UsageError, match="add --versioned"):
        check_versioned(versioned, False, None)
    with pytest.raises(UsageError, match="--keep is for outputs with --versioned"):
        check_versioned(plain, False, 1)
    with pytest.raises(UsageError, match="at least 0: got -1"):
        check_versioned(versioned, True, -1)
    (tmp_path / "versions" / "latest.json").write_text("{}")
    with pytest.raises(UsageError, match=r"latest\.json cannot be used"):
        versions.latest()


def test_changes_name_their_cause_and_pair_the_images(
    run: Run, small_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    run("run")
    assert not (output / "changes.json").exists()
    (tmp_path / "seed").write_text("2")
    said = run("run", "--overwrite", "weights")
    changes = changes_of(output)
    assert changes["from"] == changes["to"]
    assert changes["causes"] == {}
    assert changes["models"][0]["causes"] == ["weights"]
    assert "changed since the last version: python:versioned_models:model: BG-Gap" in said

    # The models come later: they are compared with how they did before the images changed.
    index = {row["key"]: row for row in pq.read_table(output / "index").to_pylist()}
    old = correct_answers(output)
    gone = next(p for p in pictures_of(small_input) if index[p.stem]["selected"])
    gone.unlink()
    said = run("generate")
    assert "images: 1 removed" in said
    assert changes_of(output)["models"] == []
    evaluate = ["evaluate", "--dataset", str(output), "--models", NAME, "--pictures=none"]
    assert main(evaluate) == 0
    changes = changes_of(output)
    images = changes["images"]["val"]
    assert images["removed"]["images"][0]["key"] == gone.stem
    assert list(changes["causes"]) == ["data"]
    (model,) = changes["models"]
    assert model["causes"] == ["data"]
    new = correct_answers(output)
    both = {key for _, key in old} & {key for _, key in new}
    # Of two of a class: the other one has no partner any more.
    assert images["rejected"]["images"][0]["status"] == "no_background"
    assert model["n"] == len(both) == len({key for _, key in old}) - 2
    for row in model["rows"]:
        if row["label_rule"] == "argmax_then_map" and row["variant"] != "bg_gap":
            means = [
                sum(answers[row["variant"], key] for key in both) / len(both)
                for answers in (old, new)
            ]
            assert [row["before"], row["after"]] == pytest.approx(means)
            assert row["difference"] == pytest.approx(means[1] - means[0])
            assert row["ci_low"] <= row["difference"] <= row["ci_high"]
    text = (output / "changes.md").read_text()
    assert f"* 1 removed\n  * `{gone.stem}`: accepted\n" in text
    assert "| `python:versioned_models:model` | data |" in text

    for module in ("shards", "stage"):
        monkeypatch.setattr(f"pipeline.evaluate.{module}.EVALUATE_VERSION", 3)
    assert main([*evaluate, "--batch_size", "8"]) == 0
    assert changes_of(output)["models"][0]["causes"] == ["evaluation", "code"]
    run("generate", "--overwrite", "config", "--jpeg_quality", "90")
    changes = changes_of(output)
    assert changes["causes"] == {"configuration": ["--jpeg_quality 95 -> 90"]}
    assert changes["images"]["val"]["changed"]["count"] == 0


def correct_answers(output: Path) -> dict[tuple[str, str], bool]:
    """(variant, foreground) to whether the paper's label rule is right."""
    (predictions,) = output.glob("results/python*/predictions")
    return {
        (row["variant"], row["fg_key"]): row["correct"]
        for row in pq.read_table(predictions).to_pylist()
        if row["label_rule"] == "argmax_then_map"
    }


def test_a_tenth_of_the_shards_is_made_again_without_being_asked_for(tmp_path: Path) -> None:
    config = DatasetConfig()
    stages = stage_versions(config)
    up_to_date = ShardFiles(shard_fingerprint([], config.segment), ())

    def check(count: int, to_make: int) -> None:
        """Source shards of no images, all but `to_make` with a record."""
        store = Store(str(tmp_path / f"{count}-{to_make}"))
        totals = SplitTotals("val", ShardCounts(count, count), 0, 0, 0)
        for number in range(to_make, count):
            write_table(store, layer_record("val", number), RECORD_SCHEMA.empty_table(), up_to_date)
        shards = [SourceShard(totals, number, ()) for number in range(count)]
        check_rebuild(stages, shards, config, Staging(store, "staging"))

    for count, to_make in ((1, 1), (9, 1), (20, 2), (100, 10), (7, 0)):
        check(count, to_make)
    with pytest.raises(JobError, match=r"3 of 20 source shards .*; files of 3 are missing"):
        check(20, 3)
    stages = {"segment": SEGMENT_VERSION - 1, "segment_fingerprint": "another"}
    with pytest.raises(JobError, match=r"another way now \(segment stage 1, .* has 0\)"):
        check(20, 3)


def test_a_word_of_overwrite_lifts_its_own_guard_alone(
    run: Run, small_input: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("generate")
    output = tmp_path / "out"
    before = stamps(output)
    others = ("--images_per_shard", "6", "--interpolation", "bilinear")
    refused = run("generate", *others, "--overwrite", "rebuild", code=2)
    assert "--images_per_shard=6 (the dataset has 2), --interpolation=bilinear" in refused
    assert "add --overwrite config,rebuild,shards to accept them" in refused
    refused = run("generate", *others, "--overwrite", "config", code=2)
    assert "--images_per_shard=6" in refused
    assert "--interpolation" not in refused
    assert "add --overwrite config,shards to" in refused
    refused = run("generate", *others, "--overwrite", "config,shards", code=1)
    assert "9 of 9 source shards would be made again" in refused
    assert "layers are made in another way now (other flags" in refused
    assert "add --overwrite rebuild" in refused
    assert main(["generate", "--output", str(output), "--overwrite", "config,rebuild,shards"]) == 2
    assert "add --overwrite input to replace it by the sample" in capsys.readouterr().err
    aside = tmp_path / "aside"
    aside.mkdir()
    for picture in pictures_of(small_input)[1:]:
        picture.rename(aside / picture.name)
    refused = run("generate", *others[:2], "--overwrite", "shards,config,input", code=1)
    assert "17 removed" in refused
    # What was refused has changed nothing but a note of the last input.
    assert stamps(output) == before


def test_an_input_that_has_gone_replaces_nothing(run: Run, small_input: Path) -> None:
    run("generate")
    output = small_input.parent / "out"
    before, pictures = stamps(output), pictures_of(small_input)
    for picture in pictures[1:]:
        picture.unlink()
    said = run("generate", code=1)
    assert "0 images added, 0 changed, 17 removed. Nothing has been changed; " in said
    assert stamps(output) == before
    assert_sound(output)
    assert "val: 1 images" in run("generate", "--overwrite", "rebuild")


def test_what_may_have_changed_is_told_without_reading_it(
    run: Run, small_input: Path, tmp_path: Path
) -> None:
    run("generate")
    output, moved = tmp_path / "out", tmp_path / "moved"
    before = stamps(output)
    shutil.copytree(small_input, moved)
    for picture in pictures_of(small_input):
        os.utime(picture)
    assert "18 changed, 0 removed" in run("generate", code=1)
    assert stamps(output) == before
    # Elsewhere, sizes alone can tell.
    assert "nothing to do" in run("generate", "--input", str(moved))
    assert stamps(output) == before
    for picture in pictures_of(small_input)[::4]:
        darken(picture)
    assert "5 changed, 0 removed" in run("generate", code=1)
    # Nothing is remembered: all is read, and found to be as it was.
    small_input.rename(tmp_path / "darkened")
    moved.rename(small_input)
    shutil.rmtree(output / ".in9" / "checksums")
    assert "nothing to do" in run("generate")
    assert stamps(output) == before
    for record in sorted((output / "layers").glob("*.tar"))[::2]:
        record.unlink()
    said = run("generate", code=1)
    assert "0 images added, 0 changed, 0 removed; files of" in said


def test_a_first_run_reads_each_picture_once(
    run: Run, small_input: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def spy(whole: Callable[[LocalFiles, str], Any]) -> Callable[[LocalFiles, str], Any]:
        def call(self: LocalFiles, path: str) -> Any:
            opened.append(path)
            return whole(self, path)

        return call

    monkeypatch.setattr(LocalFiles, "read", spy(LocalFiles.read))
    monkeypatch.setattr(LocalFiles, "open", spy(LocalFiles.open))
    pictures = [str(picture) for picture in pictures_of(small_input)]
    run("generate", "--direct_num_workers", "1")
    assert sorted(path for path in opened if path in set(pictures)) == pictures
    opened.clear()
    assert "nothing to do" in run("generate", "--direct_num_workers", "1")
    assert not set(pictures) & set(opened)


def test_what_a_rebuild_has_finished_is_not_held_up_again(
    run: Run, small_input: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("generate")
    for picture in pictures_of(small_input)[::4]:
        darken(picture)
    assert "5 changed" in run("generate", code=1)

    def move(self: LocalFiles, source: str, target: str) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        # All is segmented and composed, and Commit stops before it begins.
        patch.setattr(LocalFiles, "move", move)
        run("generate", "--overwrite", "rebuild", code=1)
    assert "done now: 0 images segmented, 0 composed" in run("generate")


def test_versions_in_object_storage_are_copied_by_it(
    one_worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = Store(str(one_worker))
    with gcs_server() as address, monkeypatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", address)
        patch.setattr("pipeline.storage.gcs_requests._clients", {})
        versions = Versions(Store(f"gs://{BUCKET}/versions"), keep=0)
        local.copy_into(
            versions.working, [(path, path) for path in local.sizes("") if ".in9" not in path]
        )
        assert not note_changes(versions.working)
        name = publish(versions).folder
        assert reading_store(versions.output.root).digest(MANIFEST) == local.digest(MANIFEST)
        assert_sound(versions.output.root)
        before = [info.identity for info in GcsFiles().walk(versions.output.root)]
        assert not note_changes(versions.working)
        assert publish(versions).folder == name
        assert [info.identity for info in GcsFiles().walk(versions.output.root)] == before
        versions.output.delete_tree(".in9/dataset")
        assert seed(versions)
        assert versions.working.sizes("") == versions.output.below(name).sizes("")
