"""Tests workers that a command or pools start, with real processes."""

from __future__ import annotations

import contextlib
import hmac
import os
import queue
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from machines import NODES, Slurm, missing, until
from runs import (
    QUICK,
    ROOT,
    manifest_of,
    refusal,
    results_of,
    run_in9,
    start_in9,
    wait_until,
)

from pipeline.errors import JobError
from pipeline.runners.coordinator import Coordinator
from pipeline.runners.worker import CONTROL, ask_pool, read_secret, settings_text
from pipeline.runners.workers import Workers

lost_in_this_process = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)
"""Beam's threads end with an error when a worker does."""
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
    """Tries every method of a job's servers and of a pool; returns the codes of the answers."""
    fn, codes = beam_fn_api_pb2, set()
    with grpc.insecure_channel(address) as channel:
        provision = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        retrieval = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(channel)
        control = beam_fn_api_pb2_grpc.BeamFnControlStub(channel)
        pool = channel.unary_stream("/in9.Pool/StartWorker")
        file = artifacts.GetArtifactRequest()
        file.artifact.type_urn = "beam:artifact:type:file:v1"
        file.artifact.type_payload = b"\n\x0b/etc/passwd"
        data = beam_fn_api_pb2_grpc.BeamFnDataStub(channel).Data
        state = beam_fn_api_pb2_grpc.BeamFnStateStub(channel).State
        logging = beam_fn_api_pb2_grpc.BeamFnLoggingStub(channel).Logging
        calls: list[tuple[Any, Any]] = [
            (provision.GetProvisionInfo, beam_provision_api_pb2.GetProvisionInfoRequest()),
            (control.GetProcessBundleDescriptor, fn.GetProcessBundleDescriptorRequest()),
            (pool, b""),
            (retrieval.GetArtifact, file),
            *((stream, iter(())) for stream in (control.Control, data, state, logging)),
        ]
        for call, request in calls:
            try:
                who = [("worker_id", worker), ("told-bin", worker.encode())]
                answer = call(request, metadata=who, timeout=60)
                list(answer) if isinstance(answer, Iterator) else None
                codes.add("OK")
            except grpc.RpcError as error:
                codes.add(error.code().name)
    return codes


def test_a_run_by_a_command_survives_a_kill_and_tells_strangers_nothing(
    small_sample: Path, small_run: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    # One of the workers kills itself when it has segmented a shard.
    killing = f"{sys.executable} {ROOT}/tests/support/killing.py Segment {tmp_path}/killed"
    workers = ("--worker_command", killing, "--direct_num_workers", 2, "--gpus", 2)
    flags = ("--input", small_sample, "--output", output, "--callback_address", "127.0.0.1")
    running = start_in9("run", *flags, *workers)
    places: set[tuple[str, int]] = set()

    def listens() -> bool:
        with contextlib.suppress(OSError):  # It may have opened or closed a file meanwhile.
            places.update(listens_at(running.pid))
        return len(places) == 4

    wait_until(listens, running)
    assert {address for address, _ in places} <= LOOPBACK
    answers = {
        code
        for _, port in places
        for worker in ("", "worker_0")
        for code in _ask(f"127.0.0.1:{port}", worker)
    }
    assert answers == {"UNAUTHENTICATED"}
    _, error = running.communicate()
    assert running.returncode == 0, error
    assert "a worker ended with exit code -9; its part is done again" in error
    assert results_of(output) == results_of(small_run)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret"
    path.write_text(secrets.token_hex())
    return path


def _run(workers: Workers, function: Callable[[int], object], more_seconds: float = 0) -> None:
    """Runs a function on eight numbers, and then on their sorted list.

    Args:
      workers: the workers.
      function: the function.
      more_seconds: time that a slow machine may take longer to start workers.
    """
    runner = Coordinator(workers)
    runner._started += more_seconds
    numbers = beam.Pipeline(runner) | beam.Create(range(8)) | beam.Reshuffle() | beam.Map(function)
    # The last stage has no output, in which the loss of a worker would show.
    _ = numbers | beam.combiners.ToList() | beam.Map(lambda each: function(sorted(each)))
    numbers.pipeline.run()


@contextlib.contextmanager
def _relay(pool: str, seen: list[str | bytes]) -> Iterator[str]:
    """Listens in a pool's place, and passes all calls on; yields its address.

    Args:
      pool: address of the pool.
      seen: gets what the jobs call, and say.
    """
    server = grpc.server(ThreadPoolExecutor())
    with grpc.insecure_channel(pool) as channel:

        def passed_on(name: str) -> grpc.RpcMethodHandler:
            def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
                told = dict(context.invocation_metadata())["told-bin"]
                seen.extend((name, told))
                method = channel.stream_stream(f"/in9.Pool/{name}")
                return method(messages, metadata=[("told-bin", told)])

            return grpc.stream_stream_rpc_method_handler(call)

        handlers = {name: passed_on(name) for name in ("Prove", "StartWorker")}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("in9.Pool", handlers),)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def _start(address: str, secret: bytes, settings: bytes) -> str:
    """Has a pool start a worker; returns its output and its end."""
    lines = []
    with pytest.raises(JobError) as error:
        lines.extend(ask_pool(address, secret, settings)[0])
    return f"{b''.join(lines).decode()}{error.value}"


