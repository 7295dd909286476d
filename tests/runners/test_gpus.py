"""Tests that each of several GPUs of this machine has a process of its own."""

import json
import os
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import DirectOptions
from engine_jobs import listened_at
from runs import ONE, QUICK, SHARDS, run_in9, start_in9
from spread_steps import Sleep, outputs_of

from pipeline.errors import JobError
from pipeline.runners import beam_options
from pipeline.runners.beam_options import engine_of, pipeline_options
from pipeline.runtime.machine import see_one_gpu, usable_cores
from pipeline.runtime.workers import LocalThreads, LocalWorkers

pytestmark = pytest.mark.usefixtures("no_figures")

SEEN = """
import json, os, pathlib, torch
from pipeline.evaluate import resident
resident.usable_memory = lambda: 800
def note_cache(budget, pinned):
    note("cache", budget)
    return caches(budget, pinned)
caches, note_cache.cache_clear = resident._cache_of, resident._cache_of.cache_clear
resident._cache_of = note_cache
def note(what, value):
    path = pathlib.Path(__file__).with_name(f"{os.urandom(4).hex()}.json")
    path.write_text(json.dumps([os.environ.get("CUDA_VISIBLE_DEVICES"), what, value]))
def linear(seed):
    note("process", os.getpid())
    note("threads", torch.get_num_threads())
    torch.manual_seed(seed)
    layers = torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(192, 1000)
    return torch.nn.Sequential(*layers)
def first():
    return linear(1)
def second():
    return linear(2)
"""


def noted(folder: Path) -> dict[str, dict[str, set[int]]]:
    """Returns what the processes of each GPU have noted, and removes their notes."""
    found: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for file in folder.glob("*.json"):
        gpu, what, value = json.loads(file.read_text())
        found[gpu][what].add(value)
        file.unlink()
    return found


def test_a_process_runs_all_models_and_stages_of_its_gpu(
    quick_shards: Path, small_sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "seen.py").write_text(SEEN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.syspath_prepend(tmp_path)
    # The test pretends that the machine has three GPUs.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7,9")
    models = ("--models", "python:seen:first,python:seen:second", "--attack", 2)
    made = ("--input", small_sample, *QUICK, *SHARDS)
    run = ("run", *made, *models, "--pictures", "none", "--output")
    several, one = (Path(shutil.copytree(quick_shards, tmp_path / name)) for name in ("a", "b"))
    running = start_in9(*run, several, "--gpus", 2)
    assert listened_at(running) == set()
    assert running.returncode == 0, running.communicate()
    seen = noted(tmp_path)
    assert seen.keys() == {"6", "7"}
    for of_gpu in seen.values():
        assert len(of_gpu["process"]) == 1
        assert of_gpu["threads"] == {max(1, usable_cores() // 2)}
        assert of_gpu["cache"] == {100}
    # As many blocks in one process, because a block has its share of the cores.
    run_in9(*run, one, "--gpus", 2, *ONE)
    assert noted(tmp_path).keys() == {"6,7,9"}
    files = [file for kind in ("csv", "parquet") for file in one.rglob(f"results/**/*.{kind}")]
    assert len(files) > 8
    for file in files:
        assert (several / file.relative_to(one)).read_bytes() == file.read_bytes(), file


def test_models_run_in_the_process_of_the_job_or_else_all_other_steps(tmp_path: Path) -> None:
    for has_cards, card in ((True, None), (False, int)):
        with LocalWorkers(2, has_cards=has_cards) as workers:
            found, _ = outputs_of(workers, Sleep(), [0.0] * 6, tmp_path, card)
        assert found == [os.getpid()] * 6


def test_a_process_that_sees_several_gpus_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As where counting GPUs starts CUDA, which then sees them all.
    (tmp_path / "sitecustomize.py").write_text(
        "import torch\ntorch.cuda.device_count = lambda: 2\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with (
        LocalWorkers(1, has_cards=True) as workers,
        pytest.raises(JobError, match="this one sees 2: name those to use in CUDA_VISIBLE_DEVICES"),
    ):
        outputs_of(workers, Sleep(), [0.0], tmp_path, int)


def test_processes_are_started_unless_flags_say_how_workers_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beam_options, "usable_cores", lambda: 5)

    def started(*flags: str, gpus: int = 3) -> tuple[type, int, bool]:
        options = pipeline_options([*flags])
        engine = engine_of(options, flags, None, gpus)
        # Beam itself starts none, since its processes are called at ports.
        assert options.view_as(DirectOptions).direct_running_mode == "in_memory"
        assert isinstance(engine, LocalThreads)
        return type(engine), engine._number, engine.has_cards

    assert started() == (LocalWorkers, 3, True)
    assert started(gpus=8) == (LocalWorkers, 8, True)
    assert started(gpus=1) == (LocalWorkers, 5, False)
    for threads in ("in_memory", "multi_threading"):
        assert started(f"--direct_running_mode={threads}") == (LocalThreads, 5, False)
    assert started("--direct_running_mode", "multi_processing") == (LocalWorkers, 5, False)
    assert started("--direct_num_workers=2") == (LocalWorkers, 2, False)
    assert started("--direct_num_workers=1") == (LocalThreads, 1, False)


def test_a_worker_sees_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen, count, seen in (
        (None, 4, ["0", "1", "2", "3", "0"]),
        ("2,GPU-5b", 4, ["2", "GPU-5b", "2", "GPU-5b", "2"]),
        (None, 0, [None] * 5),
        ("", 0, [""] * 5),
        ("0,0", 1, ["0"] * 5),
    ):
        for number, expected in enumerate(seen):
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen or "")
            if chosen is None:
                monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
            see_one_gpu(number, lambda count=count: count)
            assert os.environ.get("CUDA_VISIBLE_DEVICES") == expected
