"""Tests that killed jobs' leftovers go, foreign files stay, and `verify` knows of jobs at work."""

import dataclasses
import itertools
import json
import os
import shutil
import time
from functools import partial
from pathlib import Path

import pytest
from fault_lab import small_input
from killing import killed_before_change
from runs import ONE, QUICK, run_here
from soundness import assert_sound

from pipeline.dataset.manifest import PUBLISH_LOCK
from pipeline.inputs.source_images import Checksums
from pipeline.jobs.publish import PublishPlan, publish
from pipeline.runtime import lock
from pipeline.runtime.lock import (
    DATASET_LOCK,
    WEEK_SECONDS,
    acquire,
    is_held,
    locked,
    release,
    remove_leftovers,
    this_process,
)
from pipeline.storage import processes
from pipeline.storage.store import TEMPORARY, Store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with `out`, a small dataset, and `published`, a version of its earlier state."""
    root = tmp_path_factory.mktemp("made")
    run = ("generate", "--input", small_input(root / "in"), "--output", root / "out")
    run_here(*run, *QUICK, "--variants", "original", "--pictures", "none", *ONE)
    shutil.rmtree(root / "in")
    publish(publishing_in(root))
    (root / "out" / "results").mkdir()
    (root / "out" / "results" / "new.json").write_text("{}")
    return root


def publishing_in(root: Path, keep: int | None = 0) -> PublishPlan:
    return PublishPlan(Store(str(root / "out")), Store(str(root / "published")), keep)


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_publication_killed_at_any_moment_leaves_nothing(made: Path, tmp_path: Path) -> None:
    """Checks that the next publication removes obsolete versions and unfinished ones."""
    quiet = Path(shutil.copytree(made, tmp_path / "quiet"))
    publish(publishing_in(quiet))
    (newest,) = quiet.glob("published/v-*")
    for number in itertools.count(step=2):
        killed = Path(shutil.copytree(made, tmp_path / f"killed-{number}"))
        if not killed_before_change(number, partial(publish, publishing_in(killed))):
            break
        # A version that has its manifest is whole.
        for manifest in killed.glob("published/v-*/manifest.json"):
            assert_sound(manifest.parent)
        # A version that is off the list does not come back, even if all versions are kept.
        listed = json.loads((killed / "published" / "latest.json").read_text())["versions"]
        later = Path(shutil.copytree(killed, tmp_path / f"later-{number}"))
        publish(publishing_in(later, keep=None))
        versions = {path.name for path in later.glob("published/v-*")}
        assert versions == {newest.name, *listed}, number
        publish(publishing_in(killed))
        assert names_below(killed) == names_below(quiet), number
        shutil.rmtree(killed)
        shutil.rmtree(later)
    assert number > 40


@pytest.mark.parametrize(
    "command",
    [
        ("report", "--pictures", "none", "--publish", "{root}/published"),
        ("export", "--layout", "recipe", "--to", "{root}/published"),
        ("export", "--images", "sample_val_00000001", "--to", "{root}/published/a.png"),
        ("export", "--to", "{root}/published"),
    ],
    ids=lambda words: words[2],
)
def test_every_writer_removes_what_killed_ones_have_left(
    command: tuple[str, ...], made: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(made, tmp_path / "root"))
    (root / "out" / "results" / "new.json").unlink()
    writes = ("out", "published") if command[0] == "report" else ("published",)
    if command[0] == "export":
        shutil.rmtree(root / "published")
    if command[0] == "export" and command[1] != "--images":
        run_here(command[0], "--dataset", root / "out", *words_in(root, command))
    dead = dataclasses.replace(processes.this_process(), pid=2**22 + 1).name
    for folder in writes:
        temporary = Store(str(root / folder)).path(TEMPORARY)
        for number, name in enumerate(("", "/token/about")):
            path = Path(f"{temporary}/{dead}+{number:032x}{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("half-written")
    run_here(command[0], "--dataset", root / "out", *words_in(root, command))
    left = [path for folder in writes for path in root.glob(f"{folder}/{TEMPORARY}/*")]
    assert not left


def words_in(root: Path, command: tuple[str, ...]) -> list[str]:
    return [word.format(root=root) for word in command[1:]]


def unlocked(store: Store) -> set[str]:
    """Returns all files except those of the dataset's lock."""
    return {path for path in store.walk("") if not path.startswith(f"{DATASET_LOCK}/")}


def test_what_nothing_names_goes_and_what_is_not_ours_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, hexadecimal = Store(str(tmp_path)), "0123456789abcdef" * 2
    elsewhere = (
        f".in9/tmp/elsewhere+7+{hexadecimal}",
        f".in9/tmp/elsewhere+8+{hexadecimal}/token/about",
        ".in9/progress/elsewhere+7/segment/val-00000.3",
        ".in9/evaluate-7.log",
    )
    theirs = (
        *(".in9/tmp/notes.txt", ".in9/notes.log", ".in9/lock.txt", ".in9/run.log", ".in9/lock-a"),
        *(".in9/progress/notes.txt", ".in9/lock-of-mine.txt", "results/evaluate-7.log"),
    )
    for path in (*elsewhere, *theirs):
        store.write(path, b"?")
    with locked(store, DATASET_LOCK):
        remove_leftovers(store)
        assert is_held(store, DATASET_LOCK)
        # Nobody can tell yet whether the processes of another machine are at work.
        assert unlocked(store) == {*elsewhere, *theirs}
        later = time.time() + WEEK_SECONDS + 1
        monkeypatch.setattr(lock.time, "time", lambda: later)
        remove_leftovers(store)
        assert is_held(store, DATASET_LOCK)
        assert unlocked(store) == set(theirs)
    assert not (tmp_path / ".in9" / "progress" / "elsewhere+7").exists()


def test_memories_of_shards_that_are_no_more_go(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    names = ("val-00000", "val-00001", "val-00002", "train-00000", "notes")
    for name in names:
        store.write(f".in9/checksums/{name}.json", b"{}")
    Checksums.forget_others(store, {"val": 2})
    assert {path.stem for path in tmp_path.rglob("*.json")} == {"val-00000", "val-00001", "notes"}


def test_verify_says_that_a_job_is_at_work(made: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(made, tmp_path / "made"))
    store, published = Store(str(root / "out")), Store(str(root / "published"))
    (root / "out" / "README.md").unlink()

    def verified(folder: str, code: int = 1) -> str:
        return run_here("verify", "--dataset", root / folder, code=code).err.splitlines()[-1]

    assert "1 fault; remove the files concerned and run the command" in verified("out")
    with locked(store, DATASET_LOCK):
        message = verified("out")
        assert f"1 fault; process {os.getpid()} on " in message
        assert "is at work on it, so these may not be faults; verify it again" in message
        assert "remove" not in message
    # A killed job is not at work.
    acquire(store, DATASET_LOCK, "0f" * 16, {**this_process(), "pid": 2**22 + 1})
    assert "remove the files concerned" in verified("out")
    release(store, DATASET_LOCK, "0f" * 16)
    for file in root.glob("published/v-*/README.md"):
        file.unlink()
    with locked(published, PUBLISH_LOCK):
        assert "is at work on it" in verified("published")
    store.move("manifest.json", ".in9/manifest.previous.json")
    assert "holds no finished dataset" in verified("out", code=2)
    with locked(store, DATASET_LOCK):
        message = verified("out")
        assert f"is at work on {store.root}; verify it when the job is done" in message
