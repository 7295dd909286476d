"""Runs `in9` in tests, and reads or changes what it reads and leaves."""

import atexit
import contextlib
import csv
import fcntl
import functools
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow.dataset
import pyarrow.parquet
import pytest
from forking import NO_FIGURES, Forks, Started
from numpy.typing import NDArray
from PIL import Image

from pipeline.commands.cli import main
from pipeline.dataset.folder import Dataset
from pipeline.report.write import write_report, write_tables
from pipeline.runtime.lock import acquire
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"

_KEYS_IN: dict[str, dict[str, object]] = {}
"""What `keys` has written, by path."""


@functools.cache
def _folder_of_keys() -> Path:
    """Makes a folder that this process removes at its end, and none of its forks."""
    folder, process = Path(tempfile.mkdtemp()), os.getpid()
    atexit.register(lambda: os.getpid() == process and shutil.rmtree(folder))
    return folder


def keys(**values: object) -> tuple[str, str]:
    """Returns the words that give a command these keys of a file."""
    lines = (f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items())
    text = "\n".join(lines)
    path = str(_folder_of_keys() / f"{hashlib.md5(text.encode()).hexdigest()}.toml")
    if path not in _KEYS_IN:
        Path(path).write_text(text)
        _KEYS_IN[path] = values
    return "--config", path


def words_of(arguments: Iterable[object]) -> list[str]:
    """Returns the words of a command line; what `keys` has written becomes one file."""
    words, values = [], {}
    for word in map(str, arguments):
        if word in _KEYS_IN:
            words.pop()
            values |= _KEYS_IN[word]
        else:
            words.append(word)
    return [*words, *(keys(**values) if values else ())]


ONE = ("--direct_num_workers=1",)
THREADS = ("--direct_running_mode=multi_threading",)
SHARDS = keys(images_per_shard=6)
TINY_MODEL = ("--models", "python:tiny_models:first")
QUICK = ("--segmenter", "box", "--formats", "parquet", "--image_size", 64, *keys(resize=64))
"""Words of a command that makes a dataset quickly."""


class Run(Protocol):
    """The function that `run_small` returns."""

    def __call__(self, command: str, *flags: str, code: int = 0) -> str: ...


@functools.cache
def forks() -> Forks:
    """Returns the server of forks that all tests of this process share."""
    return Forks()


def _environment(*, figures: bool = False) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", **({} if figures else {NO_FIGURES: "1"})}


def run_in9(
    *arguments: object, check: int | None = 0, figures: bool = False
) -> subprocess.CompletedProcess[str]:
    """Runs the real command line in a separate process; asserts that it exits with `check`.

    The page has figures only if a test asks for them: drawing takes longer than most commands.
    """
    done = forks().run(words_of(arguments), _environment(figures=figures))
    if check is not None:
        assert done.returncode == check, f"{arguments}\n{done.stdout}\n{done.stderr}"
    # A line of JSON is for programs, and a command is to be copied.
    lines = [line for line in done.stdout.splitlines() if not line.startswith("to evaluate: ")]
    assert not [line for line in lines if len(line) > 200 and line[-1] != "}"], arguments
    return done


class Printed(NamedTuple):
    """What a command prints."""

    out: str
    err: str


def run_here(*arguments: object, code: int = 0) -> Printed:
    """Runs a command in this process, steps in threads; asserts that it exits with `code`."""
    words = words_of(arguments)
    if words[:1] in (["run"], ["generate"]) and "--direct" not in "".join(words):
        words.extend(THREADS)
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")) as out,
        contextlib.redirect_stderr(io.TextIOWrapper(io.BytesIO(), "utf-8")) as err,
    ):
        returned = main(words)
    printed = Printed(*map(_text_of, (out, err)))
    assert returned == code, printed
    return printed


