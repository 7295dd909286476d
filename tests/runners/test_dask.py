"""Tests jobs whose workers are those of a Dask cluster, with real processes."""

import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from dask_cluster import DaskCluster, dask_cluster
from engine_jobs import Signs, printed
from gcs import free_port
from lost_workers import STEPS, lost_after_steps
from runs import (
    QUICK,
    ROOT,
    everything,
    manifest_of,
    refusal,
    results_of,
    run_in9,
    start_in9,
    take_over,
    wait_until,
)
from spread_steps import Die, outputs_of

import in9
from pipeline.errors import JobError, UsageError
from pipeline.runtime.dask_workers import DaskWorkers
from pipeline.runtime.lock import DATASET_LOCK
from pipeline.storage.store import Store

QUICKLY = ("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
"""Environment variable by which a job waits less long for the scheduler's answer."""


@pytest.fixture(scope="module")
def losses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `lost_after_steps` for the workers of `cluster`."""
    return tmp_path_factory.mktemp("dask") / "losses"


@pytest.fixture(scope="module")
def cluster(losses: Path) -> Iterator[DaskCluster]:
    """A cluster of two workers, which can be lost after each step."""
    variables = lost_after_steps(losses)
    folder = losses.with_name("cluster")
    folder.mkdir()
    with dask_cluster(folder, 2, **variables) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler without workers, which deals no call of a lost worker again."""
    never = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with dask_cluster(tmp_path_factory.mktemp("bare"), 0, **never) as cluster:
        yield cluster


def without_progress(error: str) -> str:
    """Removes the lines of progress that a stage leaves if it takes longer than half a minute."""
    return re.sub(r"(?m)^\w+: \d+ of \d+ \w+.*\n", "", error)


def test_a_job_that_loses_a_worker_in_each_step_says_and_makes_what_one_in_threads_does(
    cluster: DaskCluster,
    losses: Path,
    whole_job: tuple[object, ...],
    by_threads: Path,
    modules: Path,
) -> None:
    for step in STEPS:
        (losses / step).touch()
    output = modules.with_name("out")
    done = run_in9(*whole_job, output, "--dask", cluster.address)
    assert {path.name for path in losses.iterdir()}.isdisjoint(STEPS)
    assert printed(done.stdout, output) == (by_threads / "stdout").read_text().splitlines()
    assert without_progress(done.stderr) == ""
    assert results_of(output) == results_of(by_threads / "out")


@pytest.fixture
def job(quick_job: tuple[object, ...], modules: Path) -> tuple[object, ...]:
    """A command that makes a dataset quickly; its segmenter and output folder are to follow."""
    return quick_job


def test_workers_that_are_killed_at_once_are_started_again(
    cluster: DaskCluster, job: tuple[object, ...], modules: Path, tmp_path: Path, by_signs: Path
) -> None:
    signs = Signs(modules)
    command = (*job, *signs.flags, "--output")
    running = start_in9(*command, tmp_path / "out", "--dask", cluster.address)
    wait_until(lambda: len(signs.seen()) == 2, running)
    killed = cluster.workers()
    assert killed == signs.seen()
    for worker in killed:
        os.kill(worker, signal.SIGKILL)
    wait_until(lambda: len(signs.seen()) == 4, running)
    signs.go_on()
    _, error = running.communicate()
    assert running.returncode == 0, error
    assert results_of(tmp_path / "out") == results_of(by_signs)


def test_no_call_of_a_job_that_has_ended_goes_on(
    cluster: DaskCluster, job: tuple[object, ...], modules: Path, tmp_path: Path, by_signs: Path
) -> None:
    signs, output = Signs(modules), tmp_path / "out"
    command = (*job, *signs.flags, "--output")
    said = {}
    for how in (signal.SIGINT, signal.SIGKILL):
        before = signs.seen()
        running = start_in9(*command, output, "--dask", cluster.address)
        wait_until(lambda before=before: len(signs.seen() - before) == 2, running)
        os.killpg(running.pid, how)
        _, said[how] = running.communicate(timeout=30)
        assert running.returncode == (1 if how == signal.SIGINT else -how)
        signs.wait_for_end()
    assert said[signal.SIGINT] == "in9 generate: stopped; run the same command again to go on\n"
    left = everything(output)
    signs.go_on()
    time.sleep(0.5)
    assert everything(output) == left
    assert not (output / "manifest.json").exists()
    run_in9(*command, output, "--dask", cluster.address)
    assert results_of(output) == results_of(by_signs)


def test_a_job_that_is_killed_moves_nothing_afterwards(
    cluster: DaskCluster, losses: Path, job: tuple[object, ...], tmp_path: Path, by_boxes: Path
) -> None:
    output, hold = tmp_path / "out", losses / "Move"
    hold.mkdir()
    running = start_in9(*job, "--output", output, "--dask", cluster.address)
    wait_until(lambda: [*hold.iterdir()], running)
    running.kill()
    running.wait()
    left = results_of(output)
    time.sleep(5)
    assert results_of(output) == left
    shutil.rmtree(hold)
    run_in9(*job, "--output", output, "--dask", cluster.address)
    assert results_of(output) == results_of(by_boxes)


def test_a_job_that_has_lost_its_lock_moves_nothing(
    cluster: DaskCluster, losses: Path, job: tuple[object, ...], tmp_path: Path
) -> None:
    output, hold = tmp_path / "out", losses / "Move"
    hold.mkdir()
    running = start_in9(*job, "--output", output, "--dask", cluster.address)
    wait_until(lambda: [*hold.iterdir()], running)
    take_over(Store(str(output)), DATASET_LOCK)
    left = results_of(output)
    _, error = running.communicate(timeout=60)
    shutil.rmtree(hold)
    assert running.returncode == 1
    assert "It stops without writing" in error.splitlines()[-1]
    assert results_of(output) == left


def test_a_job_that_loses_the_scheduler_ends_in_one_line(
    job: tuple[object, ...], modules: Path, tmp_path: Path, by_signs: Path
) -> None:
    signs, output = Signs(modules), tmp_path / "out"
    (folder := tmp_path / "dask").mkdir()
    command = (*job, *signs.flags, "--output")
    with dask_cluster(folder, 1) as cluster:
        running = start_in9(*command, output, "--dask", cluster.address)
        wait_until(signs.seen, running)
        os.killpg(cluster.scheduler.pid, signal.SIGKILL)
        _, error = running.communicate(timeout=60)
    assert running.returncode == 1
    assert error.count("\n") == 1
    assert "Run the same command again to go on" in error
    signs.go_on()
    run_in9(*command, output)
    assert results_of(output) == results_of(by_signs)


def test_jobs_share_workers(
    cluster: DaskCluster, job: tuple[object, ...], tmp_path: Path, by_boxes: Path
) -> None:
    outputs = [tmp_path / name for name in ("a", "b")]
    running = [start_in9(*job, "--output", out, "--dask", cluster.address) for out in outputs]
    for one, output in zip(running, outputs, strict=True):
        _, error = one.communicate(timeout=100)
        assert one.returncode == 0, error
        assert results_of(output) == results_of(by_boxes)


EDITED = """
import numpy as np

def segment(image, box):
    mask = np.zeros(image.shape[:2], bool)
    mask[box[1] : box[1] + {height}, box[0] : box[2] + 1] = True
    return mask
"""


def test_workers_run_the_code_of_the_job(
    cluster: DaskCluster, bare: DaskCluster, job: tuple[object, ...], modules: Path, tmp_path: Path
) -> None:
    """Edits a segmenter, which only the launching process finds by itself, between jobs."""
    command = (*job, "--segmenter", "python:edited:segment", "--output")

    def edit(height: int) -> None:
        (modules / "edited.py").write_text(EDITED.format(height=height))

    old = bare.add("--no-nanny")
    for height, name in ((8, "first"), (16, "second")):
        edit(height)
        run_in9(*command, tmp_path / name, "--dask", cluster.address)
        run_in9(*command, tmp_path / f"fresh-{name}")
        assert results_of(tmp_path / name) == results_of(tmp_path / f"fresh-{name}")
        if height == 8:
            run_in9(*command, tmp_path / "alone", "--dask", bare.address)
    assert manifest_of(tmp_path / "first") != manifest_of(tmp_path / "second")
    done = run_in9(*command, tmp_path / "refused", "--dask", bare.address, check=1)
    bare.remove(old)
    assert done.stderr.count("\n") == 1
    assert "a worker has imported other code" in done.stderr
    assert "restart it" in done.stderr


def test_a_job_waits_for_the_first_worker(
    bare: DaskCluster, job: tuple[object, ...], tmp_path: Path, by_boxes: Path
) -> None:
    running = start_in9(*job, "--output", tmp_path / "out", "--dask", bare.address)
    started = time.monotonic()
    wait_until(lambda: running.written(), running)
    assert 9 < time.monotonic() - started < 20
    (worker,) = bare.add()
    _, error = running.communicate(timeout=60)
    bare.remove([worker])
    assert running.returncode == 0, error
    waits = f"in9: WARNING: waiting for workers: none is connected with {bare.address}\n"
    assert without_progress(error) == waits
    assert results_of(tmp_path / "out") == results_of(by_boxes)


def test_a_worker_of_another_version_ends_the_job(
    bare: DaskCluster, job: tuple[object, ...], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    for folder in ("pipeline", "transforms"):
        shutil.copytree(ROOT / folder, other / folder)
    with (other / "pipeline" / "errors.py").open("a") as file:
        file.write("# Another version.\n")
    workers = bare.add(PYTHONPATH=str(other))
    done = run_in9(*job, "--output", tmp_path / "out", "--dask", bare.address, check=1)
    bare.remove(workers)
    assert done.stderr.count("\n") == 1
    assert f"the worker {os.uname().nodename} has in9 " in done.stderr
    assert ", but the job has " in done.stderr


def test_a_call_that_ends_each_worker_ends_the_job(
    bare: DaskCluster, modules: Path, tmp_path: Path
) -> None:
    workers = bare.add()
    lost = r"workers were lost at one part; the last was tcp://127.0.0.1:\d+\. Run the same command"
    with pytest.raises(JobError, match=lost):
        outputs_of(DaskWorkers(bare.address), Die(), [0], tmp_path)
    bare.remove(workers)


def test_the_address_of_the_environment_is_checked_before_the_job(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    command = ("generate", "--output", tmp_path / "out", *QUICK, "--dask", "auto")
    assert "DASK_SCHEDULER_ADDRESS, which is not set" in refusal(capsys, *command)
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://192.0.2.1:8786")
    assert "whoever reaches tcp://192.0.2.1:8786 can run code" in refusal(capsys, *command)


def test_a_scheduler_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*QUICKLY)
    for address in (f"tcp://127.0.0.1:{free_port()}", "tcp://192.0.2.1:8786"):
        insecure = "" if "127" in address else "insecure:"
        dask = ("--dask", f"{insecure}{address}")
        done = run_in9("generate", "--output", tmp_path / "out", *QUICK, *dask, check=2)
        assert done.stderr.count("\n") == 1
        assert f"no scheduler answers at {address}: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_stages_of_other_pipelines_have_the_workers_of_these(
    small_sample: Path, one_worker: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="--dask is no flag of a stage"):
        in9.Generate(tmp_path / "out", input=small_sample, dask="auto")
    with pytest.raises(UsageError, match="--dask is no flag of a stage"):
        in9.Evaluate(one_worker, models=["python:tiny_models:first"], dask="auto")
