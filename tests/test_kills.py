"""Kills and interruptions at any moment: the next run goes on, and nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import manifest_of, run_in9, stamps
from soundness import assert_sound

from pipeline.storage.lock import DATASET_LOCK

KILLS = 10
FLAGS = ("--images_per_shard", "2", "--formats", "parquet")
FEWER = ("--variants", "original,mixed_same,mixed_rand")


def start(*arguments: object) -> subprocess.Popen[str]:
    """Starts the command line in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def results_of(output: Path) -> dict[str, bytes]:
    """Everything but notes of jobs."""
    return {
        str(path.relative_to(output)): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and ".in9" not in path.parts
    }


def finished_shards(output: Path) -> dict[str, int]:
    """Records of source shards, staged or in place, with the time at which they were made."""
    return {
        path.name: path.stat().st_mtime_ns
        for path in output.rglob("val-*.parquet")
        if path.parent.name == "layers"
    }


def test_ten_kills_at_random_moments_change_nothing(small_sample: Path, tmp_path: Path) -> None:
    fresh, output = tmp_path / "fresh", tmp_path / "out"
    run = ("run", "--input", small_sample, *FLAGS, *FEWER, "--output")
    started = time.monotonic()
    assert start(*run, fresh).wait() == 0
    seconds = time.monotonic() - started
    moments = random.Random(9)
    finished: dict[str, int] = {}
    killed = 0
    while killed < KILLS:
        running = start(*run, output)
        # Not while Python is still importing: nothing can be lost there.
        time.sleep(moments.uniform(0.25, 0.8) * seconds)
        if running.poll() is None:
            killed += 1
            os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        if (output / "manifest.json").exists():
            # Valid whenever its manifest is there.
            assert_sound(output)
        # What an earlier run has finished was not made again.
        there = finished_shards(output)
        assert {name: there[name] for name in finished} == finished
        finished = there
        if running.returncode == 0:
            assert results_of(output) == results_of(fresh)
            if killed < KILLS:
                shutil.rmtree(output)
                finished = {}
    last = run_in9(*run, output)
    there = finished_shards(output)
    assert {name: there[name] for name in finished} == finished
    if len(finished) == len(there):
        assert "18 images segmented" not in last.stdout
    assert results_of(output) == results_of(fresh)
    assert_sound(output)
    left = {path.relative_to(output / ".in9").parts[0] for path in (output / ".in9").rglob("*")}
    assert left == {"checksums", "input.json", "last_run.json", "report.json", "tmp"}
    assert not list(output.glob(".in9/tmp/*"))


def wait_until(happened: Callable[[], object], running: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not happened():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.002)


STAGES: dict[str, Callable[[Path], object]] = {
    "start": lambda output: output.exists(),
    "segment": lambda output: list(output.glob(".in9/staging/*/layers/*.parquet")),
    "compose": lambda output: list(output.glob(".in9/staging/*/plan/*")),
    "evaluate": lambda output: list(output.glob(".in9/lock-efficientnet*")),
}


@pytest.mark.parametrize(
    ("stage", "how", "flags"),
    [
        ("start", signal.SIGINT, ()),
        ("segment", signal.SIGINT, ()),
        ("segment", signal.SIGTERM, ()),
        ("segment", signal.SIGINT, ("--direct_running_mode=multi_processing",)),
        ("compose", signal.SIGINT, ()),
        ("evaluate", signal.SIGINT, ()),
    ],
    ids=["start", "segment", "SIGTERM", "processes", "compose", "evaluate"],
)
def test_ctrl_c_leaves_in_a_second_with_one_line(
    small_sample: Path, tmp_path: Path, stage: str, how: signal.Signals, flags: tuple[str, ...]
) -> None:
    output = tmp_path / "out"
    running = start("run", "--input", small_sample, "--output", output, *FLAGS, *flags)
    wait_until(lambda: STAGES[stage](output), running)
    # A terminal sends it to all processes of the group.
    os.killpg(running.pid, how)
    stopped = time.monotonic()
    out, said = running.communicate(timeout=60)
    assert time.monotonic() - stopped < 3  # One, on a machine that does nothing else.
    assert running.returncode == 1
    assert said == "in9 run: stopped; run the same command again to go on\n"
    assert out == ""
    locks = {path.name for path in output.glob(".in9/lock*")}
    assert locks == set()
    # No worker stays behind.
    until = time.monotonic() + 10
    while group_is_alive(running.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert not group_is_alive(running.pid)


def group_is_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_dataset_stays_valid_until_commit(small_input: Path, tmp_path: Path) -> None:
    """A run that is killed before Commit leaves the dataset that was there, byte by byte."""
    output = tmp_path / "out"
    flags = ("generate", "--input", small_input, "--output", output, *FLAGS)
    run_in9(*flags)
    before, manifest = stamps(output), manifest_of(output)
    for image in sorted(small_input.glob("val/*/*.JPEG"))[::4]:
        # Other bytes, the same pixels.
        image.write_bytes(image.read_bytes()[:-2] + b"\xff\xfe\x00\x04in\xff\xd9")
    running = start(*flags, "--overwrite", "rebuild")
    wait_until(lambda: list(output.glob(".in9/staging/*/index/*.parquet")), running)
    running.kill()
    running.communicate()
    if manifest_of(output) == manifest:
        assert stamps(output) == before
        assert (output / DATASET_LOCK).exists()
    assert_sound(output)
    run_in9(*flags)
    assert manifest_of(output)["fingerprint"] != manifest["fingerprint"]
    assert_sound(output)


def test_four_models_are_evaluated_at_once_and_the_tables_hold_all(
    tiny_input: Path, tmp_path: Path
) -> None:
    import timm
    import torch

    output = tmp_path / "out"
    flags = ("--variants", "original,mixed_same,mixed_rand", "--formats", "parquet")
    run_in9("generate", "--input", tiny_input, "--output", output, *flags)
    models = ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "trained.pth")
    models.append(f"resnet18={tmp_path / 'trained.pth'}")
    running = [start("evaluate", "--dataset", output, "--models", model) for model in models]
    for process in running:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    gaps = (output / "results" / "gaps.csv").read_text()
    page = (output / "report.html").read_text()
    for model in (*models[:3], "resnet18"):
        assert f"\n{model}" in gaps
        assert model in page
    # The tables are made from what is there.
    shutil.rmtree(output / "results" / "efficientnet_lite1")
    run_in9("report", "--dataset", output)
    gaps = (output / "results" / "gaps.csv").read_text()
    assert "efficientnet_lite1" not in gaps
    assert "efficientnet_lite2" in gaps
    assert json.loads((output / "results" / "efficientnet_lite0" / "summary.json").read_text())
