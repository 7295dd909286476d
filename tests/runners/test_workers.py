"""Tests workers that a command or pools start, with real processes."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import grpc
import pytest
from apache_beam.portability.api import (
    beam_artifact_api_pb2 as artifacts,
)
from apache_beam.portability.api import (
    beam_artifact_api_pb2_grpc,
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
)
from cluster import LOOPBACK, listens_at, wait_for
from gcs import free_port
from machines import Slurm, until, why_not
from runs import (
    QUICK,
    ROOT,
    finished_shards,
    manifest_of,
    refusal,
    results_of,
    run_in9,
    start_in9,
    wait_until,
)

from pipeline.errors import JobError
from pipeline.runners.coordinator import Coordinator
from pipeline.runners.workers import Workers

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

HERE = ("--worker_command", "env", "--callback_address", "127.0.0.1")
"""Starts workers on this machine, by a command that does nothing else."""


@pytest.fixture(autouse=True)
def paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers find this checkout, and the models of tests."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}")


def _children(pid: int) -> list[int]:
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for thread in threads for child in thread.read_text().split()]


def _workers(pid: int) -> list[int]:
    """Returns the process ids of the workers that a process has started, oldest first."""
    return sorted(child for child in _children(pid) if b"runners.worker" in _command(child))


def _command(pid: int) -> bytes:
    with contextlib.suppress(OSError):  # It may have ended.
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _ask(address: str, worker: str) -> set[str]:
    """Tries every method of a job's servers and pools; returns the codes of the answers."""
    fn, codes = beam_fn_api_pb2, set()
    with grpc.insecure_channel(address) as channel:
        provision = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        retrieval = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(channel)
        control = beam_fn_api_pb2_grpc.BeamFnControlStub(channel)
        pool = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
        file = artifacts.GetArtifactRequest()
        file.artifact.type_urn = "beam:artifact:type:file:v1"
        file.artifact.type_payload = b"\n\x0b/etc/passwd"
        data = beam_fn_api_pb2_grpc.BeamFnDataStub(channel).Data
        state = beam_fn_api_pb2_grpc.BeamFnStateStub(channel).State
        logging = beam_fn_api_pb2_grpc.BeamFnLoggingStub(channel).Logging
        calls: list[tuple[Any, Any]] = [
            (provision.GetProvisionInfo, beam_provision_api_pb2.GetProvisionInfoRequest()),
            (control.GetProcessBundleDescriptor, fn.GetProcessBundleDescriptorRequest()),
            (pool.StartWorker, fn.StartWorkerRequest()),
            (retrieval.GetArtifact, file),
            *((stream, iter(())) for stream in (control.Control, data, state, logging)),
        ]
        for call, request in calls:
            try:
                who = [("worker_id", worker), ("secret", worker)]
                answer = call(request, metadata=who, timeout=10)
                list(answer) if isinstance(answer, Iterator) else None
                codes.add("OK")
            except grpc.RpcError as error:
                codes.add(error.code().name)
    return codes


