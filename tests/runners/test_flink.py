"""Tests the unchanged job on a real Flink: embedded in Beam's job server, and as a cluster."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from flink import Flink, job_server_jar, missing, workers_of
from machines import started, until
from runs import QUICK, TINY_MODEL, finished_shards, results_of, run_in9

IDLE = "from pipeline.runners import portable\nportable.IDLE_SECONDS = portable._LOOK_SECONDS = 1"
"""Makes the limit shorter for jobs that do not begin."""


@pytest.fixture(scope="module")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flink]:
    """A job server and a cluster."""
    with started(Flink, tmp_path_factory.mktemp("machines") / "flink", missing()) as flink:
        flink.cluster()
        yield flink


def test_a_run_that_loses_a_worker_and_one_with_its_own_server_that_has_nothing_to_do(
    flink: Flink, small_sample: Path, tmp_path: Path
) -> None:
    output, local = tmp_path / "out", tmp_path / "local"
    pool = flink.pool(forks=True)
    flags = ("--input", small_sample, *QUICK, "--variants", "original,mixed_rand")
    flags = (*flags, "--pictures", "none", "--output")
    run_in9("run", *flags, local, *TINY_MODEL)
    running = flink.start_in9("run", *flags, output, *TINY_MODEL)
    until(lambda: finished_shards(output) or running.poll() is not None, 300)
    os.kill(workers_of(pool)[0], signal.SIGKILL)
    _, error = running.communicate(timeout=300)
    assert running.returncode == 0, error
    assert results_of(output) == results_of(local)
    # This job starts a server of its own.
    jar = job_server_jar(tmp_path)
    own = ("--runner=FlinkRunner", "--job_endpoint=", f"--flink_job_server_jar={jar}")
    again = flink.start_in9("generate", *flags, output, *own)
    out, error = again.communicate(timeout=300)
    assert again.returncode == 0, error
    assert "nothing to do: everything is up to date" in out
    assert results_of(output) == results_of(local)
    left = subprocess.run(["pgrep", "--full", str(jar)], capture_output=True, check=False)
    assert left.stdout == b""


def test_a_job_that_is_stopped_and_one_whose_workers_cannot_start(
    flink: Flink, small_sample: Path, tmp_path: Path
) -> None:
    # The pool finds another Python than ours.
    other = tmp_path / "python"
    other.write_text("#!/bin/sh\nexit 1\n")
    other.chmod(0o755)
    flink.pool(50001, PATH=f"{tmp_path}:{os.environ['PATH']}")
    flags = ("generate", "--input", small_sample, *QUICK, "--output")
    stopped = flink.start_in9(*flags, tmp_path / "a", port=50001, cluster=True)
    idle = flink.start_in9(*flags, tmp_path / "b", port=50001, cluster=True, before=IDLE)
    until(lambda: sorted(flink.states()) == ["CANCELED", "RUNNING"], 300)
    os.kill(stopped.pid, signal.SIGINT)
    _, error = stopped.communicate(timeout=300)
    assert stopped.returncode == 1
    assert error == "in9 generate: stopped; run the same command again to go on\n"
    _, error = idle.communicate(timeout=300)
    assert idle.returncode == 1, error
    assert re.fullmatch(
        "in9 generate: the job failed: no step has begun 1 s after Flink has started the job: see "
        r"what its worker pools print. Then run the same command again \(details: .*\)\n",
        error,
    )
    until(lambda: flink.states() == ["CANCELED"] * 2, 300)
