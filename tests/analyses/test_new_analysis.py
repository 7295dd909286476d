"""Tests that an analysis is one folder and one line.

An analysis that is added to a copy of this checkout works everywhere.
"""

import contextlib
import importlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forking import NO_FIGURES, Forks
from runs import ONE, ROOT, run_program, table_of

from pipeline.analyses import ANALYSES
from pipeline.evaluate.planned import PlannedAnalysis

MODELS = ("--models", "python:tiny_models:first", *ONE)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the pipeline with the analysis `mirrored`.

    A copy of `transforms` would have kernels of its own, which take long to compile.
    """
    folder = tmp_path_factory.mktemp("checkout")
    # Another process may be writing compiled code.
    ignored = shutil.ignore_patterns("*.pyc.*")
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "mirrored", folder / "pipeline" / "analyses" / "mirrored")
    shutil.copy(ROOT / "in9.py", folder)
    names = folder / "pipeline" / "analyses" / "__init__.py"
    last = '        "matrix:MATRIX",\n'
    text = names.read_text()
    assert last in text
    names.write_text(text.replace(last, f'{last}        "mirrored:MIRRORED",\n'))
    return folder


@pytest.fixture(scope="module")
def copied(checkout: Path) -> Callable[..., str]:
    """A function that runs a command of the copied code and returns what it prints."""
    forks, paths = Forks(checkout), (checkout, ROOT, ROOT / "tests" / "support")
    path = os.pathsep.join(map(str, paths))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", NO_FIGURES: "1"}

    def run(*arguments: object) -> str:
        done = forks.run([str(argument) for argument in arguments], environment)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    return run


def test_an_analysis_is_one_folder_and_one_line(
    checkout: Path, copied: Callable[..., str], one_worker: Path, small_sample: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(one_worker, tmp_path / "out"))
    assert "--mirrored" in copied("evaluate", "--help")
    words = (sys.executable, "-m", "pipeline.commands.reference")
    done = run_program(*words, cwd=checkout)
    assert "| `--mirrored " in done.stdout
    assert "results/mirrored.csv" in done.stdout
    job = ("run", "--input", small_sample, "--output", tmp_path / "new", "--segmenter", "box")
    forecast = copied(*job, *MODELS, "--mirrored", "--dry_run")
    assert "for a mirrored with 18 pictures" in forecast
    command = ("evaluate", "--dataset", output, *MODELS, "--mirrored")
    printed = copied(*command)
    assert "mirrored pictures predicted" in printed
    shards = [*output.glob("results/*/mirrored/*.parquet")]
    assert len(shards) == len(list(output.glob("index/*.parquet"))) > 1
    # What is there is not made again.
    shards[0].unlink()
    kept = {path: path.stat().st_mtime_ns for path in shards[1:]}
    copied(*command)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert shards[0].exists()
    (row,) = table_of(output, "mirrored")
    accuracy = f"{100 * float(row['accuracy']):.1f}"
    assert accuracy in next(line for line in printed.splitlines() if "tiny_models:first " in line)
    assert f"${accuracy}$" in (output / "results" / "latex" / "mirrored.tex").read_text()
    page = (output / "report.html").read_text()
    assert f"answers {accuracy} % of {int(row['n'])} mirrored pictures correctly" in page
    assert 'href="#mirrored"' in page


def test_an_analysis_and_its_work_have_one_name() -> None:
    analyses = {one.name: one for one in ANALYSES if one.runs_models}
    for analysis in analyses.values():
        assert analysis.parts
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(f"{analysis.implementation.rpartition('.')[0]}.stage")
    works = {work.stage: work for work in PlannedAnalysis.__subclasses__()}
    assert works.keys() == analyses.keys()
    for name, work in works.items():
        assert work.refuses_overlap == analyses[name].refuses_overlap