def test_a_run_by_a_command_survives_a_kill_and_tells_strangers_nothing(
    small_sample: Path, small_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run = ("run", "--input", small_sample, "--output", output)
    running = start_in9(*run, *HERE, "--direct_num_workers=2", "--gpus", 2)
    wait_until(lambda: finished_shards(output), running)
    places = listens_at(running.pid)
    assert {address for address, _ in places} <= LOOPBACK
    ports = [f"127.0.0.1:{port}" for _, port in places]
    assert len(ports) == 4
    answers = {code for port in ports for worker in ("", "worker_0") for code in _ask(port, worker)}
    assert answers == {"UNAUTHENTICATED"}
    os.kill(_workers(running.pid)[0], signal.SIGKILL)
    _, error = running.communicate()
    assert running.returncode == 0, error
    assert "a worker ended with exit code -9; its part is done again" in error
    assert results_of(output) == results_of(small_run)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret"
    path.write_text(secrets.token_hex())
    return path


@contextlib.contextmanager
def _pool(secret: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = free_port()
    listen = ("--listen", f"127.0.0.1:{port}", "--secret", str(secret))
    process = subprocess.Popen([sys.executable, "-m", "pipeline.runners.pool", *listen])
    try:
        wait_for(port, process)
        yield process, f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_two_pools(small_sample: Path, secret: Path, tmp_path: Path) -> None:
    flags = ("generate", "--input", small_sample, *QUICK, "--images_per_shard", 2, "--output")
    run_in9(*flags, tmp_path / "fresh")
    with _pool(secret) as (first, a), _pool(secret) as (second, b):
        assert _ask(a, "a" * 64) == {"UNAUTHENTICATED", "UNIMPLEMENTED"}
        other = tmp_path / "other"
        other.write_text(secrets.token_hex())
        pools = ("--worker_pools", f"{a},{b}", "--callback_address", "127.0.0.1")
        done = run_in9(*flags, tmp_path / "out", *pools, "--worker_secret", other, check=1)
        assert "a worker was not started by the pool 127.0.0.1:" in done.stderr
        assert ": the pool has another secret" in done.stderr
        assert not _children(first.pid) + _children(second.pid)
        running = start_in9(*flags, tmp_path / "out", *pools, "--worker_secret", secret)
        had_workers = set()
        while running.poll() is None:
            had_workers |= {pool.pid for pool in (first, second) if _workers(pool.pid)}
            time.sleep(0.05)
        assert running.returncode == 0, running.communicate()
    assert had_workers == {first.pid, second.pid}
    assert results_of(tmp_path / "out") == results_of(tmp_path / "fresh")


def _run(workers: Workers, function: Callable[[int], object]) -> None:
    """Runs a function on eight numbers."""
    pipeline = beam.Pipeline(Coordinator(workers))
    _ = pipeline | beam.Create(range(8)) | beam.Reshuffle() | beam.Map(function)
    pipeline.run()


def test_a_lost_workers_part_is_done_again_and_no_element_comes_twice(tmp_path: Path) -> None:
    folder = str(tmp_path)

    def work(number: int) -> int:
        import os
        import signal

        is_first = not os.path.exists(f"{folder}/lost")
        if number == 3 and is_first:
            open(f"{folder}/lost", "w").close()
            # It no longer answers, but its connections stay open.
            os.kill(os.getpid(), signal.SIGSTOP)
        return number

    def gather(numbers: object) -> None:
        with open(f"{folder}/numbers", "w") as file:
            file.write(str(sorted(numbers)))  # type: ignore[call-overload]

    pipeline = beam.Pipeline(Coordinator(Workers(2, seconds=10)))
    numbers = pipeline | beam.Create(range(8)) | beam.Reshuffle() | beam.Map(work)
    # The last stage has no output, in which the loss of a worker would show.
    _ = numbers | beam.combiners.ToList() | beam.Map(gather)
    pipeline.run()
    assert (tmp_path / "numbers").read_text() == str(list(range(8)))


def test_what_ends_the_job(tmp_path: Path) -> None:
    def kill(number: int) -> None:
        import os

        if number == 3:
            os.kill(os.getpid(), 9)

    def fail(number: int) -> None:
        open(f"{tmp_path}/{number}", "x").close()
        raise ValueError("ours")

    with pytest.raises(JobError, match="4 workers were lost at one part; a worker"):
        _run(Workers(5), kill)
    with pytest.raises(JobError, match="no worker is left: a worker ended with exit code -9"):
        _run(Workers(1), kill)
    # A second attempt would fail, because the file exists.
    with pytest.raises(RuntimeError, match="ValueError: ours"):
        _run(Workers(2), fail)
    with pytest.raises(JobError, match="a worker ended with exit code 3: no node is free"):
        _run(Workers(2, ("sh", "-c", "echo no node is free; exit 3")), print)
    never = ("sh", "-c", "echo no node is free yet; sleep 600")
    with pytest.raises(JobError, match="a worker has not called back in 1 s: no node is free yet"):
        _run(Workers(2, never, seconds=1), print)


def test_flags_of_workers_are_checked_before_the_job(
    secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*flags: object) -> str:
        return refusal(capsys, "generate", "--output", tmp_path / "out", *QUICK, *flags)

    two = ("--direct_num_workers", 2)
    assert "--worker_command needs --direct_num_workers" in refused(*HERE)
    assert "there is no such command" in refused("--worker_command", "no-such", *two)
    assert "No closing quotation" in refused("--worker_command", "env 'x", *two)
    assert "go with --worker_command or" in refused("--callback_address", "127.0.0.1")
    assert "exclude each other" in refused(*HERE, "--worker_pools", "a:1")
    assert "--worker_pools needs --worker_secret" in refused("--worker_pools", "a:1")
    assert "need no --runner" in refused(*HERE, "--runner", "DataflowRunner")
    assert "is no address of this machine" in refused(
        *HERE, *two, "--callback_address", "192.0.2.1"
    )
    empty = tmp_path / "empty"
    empty.touch()
    pool = ("--worker_pools", "a:1", "--worker_secret")
    assert "holds no secret" in refused(*pool, empty)
    assert "cannot be read: No such file" in refused(*pool, tmp_path / "nothing")


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_a_job_of_slurm_that_loses_a_node(
    small_sample: Path, small_run: Path, tmp_path: Path
) -> None:
    output, log = tmp_path / "out", tmp_path / "job.log"
    flags = ("generate", "--input", small_sample, "--output", output, "--worker_timeout", 12)
    with contextlib.ExitStack() as stack:
        folder = tmp_path / "slurm"
        folder.mkdir()
        slurm = Slurm(stack, folder)
        submit = ("sbatch", "--ntasks=2", "--ntasks-per-node=1", f"--output={log}")
        assert slurm.ask("n1", *submit, ROOT / "deploy" / "slurm" / "in9.sbatch", *flags)
        until(lambda: finished_shards(output), 120)
        slurm.take_away("n2")
        until(lambda: not slurm.ask("n1", "squeue", "-h"), 120)
    assert "its part is done again" in log.read_text()
    assert manifest_of(output) == manifest_of(small_run)
