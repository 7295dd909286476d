"""A job with all steps that the workers of an engine run, and what it makes without an engine."""

import os
from pathlib import Path

import pytest
from engine_jobs import EVERY_STEP, printed
from runs import QUICK, ROOT, keys, made_once, run_in9


@pytest.fixture(scope="session")
def whole_job(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """A command with a recipe and all analyses; the output folder is to follow."""

    def make(folder: Path) -> None:
        flags = ("generate", "--input", small_sample, *QUICK, *keys(images_per_shard=3), "--output")
        run_in9(*flags, folder / "dataset")
        recipe = ("export", "--dataset", folder / "dataset", "--layout", "recipe", "--to")
        run_in9(*recipe, folder / "recipe")

    recipe = made_once(tmp_path_factory, "recipe-of-steps", make) / "recipe"
    return ("run", "--recipe", recipe, "--input", small_sample, *EVERY_STEP, "--output")


@pytest.fixture(scope="session")
def by_threads(whole_job: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `whole_job` makes in threads, `out`, and what it prints, `stdout`."""

    def make(folder: Path) -> None:
        folder.mkdir()
        done = run_in9(*whole_job, folder / "out")
        (folder / "stdout").write_text("\n".join(printed(done.stdout, folder / "out")))

    return made_once(tmp_path_factory, "by-threads", make)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that only the process that starts a job finds by itself."""
    folder = tmp_path / "modules"
    folder.mkdir()
    support = ROOT / "tests" / "support"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (folder, ROOT, support))))
    return folder