def test_a_pool_starts_workers_for_who_knows_its_secret(secret: Path, tmp_path: Path) -> None:
    result, port, known = f"{tmp_path}/result", free_port(), read_secret(str(secret))
    address = f"127.0.0.1:{port}"

    def keep(element: object) -> object:
        import os

        if isinstance(element, list):
            with open(result, "x") as file:
                file.write(f"{element} from {os.getppid()}")
        return element

    listen = ("--listen", address, "--secret", str(secret))
    pool = ("setpriv", "--pdeathsig=KILL", sys.executable, "-m", "pipeline.runners.worker", *listen)
    with subprocess.Popen(pool) as process:
        try:
            wait_for(port, process)
            for length in (0, 32, 64):
                assert _ask(address, "a" * length) == {"UNAUTHENTICATED", "UNIMPLEMENTED"}
            wrong = Workers(1, pools=(address,), secret=b"a" * 64)
            refused = "a worker of the pool 127.0.0.1:.* was not started: the pool has another"
            with pytest.raises(JobError, match=refused):
                _run(wrong, keep)
            seen: list[str | bytes] = []
            with _relay(address, seen) as other:
                assert "was not started" in _start(other, known, b"settings")
            assert (seen[0], len(seen[1:]), len(seen[1])) == ("Prove", 1, 32)
            assert not _children(process.pid)
            assert subprocess.run(pool, stderr=subprocess.DEVNULL, timeout=60).returncode == 2
            other_version = _start(address, known, b"IN9_VERSIONS=others\n")
            assert "but the job has others\nis gone: ended with exit code 1" in other_version
            with grpc.insecure_channel(address) as stranger:
                # It says nothing, and keeps nobody waiting.
                start = stranger.stream_stream("/in9.Pool/StartWorker")
                silent = start(iter(queue.Queue().get, None), timeout=60)
                assert silent.code() is grpc.StatusCode.UNAUTHENTICATED
                # It repeats what it has overheard.
                number = next(stranger.stream_stream("/in9.Pool/Prove")(iter(())))[:32]
                words = repr(("job", address, number, b"IN9_VERSIONS=another\n"))
                said = hmac.digest(known, words.encode(), "sha256") + b"IN9_VERSIONS=another\n"
                for end in ("exit code 1", "not for you"):
                    with pytest.raises(grpc.RpcError, match=end):
                        list(start(iter(()), metadata=[("told-bin", said)]))
            _run(Workers(1, pools=(address,), secret=known), keep)
            until(lambda: not _children(process.pid))
            with ThreadPoolExecutor() as threads:
                nowhere = settings_text({"WORKER_ID": "", CONTROL: 'url: "127.0.0.1:1"'})
                output, stop = ask_pool(address, known, nowhere)
                left = threads.submit(list, output)
                until(lambda: _children(process.pid))
                stop(signal.SIGTERM)
                until(lambda: not _children(process.pid), 10)
                assert isinstance(left.exception(), JobError)
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()
    assert Path(result).read_text() == f"{[*range(8)]} from {process.pid}"


