"""Inputs and finished datasets that several test modules share."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import json
import os
import re
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from forking import Forks, Started
from hypothesis import settings
from PIL import Image

from pipeline.commands.cli import main
from pipeline.dataset.folder import Dataset, sample_folder
from pipeline.inputs.layout import find_layout, list_images
from pipeline.report import write_report
from pipeline.report.write import write_tables
from pipeline.runtime.lock import acquire
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

# The time that an example takes depends on the machine, so there is no deadline.
settings.register_profile("in9", deadline=None)
settings.load_profile("in9")

# Test processes run side by side, so idle OpenMP threads must sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Help is as wide as the terminal.
os.environ["COLUMNS"] = "102"

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

ONE = ("--direct_num_workers=1",)
SHARDS = ("--images_per_shard", "6")
TINY_MODEL = ("--models", "python:tiny_models:first")


pytest_plugins = ("report_page",)
"""Fixtures of the page in a browser. They are a plugin because tests import from `conftest`, and a
second conftest.py would take that name."""

collect_ignore = ["mirrored"]
"""A part of a copied checkout, not of this one."""

_LONGEST = (
    *("test_look", "test_faults", "test_conformance", "test_object_storage", "test_export"),
    *("test_portable", "test_prism", "test_dataflow", "test_trend", "test_kills"),
    *("test_failing_models", "test_versions", "test_attack", "test_dry_run"),
    *("test_evaluate", "test_incremental"),
    *("test_lock", "test_report", "test_leftovers", "test_models_on_shards", "test_independent"),
    *(
        "test_page_images",
        "test_page_layout",
        "test_benchmarks",
        "test_bundles_twice",
        "test_new_analysis",
    ),
)
"""Test modules that take half a minute or more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest modules first, so that parallel processes end at about the same time."""
    items.sort(key=lambda item: item.path.stem not in _LONGEST)


def pytest_collection_finish() -> None:
    """Keeps imported modules and collected tests out of garbage collection, which would search
    their millions of objects again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Restores garbage collection, because some libraries report objects that are never freed."""
    gc.unfreeze()


@functools.cache
def forks() -> Forks:
    """Returns the server of forks that all tests of this process share."""
    return Forks()


def _environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1"}


def run_in9(*arguments: object, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Runs the real command line in a separate process; asserts that it exits with `check`."""
    done = forks().run([str(argument) for argument in arguments], _environment())
    if check is not None:
        assert done.returncode == check, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Returns the only line on standard error of a command that exits with 2. Asserts that it
    leaves every file and folder as it was that an argument of type Path names."""
    paths = [argument for argument in arguments if isinstance(argument, Path)]
    before = [everything(path) for path in paths]
    assert main([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert [everything(path) for path in paths] == before
    return lines[0]


def everything(path: Path) -> dict[Path, int | None]:
    """Returns the modification time of every file at or below a path, with the work folder, and
    None for every folder."""
    paths = [each for each in (path, *path.rglob("*")) if each.is_symlink() or each.exists()]
    return {each: None if each.is_dir() else each.lstat().st_mtime_ns for each in paths}


def start_in9(*arguments: object) -> Started:
    """Starts the real command line in its own process group."""
    return forks().start([str(argument) for argument in arguments], _environment())


def wait_until(happened: Callable[[], object], running: Started) -> None:
    """Waits for something that a running command does; fails if the command ends first."""
    until = time.monotonic() + 120
    while not happened():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


def manifest_of(output: Path) -> dict[str, Any]:
    """Returns the manifest of a dataset folder as it is in the file."""
    content: dict[str, Any] = json.loads((output / "manifest.json").read_text())
    return content


def stamps(output: Path) -> dict[str, int]:
    """Returns the modification time of every file outside the work folder."""
    return {
        str(path.relative_to(output)): path.stat().st_mtime_ns
        for path in output.rglob("*")
        if path.is_file() and ".in9" not in path.parts
    }


def results_of(output: Path) -> dict[str, bytes]:
    """Returns the content of every file outside the work folder."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and ".in9" not in path.parts
    }


def write_all(output: Path, pictures: str = "sample") -> None:
    """Writes tables, page and figures, as `in9 report` does, but without PDF files, which take
    several times as long as all else."""
    store = Store(str(output))
    write_tables(Dataset.open(store))
    write_report(store, imagenet9(), pictures)


def finished_shards(output: Path) -> dict[str, int]:
    """Returns the modification times of finished shards' records, staged or in place."""
    times = {}
    for pattern in (".in9/staging/*/layers/val-*.parquet", "layers/val-*.parquet"):
        for path in output.glob(pattern):
            # A commit may move the file at this moment.
            with contextlib.suppress(FileNotFoundError):
                times[path.name] = path.stat().st_mtime_ns
    return times


