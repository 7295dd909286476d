"""Tests on real ImageNet pictures that regenerating a dataset does only the new work."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from runs import ONE, SHARDS, index_of, keys, manifest_of, run_in9, stamps
from soundness import assert_sound

from pipeline.commands.cli import main
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import finished_versions
from pipeline.dataset.records import ShardCounts
from pipeline.jobs.changes import describe_changes
from pipeline.storage.store import Store
from transforms.variants import MIXED

pytestmark = pytest.mark.usefixtures("no_figures")

MODELS = """
import torch

def _classifier(seed):
    torch.manual_seed(seed)
    layers = torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(192, 1000)
    return torch.nn.Sequential(*layers)

def first():
    return _classifier(1)

def second():
    return _classifier(2)
"""


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
    models: str = "python:incremental_models:first"

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
def schedule(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Schedule]:
    """A quarter of the pictures of imagenet-mini, evaluated by a tiny model."""
    mini, root = shared / "imagenet-mini", tmp_path_factory.mktemp("incremental")
    (root / "incremental_models.py").write_text(MODELS)
    pictures = sorted(mini.glob("val/*/*.JPEG"))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root)
        prepared = Schedule(root / "input", root / "out", pictures[1::4])
        for picture in pictures[::4]:
            prepared.add(picture)
        os.symlink(mini / "Annotations", root / "input" / "Annotations")
        assert prepared.run() == 0
        yield prepared


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


def test_three_added_one_changed_one_removed(
    schedule: Schedule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, publish = schedule.output, ("--publish", str(tmp_path / "published"))
    assert schedule.run(*publish) == 0
    pictures = sorted(schedule.input.glob("val/*/*.JPEG"))
    index, before, manifest = schedule.index(), stamps(output), manifest_of(output)
    accepted = [path for path in pictures if index[path.stem]["selected"]]
    removed, altered = accepted[10], accepted[25]
    new = schedule.aside[20:23]
    for picture in new:
        schedule.add(picture)
    added = {picture.stem for picture in new}
    removed.unlink()
    data = altered.read_bytes()
    altered.unlink()
    # A JPEG comment changes the bytes but not the pixels.
    altered.write_bytes(data[:-2] + b"\xff\xfe\x00\x04in\xff\xd9")
    concerned = {removed.stem, altered.stem, *added}

    expected = schedule.places(concerned, output=False)
    shards = f"{len(expected)} of 17 source"
    assert schedule.run() == 1
    printed = capsys.readouterr().err
    # Shards that only gain images do not count.
    guarded = len(schedule.places(concerned - added, output=False))
    assert f"{guarded} of 17 source shards would be made again, more than a tenth" in printed
    assert "3 images added, 1 changed, 1 removed" in printed
    assert "add --overwrite rebuild" in printed
    assert stamps(output) == before
    assert manifest_of(output) == manifest

    assert schedule.run("--overwrite", "rebuild", *publish) == 0
    printed = capsys.readouterr().out
    after, now = stamps(output), schedule.index()
    # Of the four that are new or altered, annotations alone reject some.
    made = [now[key]["mask_over_box"] is not None for key in concerned - {removed.stem}]
    assert f"done now: {sum(made)} images segmented" in printed
    assert len(made) == 4
    assert f"shards made: {shards}" in printed

    sources = changed_files(before, after, "layers")
    assert numbers(sources) == expected
    repaired: dict[str, set[str]] = {
        variant: {
            key
            for key, row in now.items()
            if row["selected"]
            and index.get(key, row)["selected"]
            and key not in concerned
            and row[f"{variant}_bg_key"] != index[key][f"{variant}_bg_key"]
        }
        for variant in MIXED
    }
    assert all(len(keys) <= 4 * 5 for keys in repaired.values())
    composed = schedule.places(concerned.union(*repaired.values()), output=True)
    for folder in ("index", *(f"parquet/{variant}" for variant in manifest["samples"]["val"])):
        assert numbers(changed_files(before, after, folder)) == composed
    predictions = changed_files(before, after, "results")
    assert numbers({path for path in predictions if "/predictions/" in path}) <= composed
    assert f"{len(composed)} of 17 output" in printed
    files = {file["path"]: file["sha256"] for file in manifest_of(output)["files"]}
    kept = {file["path"]: file["sha256"] for file in manifest["files"]}
    same = {path for path in before if before[path] == after.get(path)}
    assert all(files[path] == kept[path] for path in same & kept.keys())

    newest, before_it = finished_versions(Store(publish[1]))
    versions = (Dataset.open(Store(publish[1]).below(name)) for name in (before_it, newest))
    changes = describe_changes(*versions)
    images = changes.images["val"]
    assert {row.key for row in images.added} == added
    assert (len(images.added), len(images.removed)) == (3, 1)
    assert [row.key for row in images.changed or ()] == [altered.stem]
    assert list(changes.causes) == ["data"]
    assert_sound(output)


def test_a_new_model_segments_and_composes_nothing(
    schedule: Schedule, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(schedule.output)
    schedule.models += ",python:incremental_models:second"
    assert schedule.run() == 0
    printed = capsys.readouterr().out
    assert "done now: 0 images segmented, 0 composed" in printed
    assert "shards made: 0 of 17 source, 0 of 17 output, 17 of 34 of predictions" in printed
    after = stamps(schedule.output)
    written = {path.split("/")[0] for path in after if before.get(path) != after[path]}
    assert written == {"results", "report.html"}


def test_one_added_image_is_evaluated_with_its_shards_alone(
    schedule: Schedule, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(schedule.output)
    picture = schedule.aside.pop()
    schedule.add(picture)
    assert schedule.run() == 0
    printed, after = capsys.readouterr().out, stamps(schedule.output)
    assert "done now: 1 image segmented" in printed
    composed = numbers(changed_files(before, after, "index"))
    assert schedule.places({picture.stem}, output=True) <= composed
    assert len(composed) <= 1 + 4 * len(MIXED)
    for model in ("first", "second"):
        (folder,) = schedule.output.glob(f"results/*{model}*/predictions")
        predicted = changed_files(before, after, str(folder.relative_to(schedule.output)))
        assert numbers(predicted) == composed
    assert f"{2 * len(composed)} of 34 of predictions" in printed


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
