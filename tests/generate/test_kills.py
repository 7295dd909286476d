"""Tests kills and interruptions at any moment: the next run goes on, and nothing stays behind."""

import os
import random
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from runs import (
    ONE,
    QUICK,
    THREADS,
    TINY_MODEL,
    finished_shards,
    keys,
    results_of,
    run_here,
    run_in9,
    start_in9,
    table_of,
    wait_until,
)
from soundness import assert_sound

KILLS = 4
FLAGS = (*keys(images_per_shard=2), "--formats", "parquet")
QUICKLY = (*QUICK, "--variants", "original,mixed_same,mixed_rand")


def test_kills_at_random_moments_change_nothing(small_sample: Path, tmp_path: Path) -> None:
    fresh, output = tmp_path / "fresh", tmp_path / "out"
    run = ("run", "--input", small_sample, *FLAGS, *QUICKLY, *TINY_MODEL, "--output")
    started = time.monotonic()
    run_in9(*run, fresh)
    seconds = time.monotonic() - started
    moments, killed, finished = random.Random(9), 0, dict[str, int]()
    while killed < KILLS:
        started = time.monotonic()
        running = start_in9(*run, output)
        time.sleep(moments.uniform(0.05, 0.6) * seconds)
        if running.poll() is None:
            killed += 1
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        if (output / "manifest.json").exists():
            # A dataset that has its manifest is valid.
            assert_sound(output)
        # Shards that an earlier run finished are not made again.
        shards = finished_shards(output)
        assert {name: shards[name] for name in finished} == finished
        finished = shards
        if running.returncode == 0:
            # It took less time than the one before.
            seconds = time.monotonic() - started
            assert results_of(output) == results_of(fresh)
            if killed < KILLS:
                shutil.rmtree(output)
                finished = {}
    last = run_in9(*run, output)
    shards = finished_shards(output)
    assert {name: shards[name] for name in finished} == finished
    if len(finished) == len(shards):
        assert "18 images segmented" not in last.stdout
    assert results_of(output) == results_of(fresh)
    assert_sound(output)
    remaining = {path.name for path in (output / ".in9").iterdir()}
    assert remaining == {"checksums", "input.json", "last_run.json", "report.json", "tmp"}
    assert not list(output.glob(".in9/tmp/*"))


# Segmenters and a model that create a file as they begin, and then work for minutes.
SLOW = """
import os, pathlib, signal, threading, time
import torch

def work(*_):
    pathlib.Path(os.environ["AT_WORK"]).touch()
    time.sleep(120)

def segmenter(image, box):
    work()

def hiding_segmenter(image, box):
    try:
        work()
    except KeyboardInterrupt:
        raise RuntimeError("a library makes something else of it")

def interrupted_segmenter(image, box):
    try:
        pathlib.Path(os.environ["AT_WORK"]).touch(exist_ok=False)
    except FileExistsError:
        pass
    else:
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
    time.sleep(120)

class Network(torch.nn.Module):
    forward = work

def model():
    return Network()
"""


@pytest.fixture
def slow_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `SLOW` as a module, in which the file `at-work` appears."""
    (tmp_path / "slow_work.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("AT_WORK", str(tmp_path / "at-work"))
    return tmp_path


STAGES = {
    "start": (),
    "segment": ("--segmenter", "python:slow_work:segmenter"),
    "segment hides it": ("--segmenter", "python:slow_work:hiding_segmenter"),
    "evaluate": ("--segmenter", "box", "--models", "python:slow_work:model"),
}


@pytest.mark.parametrize(
    ("stage", "how", "flags"),
    [
        ("start", signal.SIGINT, ()),
        ("segment", signal.SIGINT, THREADS),
        ("segment", signal.SIGINT, ("--direct_running_mode=multi_processing",)),
        # With one worker, the main thread does the work.
        ("segment hides it", signal.SIGTERM, ONE),
        ("evaluate", signal.SIGHUP, ONE),
    ],
    ids=["start", "threads", "processes", "hidden", "evaluate"],
)
def test_ctrl_c_leaves_with_one_line_in_the_middle_of_work(
    tiny_input: Path, slow_work: Path, stage: str, how: signal.Signals, flags: tuple[str, ...]
) -> None:
    output, at_work = slow_work / "out", slow_work / "at-work"
    run = ("run", "--input", tiny_input, "--output", output, *FLAGS)
    running = start_in9(*run, *STAGES[stage], *flags)
    wait_until((output if stage == "start" else at_work).exists, running)
    # A terminal sends the signal to all processes of the group.
    os.killpg(running.pid, how)
    # A run that waited for the work would need 120 seconds.
    out, error = running.communicate(timeout=110)
    assert running.returncode == 1
    *progress, last = error.splitlines()
    assert last == "in9 run: stopped; run the same command again to go on"
    # If starting takes long, lines of progress come first.
    assert all(re.match(rf"{stage.split()[0]}: 0 of ", line) for line in progress), error
    assert out == ""
    assert not list(output.glob(".in9/lock*"))
    # No worker stays behind.
    until = time.monotonic() + 110
    while group_is_alive(running.pid):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_signal_that_a_worker_thread_gets_stops_the_run(
    tiny_input: Path, slow_work: Path
) -> None:
    """Tests a signal that does not interrupt the main thread, which waits for the job."""
    segmenter = ("--segmenter", "python:slow_work:interrupted_segmenter", *FLAGS)
    folders = ("--input", tiny_input, "--output", slow_work / "out")
    running = start_in9("run", *folders, *segmenter, *THREADS)
    # A run that was not stopped would need 120 seconds.
    _, error = running.communicate(timeout=100)
    assert running.returncode == 1
    assert error.splitlines()[-1] == "in9 run: stopped; run the same command again to go on"


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_models_that_are_evaluated_at_once_are_all_in_the_tables(
    tiny_input: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run_here("generate", "--input", tiny_input, "--output", output, *QUICKLY, *ONE)
    models = [f"python:tiny_models:{name}" for name in ("first", "second", "third")]
    running = [start_in9("evaluate", "--dataset", output, "--models", model) for model in models]
    for process in running:
        _, error = process.communicate()
        assert process.returncode == 0, error
    assert {row["model"] for row in table_of(output, "gaps")} == set(models)
    page = (output / "report.html").read_text()
    assert all(model in page for model in models)
