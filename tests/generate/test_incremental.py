"""Tests on real ImageNet pictures that regenerating a dataset does only the new work."""

import dataclasses
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from runs import ONE, SHARDS, index_of, keys, manifest_of, pictures_of, run_in9, stamps
from soundness import assert_sound

from pipeline.commands.cli import main
from pipeline.dataset.records import ShardCounts
from transforms.variants import MIXED

pytestmark = pytest.mark.usefixtures("no_figures")


@dataclasses.dataclass
class Schedule:
    """A dataset that is regenerated on a schedule.

    Attributes:
      input, output: folders of the pictures and of the dataset.
      aside: pictures that are not in the input yet.
      models: entries of `--models`.
    """

    input: Path
    output: Path
    aside: list[Path]
    models: str = "python:tiny_models:first"

    def run(self, *flags: str) -> int:
        folders = ("--input", str(self.input), "--output", str(self.output))
        variants = ("--variants", ",".join(("original", *MIXED)))
        shards = (*keys(images_per_shard=4), "--formats", "parquet", "--pictures", "none")
        return main(["run", *folders, *variants, *shards, "--models", self.models, *flags])

    def add(self, picture: Path) -> None:
        folder = self.input / "val" / picture.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder)

    def index(self) -> dict[str, dict[str, Any]]:
        rows = index_of(self.output)
        return {row["key"]: row for row in rows}

    def shards(self) -> ShardCounts:
        return ShardCounts(**manifest_of(self.output)["shards"]["val"])

    def places(self, keys: set[str], output: bool) -> set[int]:
        """Returns the numbers of the source or output shards of some images."""
        counts = self.shards()
        number = counts.output if output else counts.source
        return {counts.source_shard(key) % number for key in keys}


@pytest.fixture(scope="module")
def schedule(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Schedule:
    """A quarter of the pictures of imagenet-mini, evaluated by a tiny model."""
    mini, root = shared / "imagenet-mini", tmp_path_factory.mktemp("incremental")
    pictures = pictures_of(mini)
    prepared = Schedule(root / "input", root / "out", pictures[1::4])
    for picture in pictures[::4]:
        prepared.add(picture)
    os.symlink(mini / "Annotations", root / "input" / "Annotations")
    assert prepared.run() == 0
    return prepared


def changed_files(before: dict[str, int], after: dict[str, int], folder: str) -> set[str]:
    """Returns the files of a folder that were written or removed in between."""
    return {
        path
        for path in before.keys() | after.keys()
        if path.startswith(f"{folder}/") and before.get(path) != after.get(path)
    }


def numbers(paths: set[str]) -> set[int]:
    """Returns the shard numbers of some files."""
    return {int(Path(path).stem.split("-")[1]) for path in paths}


@dataclasses.dataclass
class Update:
    """An update with three images added, one altered, one removed, and what was there before.

    Attributes:
      files, index, manifest: of the dataset before the update.
    """

    added: set[str]
    altered: str
    removed: str
    files: dict[str, int]
    index: dict[str, dict[str, Any]]
    manifest: dict[str, Any]


@pytest.fixture(scope="module")
def update(schedule: Schedule) -> Update:
    """A change of the input that no run has seen yet."""
    index = schedule.index()
    accepted = [path for path in pictures_of(schedule.input) if index[path.stem]["selected"]]
    removed, altered, new = accepted[10], accepted[25], schedule.aside[20:23]
    for picture in new:
        schedule.add(picture)
    removed.unlink()
    data = altered.read_bytes()
    altered.unlink()
    # A JPEG comment changes the bytes but not the pixels.
    altered.write_bytes(data[:-2] + b"\xff\xfe\x00\x04in\xff\xd9")
    added = {picture.stem for picture in new}
    files, manifest = stamps(schedule.output), manifest_of(schedule.output)
    return Update(added, altered.stem, removed.stem, files, index, manifest)


def test_an_update_of_many_shards_is_held_up(
    schedule: Schedule, update: Update, capsys: pytest.CaptureFixture[str]
) -> None:
    assert schedule.run() == 1
    printed = capsys.readouterr().err
    # Shards that only gain images do not count.
    guarded = len(schedule.places({update.removed, update.altered}, output=False))
    assert f"{guarded} of 17 source shards would be made again, more than a tenth" in printed
    assert "3 images added, 1 changed, 1 removed" in printed
    assert "add --overwrite rebuild" in printed
    assert stamps(schedule.output) == update.files


def test_an_update_makes_what_has_changed_and_no_more(
    schedule: Schedule, update: Update, capsys: pytest.CaptureFixture[str]
) -> None:
    assert schedule.run("--overwrite", "rebuild") == 0
    printed = capsys.readouterr().out
    before, after, index, now = (
        update.files,
        stamps(schedule.output),
        update.index,
        schedule.index(),
    )
    concerned = {update.removed, update.altered, *update.added}
    # Of the four that are new or altered, annotations alone reject some.
    made = [now[key]["mask_over_box"] is not None for key in concerned - {update.removed}]
    assert f"done now: {sum(made)} images segmented" in printed
    expected = schedule.places(concerned, output=False)
    assert f"shards made: {len(expected)} of 17 source" in printed
    assert numbers(changed_files(before, after, "layers")) == expected
    repaired = {
        variant: {
            key
            for key, row in now.items()
            if row["selected"] and index.get(key, row)["selected"] and key not in concerned
            if row[f"{variant}_bg_key"] != index[key][f"{variant}_bg_key"]
        }
        for variant in MIXED
    }
    assert all(len(keys) <= 4 * 5 for keys in repaired.values())
    composed = schedule.places(concerned.union(*repaired.values()), output=True)
    for folder in ("index", *(f"parquet/{name}" for name in update.manifest["samples"]["val"])):
        assert numbers(changed_files(before, after, folder)) == composed
    predictions = changed_files(before, after, "results")
    assert numbers({path for path in predictions if "/predictions/" in path}) <= composed
    assert f"{len(composed)} of 17 output" in printed
    assert_sound(schedule.output)


def test_a_new_model_segments_and_composes_nothing(
    schedule: Schedule, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(schedule.output)
    schedule.models += ",python:tiny_models:second"
    assert schedule.run() == 0
    printed = capsys.readouterr().out
    assert "done now: 0 images segmented, 0 composed" in printed
    assert "shards made: 0 of 17 source, 0 of 17 output, 17 of 34 of predictions" in printed
    after = stamps(schedule.output)
    written = {path.split("/")[0] for path in after if before.get(path) != after[path]}
    assert written == {"results", "report.html"}


def test_a_record_that_lacks_images_is_made_again(
    one_worker: Path, small_sample: Path, tmp_path: Path
) -> None:
    """Cuts rows off a record whose schema, fingerprint and footer stay valid."""
    output = Path(shutil.copytree(one_worker, tmp_path / "out"))
    record = sorted((output / "layers").glob("*.parquet"))[0]
    before = record.read_bytes()
    pq.write_table(pq.read_table(record)[:1], record)
    done = run_in9("generate", "--output", output, "--input", small_sample, *ONE, *SHARDS)
    assert f"{record} is damaged (it lists 1 image)" in done.stderr
    assert record.read_bytes() == before
    assert (output / "manifest.json").read_bytes() == (one_worker / "manifest.json").read_bytes()
