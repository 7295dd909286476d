"""Jobs that the workers of an engine run, and what they make without an engine."""

import os
from pathlib import Path

import pytest
from engine_jobs import Signs, listened_at, printed
from runs import QUICK, ROOT, THREADS, TINY_MODEL, keys, made_once, run_in9, start_in9


@pytest.fixture(scope="session")
def quick_job(small_sample: Path) -> tuple[object, ...]:
    """A command that makes a dataset quickly; the output folder is to follow."""
    return ("generate", "--input", small_sample, *QUICK, *keys(images_per_shard=3))


@pytest.fixture(scope="session")
def by_boxes(quick_job: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `quick_job` makes in threads."""
    command = (*quick_job, "--output")
    return made_once(tmp_path_factory, "by-boxes", lambda out: run_in9(*command, out))


@pytest.fixture(scope="session")
def by_signs(quick_job: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `quick_job` makes in threads with the segmenter of `Signs`."""

    def make(folder: Path) -> None:
        (modules := folder / "modules").mkdir(parents=True)
        Signs(modules).go_on()
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(modules))
            run_in9(*quick_job, *Signs.flags, "--output", folder / "out")

    return made_once(tmp_path_factory, "by-signs", make) / "out"


@pytest.fixture(scope="session")
def whole_job(
    small_sample: Path, by_boxes: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[object, ...]:
    """A command with a recipe and all analyses; the output folder is to follow."""
    export = ("export", "--dataset", by_boxes, "--layout", "recipe", "--to")
    recipe = made_once(tmp_path_factory, "recipe-of-steps", lambda to: run_in9(*export, to))
    analyses = (*TINY_MODEL, "--attack", "4x3", "--saliency", 2, "--pictures", "none")
    return ("run", "--recipe", recipe, "--input", small_sample, *analyses, "--output")


@pytest.fixture(scope="session")
def by_threads(whole_job: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `whole_job` makes in threads, `out`, and what it prints, `stdout`.

    Where it has listened is in `listened`.
    """

    def make(folder: Path) -> None:
        folder.mkdir()
        running = start_in9(*whole_job, folder / "out", *THREADS)
        (folder / "listened").write_text("\n".join(map(str, listened_at(running))))
        out, error = running.communicate()
        assert running.returncode == 0, error
        (folder / "stdout").write_text("\n".join(printed(out, folder / "out")))

    return made_once(tmp_path_factory, "by-threads", make)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that only the process that starts a job finds by itself."""
    folder = tmp_path / "modules"
    folder.mkdir()
    support = ROOT / "tests" / "support"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (folder, ROOT, support))))
    return folder
