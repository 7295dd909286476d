"""Tests that an analysis is one folder and one line.

An analysis that is added to a copy of this checkout works everywhere.
"""

from __future__ import annotations

import importlib
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forking import Forks, Started
from runs import ONE, ROOT, table_of

from pipeline.analyses import ANALYSES
from pipeline.evaluate.planned import PlannedAnalysis

MODEL = """
import os
import time

import tiny_models

def slow():
    model = tiny_models.first()
    model.register_forward_pre_hook(lambda *_: time.sleep(float(os.environ.get("SECONDS", 0))))
    return model
"""
MODELS = ("--models", "python:slow_models:slow", *ONE)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the pipeline with the analysis `mirrored`, and a slow model.

    A copy of `transforms` would have kernels of its own, which take long to compile.
    """
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pipeline", folder / "pipeline", ignore=ignored)
    shutil.copytree(ROOT / "tests" / "mirrored", folder / "pipeline" / "analyses" / "mirrored")
    shutil.copy(ROOT / "in9.py", folder)
    names = folder / "pipeline" / "analyses" / "__init__.py"
    last = '        "matrix:MATRIX",\n'
    text = names.read_text()
    assert last in text
    names.write_text(text.replace(last, f'{last}        "mirrored:MIRRORED",\n'))
    (folder / "slow_models.py").write_text(MODEL)
    return folder


class Copied:
    """Commands of the copied code."""

    def __init__(self, checkout: Path) -> None:
        self._forks = Forks(checkout)
        paths = os.pathsep.join(map(str, (checkout, ROOT, ROOT / "tests" / "support")))
        self._environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}

    def run(self, *arguments: object) -> str:
        """Runs a command; returns what it prints."""
        done = self._forks.run([str(argument) for argument in arguments], self._environment)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def start(self, terminal: int, *arguments: object) -> Started:
        """Starts a command of a slow model that writes errors to a terminal."""
        environment = {**self._environment, "SECONDS": "0.2"}
        return self._forks.start([str(each) for each in arguments], environment, terminal)


def test_an_analysis_is_one_folder_and_one_line(
    checkout: Path, one_worker: Path, small_sample: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(one_worker, tmp_path / "out"))
    dataset, copied = ("--dataset", output), Copied(checkout)
    assert "--mirrored" in copied.run("evaluate", "--help")
    reference = subprocess.run(
        (sys.executable, "-m", "pipeline.commands.reference"),
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "| `--mirrored " in reference
    assert "results/mirrored.csv" in reference
    job = ("run", "--input", small_sample, "--output", tmp_path / "new", "--segmenter", "box")
    forecast = copied.run(*job, *MODELS, "--mirrored", "--dry_run")
    assert "for a mirrored with 18 pictures" in forecast

    # Killed after its first shard, in a terminal that shows progress.
    copied.run("evaluate", *dataset, *MODELS)
    terminal, its_end = os.openpty()
    started = copied.start(its_end, "evaluate", *dataset, *MODELS, "--mirrored")
    shown, until = b"", time.monotonic() + 120
    while not (first := list(output.glob("results/*/mirrored/*.parquet"))):
        assert started.poll() is None, shown
        assert time.monotonic() < until
        if select.select([terminal], [], [], 0.01)[0]:
            shown += os.read(terminal, 1 << 16)
    os.killpg(started.pid, signal.SIGKILL)
    started.communicate()
    os.close(its_end)
    os.close(terminal)
    assert b"mirrored" in shown
    kept = {path: path.stat().st_mtime_ns for path in first}
    shards = len(list(output.glob("index/*.parquet")))
    assert len(kept) < shards > 1
    printed = copied.run("evaluate", *dataset, *MODELS, "--mirrored")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert len(list(output.glob("results/*/mirrored/*.parquet"))) == shards
    assert "mirrored pictures predicted" in printed

    (row,) = table_of(output, "mirrored")
    accuracy = f"{100 * float(row['accuracy']):.1f}"
    assert accuracy in next(line for line in printed.splitlines() if "slow_models:slow " in line)
    assert f"${accuracy}$" in (output / "results" / "latex" / "mirrored.tex").read_text()
    page = (output / "report.html").read_text()
    assert f"answers {accuracy} % of {int(row['n'])} mirrored pictures correctly" in page
    assert 'href="#mirrored"' in page


def test_an_analysis_and_its_work_have_one_name() -> None:
    analyses = {one.name: one for one in ANALYSES if one.runs_models}
    for analysis in analyses.values():
        importlib.import_module(f"{analysis.implementation.rpartition('.')[0]}.stage")
    works = {work.stage: work for work in PlannedAnalysis.__subclasses__()}
    assert works.keys() == analyses.keys()
    for name, work in works.items():
        assert work.refuses_overlap == analyses[name].refuses_overlap
