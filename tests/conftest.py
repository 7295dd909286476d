"""Inputs and finished datasets that several test modules share."""

import atexit
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from forking import NO_FIGURES, SERVER, start_server
from gcs import BUCKET, object_store
from hypothesis import settings
from runs import ONE, QUICK, SHARDS, SHARED, Run, keys, made_once, run_here, run_in9, shrink

from pipeline.dataset.folder import sample_folder
from pipeline.inputs.layout import find_layout, list_images
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

# The time that an example takes depends on the machine, so there is no deadline.
settings.register_profile("in9", deadline=None)
settings.load_profile("in9")

# Test processes run side by side, so idle OpenMP threads must sleep instead of spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# Help is as wide as the terminal.
os.environ["COLUMNS"] = "102"

collect_ignore = ["mirrored"]  # A part of a copied checkout, not of this one.

_LONGEST = (
    *("spread", "snippets", "conformance", "heads", "evaluate", "flink", "grabcut", "benchmarks"),
    *("page_images", "leftovers", "scenes"),
    *("predict", "rerun", "matrix_seeds", "slurm", "faults", "outside", "family_gates", "labels"),
    *("conditions", "recipe", "matrix", "feature_shares", "report", "baseline", "import"),
    *("held_out_backgrounds", "commit", "call", "method", "training", "variants_compared"),
    *("dry_run", "guard", "answers", "attack", "cli", "kills", "object_storage", "versions"),
    *("given_masks", "encoders", "export", "new_analysis", "dataflow", "lock", "page_layout"),
    *("own_data", "gpus", "show", "saliency", "model_stage", "matrix_dial", "models_on_shards"),
    *("bundles_twice", "training_seeds", "integrity", "portable"),
)
"""Test modules that take a quarter of a minute or more, the longest first. The fast lane has two of
them nevertheless, which try most of the tool: `test_smoke` and `test_messages`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out modules that take long")


def pytest_configure(config: pytest.Config) -> None:
    """Starts the server of forks that parallel test processes share, before they are started."""
    if config.getoption("numprocesses", None) and not config.option.collectonly:
        os.environ[SERVER] = start_server()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves the longest modules out of the fast lane."""
    is_long = collection_path.stem.removeprefix("test_") in _LONGEST
    return True if is_long and config.option.fast else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest modules first, so that parallel processes end at about the same time."""
    places = {f"test_{name}": place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Keeps imported modules and collected tests out of garbage collection, and makes it rarer.

    Modules that import Beam have done so by then, and Beam does less work from here on.
    """
    gc.disable()
    result = yield
    if "apache_beam" in sys.modules:
        from quick_beam import hasten_beam

        hasten_beam()
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
    gc.enable()
    atexit.register(gc.unfreeze)  # At the end, libraries report objects that are never freed.
    return result


@pytest.fixture(scope="module", autouse=True)
def _rare_collection() -> Iterator[None]:
    """Keeps what a module of tests has imported and leaves behind out of garbage collection."""
    yield
    gc.collect()
    gc.freeze()


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
    run = ("run", "--output")
    return made_once(tmp_path_factory, "sample", lambda out: run_in9(*run, out, figures=True))


@pytest.fixture(scope="session")
def mini_run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the main job on 270 real ImageNet pictures. Tests must not write into it."""
    few = ("--formats", "parquet", "--pictures", "none")
    run = ("run", "--input", shared / "imagenet-mini", *few, "--output")
    return made_once(tmp_path_factory, "mini", lambda out: run_in9(*run, out))


@pytest.fixture(scope="session")
def small_sample(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 sample pictures at 2/5 of their size, two of each class. Tests must not write into it."""

    def make(root: Path) -> None:
        images, *_ = list_images(find_layout(str(sample), None, "val"), imagenet9(), limit=2)
        for source in images:
            shrink(sample, Path(source.location.path), root)

    return made_once(tmp_path_factory, "small", make)


def of_small_sample(name: str, command: str, *words: object, figures: bool = False) -> Any:
    """Returns a fixture: the output of a command on `small_sample`. Tests must not change it."""

    @pytest.fixture(scope="session")
    def output(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        flags = (command, "--input", small_sample, *words, "--output")
        return made_once(tmp_path_factory, name, lambda out: run_in9(*flags, out, figures=figures))

    return output


small_run = of_small_sample("small-run", "run", figures=True)
"""The output of the main job, with all defaults."""

one_worker = of_small_sample("one-worker", "generate", *ONE, *SHARDS)
"""A dataset in several shards, made by one worker."""

three_draws = of_small_sample("draws", "generate", "--replicates", 3, *QUICK, *ONE)
"""A dataset with three draws of each mixed variant, cut along boxes."""

for_gaps = of_small_sample(
    *("for-gaps", "generate", "--variants", "original,mixed_same,mixed_rand", *QUICK, *ONE)
)
"""A dataset with the variants of the BG-Gap alone, cut along boxes."""

quick_shards = of_small_sample("quick-shards", "generate", *QUICK, *SHARDS, *ONE)
"""A dataset in several shards, cut along boxes by one worker."""

three_models = of_small_sample(
    *("three-models", "run", *QUICK, "--replicates", 2, "--pictures", "none", *ONE, "--models"),
    ",".join(f"python:tiny_models:{name}" for name in ("first", "second", "third")),
)
"""Two draws of small pictures with results of three models."""

rendered = of_small_sample(
    *("rendered", "generate", "--replicates", 2, "--variants", "all,method", *QUICK, *ONE)
)
"""A dataset with two draws and all renderings, cut along boxes."""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium. Without one, tests are skipped, or fail in continuous integration."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    path = next((executable for name in names if (executable := shutil.which(name))), None)
    missing = "" if path else "no chromium: apt-get install chromium-headless-shell"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing = "no playwright: pip install '.[test]'"
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    quiet = ("quic", "background-networking", "component-update", "sync", "gpu")
    arguments = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in quiet)]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def small_input(small_sample: Path, tmp_path: Path) -> Path:
    """A writable copy of `small_sample`."""
    return Path(shutil.copytree(small_sample, tmp_path / "input"))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an object store for this process and its commands."""
    with object_store() as url:
        yield url


@pytest.fixture(params=["local", "remote"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store in a local folder, and one in an object store."""
    if request.param == "local":
        return Store(str(tmp_path))
    request.getfixturevalue("server")
    return Store.at(f"gs://{BUCKET}/{request.node.name}")


@pytest.fixture
def run_small(small_input: Path, tmp_path: Path) -> Run:
    """A function that runs a command on `small_input` into tmp_path/out, two source images a shard.

    Masks are boxes. It returns what the command prints, on standard error if it is to fail.
    """

    def run(command: str, *flags: str, code: int = 0) -> str:
        folders = ["--input", str(small_input), "--output", str(tmp_path / "out")]
        config = [*keys(images_per_shard=2), "--formats", "parquet", "--segmenter", "box"]
        config += ["--variants", "original,mixed_same,mixed_rand", "--pictures", "none"]
        printed = run_here(command, *folders, *config, *flags, code=code)
        return printed.out if code == 0 else printed.err

    return run


@pytest.fixture
def empty_pdfs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes PDF files of figures empty in this process, because fonts take long to embed."""
    monkeypatch.setattr("pipeline.display.style.Drawn.pdf", lambda _: b"")


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves figures out here and in forks, because drawing takes longer than most commands."""
    monkeypatch.setattr("pipeline.analyses.parts.Parts.plots", lambda *_: iter(()))
    monkeypatch.setenv(NO_FIGURES, "1")


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