def _text_of(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


def run_program(
    *words: object, cwd: Path = ROOT, code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs a program with further environment variables; asserts that it exits with `code`."""
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def run_python(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs code in an interpreter of its own, with further environment variables."""
    return run_program(sys.executable, "-c", code, *arguments, **variables)


def refusal(*arguments: object) -> str:
    """Returns the only line on standard error of a command that exits with 2.

    Asserts that it leaves every file and folder as it was that an argument of type Path names.
    """
    paths = [argument for argument in arguments if isinstance(argument, Path)]
    before = [everything(path) for path in paths]
    (line,) = run_here(*arguments, code=2).err.splitlines()
    assert [everything(path) for path in paths] == before
    return line


def everything(path: Path) -> dict[Path, int | None]:
    """Returns the modification time of every file at or below a path, and None for every folder.

    The work folder is included.
    """
    paths = [each for each in (path, *path.rglob("*")) if each.is_symlink() or each.exists()]
    return {each: None if each.is_dir() else each.lstat().st_mtime_ns for each in paths}


def start_in9(*arguments: object) -> Started:
    """Starts the real command line in its own process group; the page has no figures."""
    return forks().start(words_of(arguments), _environment())


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


def hash_again(output: Path, path: str) -> None:
    """Updates a file's entry in the manifest, as if a job had written the file as it is now."""
    store = Store(str(output))
    manifest = json.loads((output / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["path"] == path:
            rows = pyarrow.parquet.read_metadata(output / path).num_rows
            file |= {"bytes": store.size(path), "sha256": store.digest(path), "samples": rows}
    (output / "manifest.json").write_text(json.dumps(manifest))


def dataset_in(output: Path) -> Dataset:
    """Opens the dataset of a folder."""
    return Dataset.open(Store(str(output)))


def index_of(output: Path) -> list[dict[str, Any]]:
    """Reads the rows of a dataset's index, by its files alone."""
    rows: list[dict[str, Any]] = pyarrow.dataset.dataset(output / "index").to_table().to_pylist()
    return rows


def pixels_of(output: Path, variant: str) -> dict[str, NDArray[np.uint8]]:
    """Decodes a dataset's pictures of a variant with Pillow; returns them by key."""
    dataset = dataset_in(output)
    return {
        sample.key: np.asarray(Image.open(io.BytesIO(sample.image)))
        for shard in dataset.shards("val")
        for sample in dataset.samples("val", shard, variant)
    }


def csv_rows(path: Path) -> list[dict[str, str]]:
    """Reads the rows of a CSV file with a header."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table_of(output: Path, name: str, **wanted: str) -> list[dict[str, str]]:
    """Reads the rows of a table of a dataset's results that have these values."""
    rows = csv_rows(output / "results" / f"{name}.csv")
    return [row for row in rows if wanted.items() <= row.items()]


def latex_lines(output: Path, name: str) -> list[list[str]]:
    """Splits the lines of a LaTeX table of a dataset's results into cells."""
    return cells_of_latex((output / "results" / "latex" / f"{name}.tex").read_text())


def cells_of_latex(text: str) -> list[list[str]]:
    """Splits the lines of a LaTeX table into cells."""
    lines = (line for line in text.splitlines() if line.endswith(r"\\"))
    return [line.removesuffix(r" \\").split(" & ") for line in lines]


def _files_of(output: Path) -> dict[str, Path]:
    paths = [path.relative_to(output) for path in sorted(output.rglob("*")) if path.is_file()]
    return {str(path): output / path for path in paths if ".in9" not in path.parts}


def stamps(output: Path) -> dict[str, int]:
    """Returns the modification time of every file outside the work folder."""
    return {name: path.stat().st_mtime_ns for name, path in _files_of(output).items()}


def results_of(output: Path) -> dict[str, bytes]:
    """Returns the content of every file outside the work folder."""
    return {name: path.read_bytes() for name, path in _files_of(output).items()}


def write_all(output: Path, pictures: str = "sample") -> None:
    """Writes tables, page and figures, as `in9 report` does, but without PDF files.

    PDF files take several times as long as all else.
    """
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


def shrink(source: Path, image: Path, target: Path, share: float = 2 / 5) -> Path:
    """Copies a picture and its boxes to another input folder at a share of its size.

    Smaller pictures save time, because GrabCut's time grows with the number of pixels. Returns the
    path of the copy.
    """
    annotation = Path("Annotations", "val", f"{image.stem}.xml")
    small = target / image.relative_to(source)
    for path in (small, target / annotation):
        path.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(image) as picture:
        size = (int(picture.width * share), int(picture.height * share))
        picture.resize(size).save(small, "JPEG", quality=95)
    xml = re.sub(
        r">(\d+)</(width|height|[xy]m..)>",
        lambda found: f">{int(int(found[1]) * share)}</{found[2]}>",
        (source / annotation).read_text(),
    )
    (target / annotation).write_text(xml)
    return small


def pictures_of(folder: Path) -> list[Path]:
    """Returns the pictures of an input folder, in order."""
    return sorted(folder.glob("val/*/*.JPEG"))


def darken(picture: Path) -> None:
    """Darkens a picture: other pixels, but the same content."""
    with Image.open(picture) as before:
        after = before.point(lambda value: value * 7 // 8)
    after.save(picture, "JPEG", quality=95)