def take_over(store: Store, lock: str) -> None:
    """Takes a lock from its holder, like a process that has seen no sign of life."""
    claim = store.files.current_claim(store.path(lock))
    assert claim is not None
    assert store.files.unclaim(store.path(lock), claim, store.temporary())
    owner = {"host": "elsewhere", "place": "feed" * 3, "pid": 1, "started": "1"}
    acquire(store, lock, uuid.uuid4().hex, owner)


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Returns a folder that the first test process to ask for it makes, for all processes."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, done = root / name, root / f"{name}.done"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(folder)
            done.touch()
    return folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real ImageNet pictures and reference data; tests are skipped without it."""
    if not (SHARED / "reference").is_dir():
        pytest.skip(f"no reference data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def sample() -> Path:
    """The embedded sample: 72 pictures with true masks."""
    return Path(sample_folder())


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the main job on the sample, with all defaults. Tests must not write into it."""
    return made_once(tmp_path_factory, "sample", lambda out: run_in9("run", "--output", out))


@pytest.fixture(scope="session")
def mini_run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the main job on 270 real ImageNet pictures. Tests must not write into it."""
    few = ("--formats", "parquet", "--pictures", "none")
    run = ("run", "--input", shared / "imagenet-mini", *few, "--output")
    return made_once(tmp_path_factory, "mini", lambda out: run_in9(*run, out))


def shrink(source: Path, image: Path, target: Path) -> Path:
    """Copies a picture and its boxes to another input folder at 2/5 of its size.

    Smaller pictures save time, because GrabCut's time grows with the number of pixels. Returns the
    path of the copy.
    """
    annotation = Path("Annotations", "val", f"{image.stem}.xml")
    small = target / image.relative_to(source)
    for path in (small, target / annotation):
        path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(image) as picture:
        size = (picture.width * 2 // 5, picture.height * 2 // 5)
        picture.resize(size).save(small, "JPEG", quality=95)
    xml = re.sub(
        r">(\d+)</(width|height|[xy]m..)>",
        lambda found: f">{int(found[1]) * 2 // 5}</{found[2]}>",
        (source / annotation).read_text(),
    )
    (target / annotation).write_text(xml)
    return small


@pytest.fixture(scope="session")
def small_sample(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 sample pictures at 2/5 of their size, two of each class. Tests must not write into it."""

    def make(root: Path) -> None:
        images, _ = list_images(find_layout(str(sample), None, "val"), imagenet9(), limit=2)
        for source in images:
            shrink(sample, Path(source.path), root)

    return made_once(tmp_path_factory, "small", make)


@pytest.fixture(scope="session")
def small_run(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the main job on 18 small pictures. Tests must not write into it."""
    run = ("run", "--input", small_sample, "--output")
    return made_once(tmp_path_factory, "small-run", lambda out: run_in9(*run, out))


@pytest.fixture(scope="session")
def one_worker(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 18 pictures in several shards, made by one worker. Tests must not change it."""
    flags = ("generate", "--input", small_sample, *ONE, *SHARDS, "--output")
    return made_once(tmp_path_factory, "one-worker", lambda out: run_in9(*flags, out))


@pytest.fixture(scope="session")
def three_draws(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 18 small pictures with three draws of each mixed variant, cut along boxes.

    Tests must not change it.
    """
    flags = ("--segmenter", "box", "--formats", "parquet", "--image_size", 64, "--resize", 64)
    command = ("generate", "--input", small_sample, "--replicates", 3, *flags, *ONE, "--output")
    return made_once(tmp_path_factory, "draws", lambda out: run_in9(*command, out))


@pytest.fixture
def small_input(small_sample: Path, tmp_path: Path) -> Path:
    """A writable copy of `small_sample`."""
    return Path(shutil.copytree(small_sample, tmp_path / "input"))


class Run(Protocol):
    """The function that `run_small` returns."""

    def __call__(self, command: str, *flags: str, code: int = 0) -> str: ...


@pytest.fixture
def run_small(small_input: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs a command on `small_input` into tmp_path/out, two source images a shard.

    It returns what the command prints, on standard error if the command is to fail.
    """

    def run(command: str, *flags: str, code: int = 0) -> str:
        folders = ["--input", str(small_input), "--output", str(tmp_path / "out")]
        config = ["--images_per_shard", "2", "--formats", "parquet"]
        config += ["--variants", "original,mixed_same,mixed_rand", "--pictures", "none"]
        assert main([command, *folders, *config, *flags]) == code
        printed = capsys.readouterr()
        return printed.out if code == 0 else printed.err

    return run


def pictures_of(folder: Path) -> list[Path]:
    """Returns the pictures of an input folder, in order."""
    return sorted(folder.glob("val/*/*.JPEG"))


def darken(picture: Path) -> None:
    """Darkens a picture: other pixels, but the same content."""
    with Image.open(picture) as before:
        after = before.point(lambda value: value * 7 // 8)
    after.save(picture, "JPEG", quality=95)


@pytest.fixture
def tiny_input(small_input: Path) -> Path:
    """A writable input folder of 6 small pictures, two of each of three classes."""
    for image in small_input.glob("val/*/*.JPEG"):
        if imagenet9().label_of(image.parent.name) not in (1, 7, 8):
            image.unlink()
            (small_input / "Annotations" / "val" / f"{image.stem}.xml").unlink()
            if not any(image.parent.iterdir()):
                image.parent.rmdir()
    return small_input