@lost_in_this_process
def test_a_lost_workers_part_is_done_again_and_no_element_comes_twice(tmp_path: Path) -> None:
    folder = str(tmp_path)

    def work(element: object) -> object:
        import os

        if isinstance(element, list):
            with open(f"{folder}/numbers", "x") as file:
                file.write(str(element))
        if element == 3 and not os.path.exists(f"{folder}/lost"):
            open(f"{folder}/lost", "w").close()
            # It no longer answers, but its connections stay open.
            os.kill(os.getpid(), signal.SIGSTOP)
        return element

    _run(Workers(2, seconds=6), work, more_seconds=100)
    assert (tmp_path / "numbers").read_text() == str([*range(8)])
    assert (tmp_path / "lost").exists()


@lost_in_this_process
def test_what_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(number: object) -> None:
        import os

        if number == 3:
            os.kill(os.getpid(), 9)

    def fail(number: object) -> None:
        open(f"{tmp_path}/{number}", "x").close()
        raise ValueError("ours")

    with pytest.raises(JobError, match="no worker is left: a worker ended with exit code -9"):
        _run(Workers(1), kill)
    # A second attempt would fail, because the file exists.
    with pytest.raises(RuntimeError, match="ValueError: ours"):
        _run(Workers(1), fail)
    with pytest.raises(JobError, match="a worker ended with exit code 3: no node is free"):
        _run(Workers(2, ("sh", "-c", "echo no node is free; exit 3")), print)
    never = ("sh", "-c", "echo no node is free yet; exec sleep 600")
    with pytest.raises(JobError, match="a worker has not called back in 1 s: no node is free yet"):
        _run(Workers(2, never, seconds=1), print)
    with monkeypatch.context() as patch:
        # Without it, metrics cannot be added up.
        patch.delattr("pipeline.runners.coordinator.monitoring_infos")
        with pytest.raises(NameError, match="monitoring_infos"):
            _run(Workers(1), print)
    monkeypatch.setattr("pipeline.runners.coordinator._REPEATS", 0)
    with pytest.raises(JobError, match="1 workers were lost at one part; a worker"):
        _run(Workers(2), kill)


def test_flags_of_workers_are_checked_before_the_job(
    secret: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*flags: object) -> str:
        return refusal(capsys, "generate", "--output", tmp_path / "out", *QUICK, *flags)

    two = ("--direct_num_workers", 2)
    assert "--worker_command needs --direct_num_workers" in refused(*HERE)
    assert "there is no such command" in refused("--worker_command", "no-such", *two)
    assert "invalid words value" in refused("--worker_command", "env 'x", *two)
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


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    """A Slurm of two nodes. Without a right that it takes, tests are skipped, also in CI."""
    if os.geteuid() != 0:
        pytest.skip("namespaces need root")
    if names := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(names)
    with contextlib.ExitStack() as stack:
        folder = tmp_path / "slurm"
        folder.mkdir()
        try:
            cluster = Slurm(stack, folder)
        except PermissionError as error:
            pytest.skip(f"refused here: {error}")
        yield cluster


def test_a_job_of_slurm_that_loses_a_node(
    small_sample: Path, tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("generate", "--input", small_sample, "--images_per_shard", 2)
    flags = (*flags, "--segmenter", "python:sleeping:segment", "--output")
    out, log, meet = tmp_path / "out", tmp_path / "job.log", tmp_path / "meet"
    meet.mkdir()
    # So both nodes are at work when one of them goes.
    slurm.environment |= {"IN9_TEST_SLEEP": "0.1", "IN9_TEST_MEET": str(meet)}
    submit = ("sbatch", "--ntasks=2", "--ntasks-per-node=1", f"--output={log}")
    assert slurm.ask("n1", *submit, ROOT / "deploy" / "slurm" / "in9.sbatch", *flags, out)
    until(lambda: len(os.listdir(meet)) == len(NODES), 180)
    slurm.take_away("n2")
    until(lambda: not slurm.ask("n1", "squeue", "-h"), 180)
    assert "its part is done again" in log.read_text()
    monkeypatch.setenv("IN9_TEST_SLEEP", "0")
    run_in9(*flags, tmp_path / "here")
    assert manifest_of(out) == manifest_of(tmp_path / "here")
