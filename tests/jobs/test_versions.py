"""Tests published versions of a dataset, and the changes that are reported between them."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from gcs import BUCKET, object_store
from runs import (
    Run,
    darken,
    dataset_in,
    index_of,
    keys,
    manifest_of,
    pictures_of,
    refusal,
    run_here,
    stamps,
    take_over,
)
from soundness import assert_sound

from in9 import open_dataset
from pipeline.analyses.evaluation.parts import compare_accuracies
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import (
    MANIFEST,
    PUBLISH_LOCK,
    finished_versions,
    reading_store,
    writing_store,
)
from pipeline.errors import JobError, UsageError
from pipeline.jobs.publish import (
    PublishPlan,
    check_publishing,
    describe_changes,
    describe_published,
    publish,
)
from pipeline.storage.files import LocalFiles
from pipeline.storage.gcs_files import GcsFiles
from pipeline.storage.store import Store

pytestmark = pytest.mark.usefixtures("no_figures")

MODEL = """
import pathlib

import torch

def model():
    torch.manual_seed(int(pathlib.Path(__file__).with_name("seed").read_text()))
    layers = torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 1000)
    return torch.nn.Sequential(*layers)
"""
NAME = "python:versioned_models:model"
MODELS = ("--models", NAME)


@pytest.fixture
def run(run_small: Run, tiny_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run_small` on six images, published in tmp_path/published, with the model `NAME`."""
    (tmp_path / "versioned_models.py").write_text(MODEL)
    (tmp_path / "seed").write_text("1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "versioned_models", raising=False)

    def run(command: str, *flags: str, code: int = 0) -> str:
        models = MODELS if command == "run" else ()
        published = ("--publish", str(tmp_path / "published"))
        return run_small(command, *models, *published, *flags, code=code)

    return run


@pytest.fixture
def on_results(tmp_path: Path) -> Callable[..., str]:
    """Function that runs a command on tmp_path/out and publishes it; returns what it prints."""

    def on_results(command: str, *flags: str) -> str:
        folders = ["--dataset", str(tmp_path / "out"), "--publish", str(tmp_path / "published")]
        return run_here(command, *folders, "--pictures=none", *flags).out

    return on_results


def latest_of(place: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((place / "latest.json").read_text())
    return content


def last_versions(place: Path) -> tuple[Dataset, Dataset]:
    """Returns the last two versions, the older one first."""
    after, before = latest_of(place)["versions"][:2]
    return dataset_in(place / before), dataset_in(place / after)


def test_every_change_is_a_version_of_its_own(run: Run, small_input: Path, tmp_path: Path) -> None:
    output, published = tmp_path / "out", tmp_path / "published"
    run("run")
    first = latest_of(published)
    assert first["fingerprint"] == manifest_of(output)["fingerprint"]
    assert first["versions"] == [first["version"]]
    assert first["manifest"] == f"{first['version']}/manifest.json"
    version = published / first["version"]
    for path in (*(file["path"] for file in manifest_of(output)["files"]), "report.html"):
        assert (version / path).samefile(output / path)
    names = {path.name for path in output.iterdir()} - {".in9"}
    assert {path.name for path in version.iterdir()} == names
    before = stamps(published)
    printed = run("run")
    assert "nothing to do" in printed
    assert f"published already: {version} (older ones: 0)" in printed
    assert stamps(published) == before

    darken(pictures_of(small_input)[2])
    printed = run("run")
    second = latest_of(published)
    newest = published / second["version"]
    assert second["versions"] == [newest.name, version.name]
    assert f"published: {newest} (older ones: 1)" in printed
    assert f"changed since the last version: images: 1 changed; BG-Gap of {NAME}:" in printed
    assert f"; see {newest / 'changes.md'}" in " ".join(printed.split())
    # The first version is unchanged, and both versions share the files that are equal.
    after = stamps(published)
    assert {**before, "latest.json": 0}.items() <= {**after, "latest.json": 0}.items()
    files = [manifest_of(each)["files"] for each in (version, newest)]
    shared = [file["path"] for file in files[0] if file in files[1]]
    # Other files of rebuilt shards may be equal without being shared.
    shared = [path for path in shared if path.startswith(("layers/", "index/"))]
    assert len(shared) >= 4
    assert all((version / path).samefile(newest / path) for path in shared)
    for name in second["versions"]:
        assert_sound(published / name)


def test_a_state_that_comes_back_is_the_newest_version_again(
    run: Run, small_input: Path, tmp_path: Path
) -> None:
    published, picture = tmp_path / "published", pictures_of(small_input)[2]
    run("generate")
    original = picture.read_bytes()
    darken(picture)
    run("generate")
    newest, oldest = latest_of(published)["versions"]
    after = stamps(published)
    picture.write_bytes(original)
    assert "published already" in run("generate")
    assert latest_of(published)["versions"] == [oldest, newest]
    assert stamps(published) == {**after, "latest.json": stamps(published)["latest.json"]}
    pictures_of(small_input)[5].unlink()
    run("generate", "--keep", "1")
    third = latest_of(published)
    assert third["versions"][1:] == [oldest]
    assert {path.name for path in published.glob("v-*")} == set(third["versions"])
    # The summary of a job stays in the dataset, published or not.
    assert (tmp_path / "out" / ".in9" / "last_run.json").exists()
    assert not (published / ".in9" / "last_run.json").exists()


@pytest.fixture
def publishing(one_worker: Path, tmp_path: Path) -> PublishPlan:
    """Plan to publish a dataset that is not published yet."""
    dataset = Path(shutil.copytree(one_worker, tmp_path / "made"))
    return PublishPlan(Store(str(dataset)), Store(str(tmp_path / "published")))


def names_of(publishing: PublishPlan) -> list[str]:
    """Publishes the dataset; returns the names of its versions."""
    publish(publishing)
    names: list[str] = latest_of(Path(publishing.target.root))["versions"]
    return names


def test_no_version_is_forgotten_when_a_power_cut_has_emptied_the_list(
    publishing: PublishPlan,
) -> None:
    target = publishing.target
    (first,) = names_of(publishing)
    publishing.store.write("results/model/attack.json", b"{}")
    second, _ = names_of(publishing)
    os.utime(target.path(f"{first}/{MANIFEST}"), (1, 1))
    for damage in (b"", bytes(100), b'{"version":'):
        Path(target.path("latest.json")).write_bytes(damage)
        assert reading_store(target.root) == target.below(second)
        assert finished_versions(target) == [second, first]
    assert names_of(publishing) == [second, first]
    assert names_of(PublishPlan(publishing.store, target, keep=0)) == [second]
    assert {path.name for path in Path(target.root).glob("v-*")} == {second}


def test_a_job_that_has_lost_its_lock_announces_and_removes_nothing(
    publishing: PublishPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, real_update = publishing.target, Store.update

    def publish_late(*, before: bool) -> None:
        def update(self: Store, path: str, data: bytes, **how: Any) -> bool:
            if before:
                take_over(target, PUBLISH_LOCK)
            done = real_update(self, path, data, **how)
            if not before:
                take_over(target, PUBLISH_LOCK)
            return done

        with monkeypatch.context() as patch:
            patch.setattr(Store, "update", update)
            with pytest.raises(JobError, match="It stops without writing"):
                publish(PublishPlan(publishing.store, target, keep=0))
        target.delete_tree(PUBLISH_LOCK)

    (first,) = names_of(publishing)
    publishing.store.write("results/model/attack.json", b"{}")
    publish_late(before=True)
    assert latest_of(Path(target.root))["versions"] == [first]
    # A job that loses its lock after the announcement leaves the older version to the next job.
    publish_late(before=False)
    (second,) = latest_of(Path(target.root))["versions"]
    assert second != first
    assert target.exists(f"{first}/{MANIFEST}")
    assert names_of(PublishPlan(publishing.store, target, keep=0)) == [second]


def test_what_changes_meanwhile_is_not_published(
    publishing: PublishPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_copy, published = LocalFiles.copy, Path(publishing.target.root)

    def copy(self: LocalFiles, source: str, target: str) -> None:
        publishing.store.update("results/model/model.json", b"{}")
        real_copy(self, source, target)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "copy", copy)
        with pytest.raises(
            JobError, match="has changed while it was published; run the command again"
        ):
            publish(publishing)
    assert not list(published.glob("v-*/manifest.json"))
    assert publish(publishing)
    (version,) = published.glob("v-*")
    assert (version / "results" / "model" / "model.json").exists()


def test_results_are_versions_too(run: Run, on_results: Callable[..., str], tmp_path: Path) -> None:
    output, published = tmp_path / "out", tmp_path / "published"

    def newest() -> Path:
        return published / latest_of(published)["version"]

    run("generate")
    first = newest()
    assert not (first / "results").exists()
    before = stamps(first)
    on_results("evaluate", *MODELS)
    second = newest()
    assert latest_of(published)["versions"] == [second.name, first.name]
    assert stamps(first) == before
    assert (second / "results" / "summary.csv").exists()
    assert (second / "report.html").read_text() == (output / "report.html").read_text()
    changes = (second / "changes.md").read_text()
    assert f"# What has changed\n\nnew models: {NAME}\n" in changes
    assert "is the same; only results on it, or its card, have changed." in changes
    again = on_results("evaluate", *MODELS)
    assert f"published already: {second} (older ones: 1)" in again
    shutil.rmtree(next(output.glob("results/python*")))
    on_results("report", "--keep", "1")
    third = newest()
    assert latest_of(published)["versions"] == [third.name, second.name]
    assert not list(third.glob("results/python*"))
    assert {path.name for path in published.glob("v-*")} == {third.name, second.name}
    # Readers take the newest version.
    assert open_dataset(published).dataset.store.root == str(third)
    run_here("verify", "--dataset", published)
    (third / "index" / "val-00000-of-00003.parquet").unlink()
    run_here("verify", "--dataset", published, code=1)


def test_nothing_writes_into_what_is_published(publishing: PublishPlan, tmp_path: Path) -> None:
    (name,) = names_of(publishing)
    published, link = Path(publishing.target.root), tmp_path / "current"
    link.symlink_to(published / name)
    before, on = stamps(published), ("evaluate", "attack", "saliency", "report", "matrix", "train")
    commands = [*(f"{command} --dataset" for command in on), "matrix --probe --dataset"]
    commands += ["train --probe --dataset", "import --from . --output", "generate --output"]
    places = [(command, published / name) for command in commands]
    for command, folder in (*places, ("run --output", published), ("run --output", link)):
        reason = "holds published versions" if folder == published else "is a published version"
        assert (
            f"{command.split()[-1]} {folder} {reason}"
            in run_here(*command.split(), folder, code=2).err
        )
    assert stamps(published) == before
    # A name alone does not make a folder a version.
    assert writing_store("output", str(tmp_path / name)).root == str(tmp_path / name)


def test_where_nothing_can_be_published_is_refused_at_once(
    publishing: PublishPlan, small_input: Path, tmp_path: Path
) -> None:
    store, target, beside = publishing.store, publishing.target, tmp_path / "another"
    publish(publishing)
    assert check_publishing(store, None, None) is None
    assert check_publishing(store, target.root, 3) == PublishPlan(store, target, 3)
    places = []
    for path in (MANIFEST, ".in9/manifest.previous.json", "parquet/original/a"):
        places.append(Store(str(tmp_path / f"other-{len(path)}")))
        places[-1].write(path, b"")
    beside.write_text("a file")
    inside = "must lie beside each other"
    for folder, keep, said in (
        (None, 1, "--keep N needs --publish DIR"),
        (str(tmp_path / "new"), -1, "at least 0: got -1"),
        *((place, None, inside) for place in (store.root, store.path("a"), str(tmp_path))),
        *((place.root, None, "holds a dataset; choose another folder") for place in places),
        (str(beside), None, "is not a folder"),
    ):
        with pytest.raises(UsageError, match=said):
            check_publishing(store, folder, keep)
    flags = ("--input", small_input, "--publish", small_input / "published")
    command = ("generate", "--output", tmp_path / "new", *flags)
    assert "published lies inside --input" in refusal(*command)
    Path(target.path("latest.json")).write_text("{}")
    with pytest.raises(UsageError, match=r"latest\.json cannot be used"):
        check_publishing(store, target.root, None)
    with pytest.raises(UsageError, match=r"latest\.json cannot be used"):
        publish(publishing)


def test_changes_name_their_cause(
    run: Run, on_results: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "published"

    def causes_now() -> dict[str, list[str]]:
        return describe_changes(*last_versions(published)).causes

    def of_model() -> list[str]:
        (model,), new = compare_accuracies(*last_versions(published), list(causes_now()))
        assert new == []
        return model.causes

    run("run")
    (tmp_path / "seed").write_text("2")
    printed = run("run", "--overwrite", "weights")
    assert f"changed since the last version: BG-Gap of {NAME}:" in printed
    assert (causes_now(), of_model()) == ({}, ["weights"])
    monkeypatch.setattr("pipeline.evaluate.planned.EVALUATE_VERSION", 3)
    on_results("evaluate", *MODELS, *keys(batch_size=8))
    assert of_model() == ["code"]
    run("generate", "--overwrite", "config", *keys(jpeg_quality=90))
    assert causes_now() == {"configuration": ["jpeg_quality 95 -> 90"]}
    assert len(describe_changes(*last_versions(published)).images["val"].kinds["changed"]) == 0


def test_accuracies_are_compared_on_the_images_of_both_versions(
    run: Run, small_input: Path, tmp_path: Path
) -> None:
    output, published = tmp_path / "out", tmp_path / "published"
    run("run")
    index, old = {row["key"]: row for row in index_of(output)}, correct_answers(output)
    gone = next(p for p in pictures_of(small_input) if index[p.stem]["selected"])
    gone.unlink()
    assert "images: 1 removed" in run("run")
    changes = describe_changes(*last_versions(published))
    images = changes.images["val"].kinds
    assert images["removed"]["key"].to_pylist() == [gone.stem]
    assert list(changes.causes) == ["data"]
    # The class had two images, so the other one has no partner any more.
    assert images["rejected"]["status"].to_pylist() == ["no_background"]
    (model,), _ = compare_accuracies(*last_versions(published), ["data"])
    assert model.causes == ["data"]
    new = correct_answers(output)
    both = {key for _, key in old} & {key for _, key in new}
    assert model.n == len(both) == len({key for _, key in old}) - 2
    for row in model.rows:
        if row.variant != "bg_gap":
            before, after = (
                sum(answers[row.variant, key] for key in both) / len(both) for answers in (old, new)
            )
            assert row.difference == pytest.approx(after - before)
            assert row.ci_low <= row.difference <= row.ci_high
    text = (published / latest_of(published)["version"] / "changes.md").read_text()
    assert f"* 1 removed\n  * {gone.stem}: accepted\n" in text
    assert f"| {NAME} | data |" in text


def correct_answers(output: Path) -> dict[tuple[str, str], bool]:
    """Maps (variant, foreground) to whether the answer is right by the paper's label rule."""
    (predictions,) = output.glob("results/python*/predictions")
    return {
        (row["variant"], row["fg_key"]): row["correct"]
        for row in pq.read_table(predictions).to_pylist()
        if row["label_rule"] == "argmax_then_map"
    }


def test_versions_in_object_storage_are_copied_by_it(
    publishing: PublishPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = publishing.store
    with object_store(), monkeypatch.context() as patch:
        patch.setattr("pipeline.storage.gcs_files._clients", {})
        plan = PublishPlan(Store(f"gs://{BUCKET}/made"), Store(f"gs://{BUCKET}/published"), keep=0)
        # From here, content passes through this process; afterwards, none does.
        assert publish(PublishPlan(local, plan.target))
        (name,) = finished_versions(plan.target)
        plan.target.below(name).copy_into(
            plan.store, [(path, path) for path in local.sizes("") if ".in9" not in path]
        )
        assert reading_store(plan.target.root).digest(MANIFEST) == local.digest(MANIFEST)
        assert_sound(plan.target.root)
        before = [info.identity for info in GcsFiles().walk(plan.target.root)]
        assert not publish(plan)
        assert [info.identity for info in GcsFiles().walk(plan.target.root)] == before
        plan.store.write("results/model/attack.json", b"{}")
        copied, real_copy = [], GcsFiles.copy

        def copy(self: GcsFiles, source: str, target: str) -> None:
            copied.append(source)
            real_copy(self, source, target)

        patch.setattr(GcsFiles, "copy", copy)
        assert publish(plan)
        files = Dataset.open(local).manifest.files
        assert set(copied) >= {plan.store.path(file.path) for file in files}
        assert finished_versions(plan.target) != [name]
        assert plan.target.below(name).sizes("") == {}
        assert_sound(plan.target.root)
        assert "none in images, none in accuracies" in describe_published(plan.target, True)
