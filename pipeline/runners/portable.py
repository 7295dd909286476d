"""Portable runners: a job server takes the graph, and worker pools run it.

This module does what Beam leaves to its users. It requires the flags that a runner needs, it limits
the wait for a job server's answer without limiting the job itself, and it explains errors when a
server or a worker disappears.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import grpc
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions
from apache_beam.runners.portability.job_server import JobServer
from apache_beam.runners.portability.portable_runner import PipelineResult as PortableResult
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.runner import PipelineResult, PipelineRunner

from pipeline.errors import UsageError

_NEED_ENDPOINT = "PortableRunner"
_STARTS_SERVER = ("FlinkRunner", "SparkRunner", "PrismRunner")
_SILENTLY_WRONG = ("DaskRunner", "RayRunner", "PySparkRunner")
_ANSWER_SECONDS = 60
"""Default time limit for a job server to answer, in seconds."""
_JOB_SECONDS = 10 * 366 * 24 * 3600
_WORKER_GONE = ("Channel closed prematurely", "SDK worker disconnected")
"""Messages for a lost worker, from Beam's Python job server and from Prism."""


def is_portable(runner: str | None) -> bool:
    """Returns whether this runner is a job server, rather than this process or Dataflow."""
    return (runner or "").rpartition(".")[2] in (_NEED_ENDPOINT, *_STARTS_SERVER)


def prepare(options: PipelineOptions, arguments: Iterable[str]) -> None:
    """Checks and completes the flags of a portable runner; leaves other runners' flags unchanged.

    Args:
      options: Beam's options, changed in place.
      arguments: flags as the user wrote them.

    Raises:
      UsageError: the runner gives wrong results, a flag is missing or wrong, or no job server
        answers.
    """
    runner = (options.view_as(StandardOptions).runner or "").rpartition(".")[2]
    if runner in _SILENTLY_WRONG:
        raise UsageError(
            f"--runner={runner} gives wrong results without an error; use the default, "
            "DataflowRunner, or PortableRunner with Flink"
        )
    if not is_portable(runner):
        return
    portable = options.view_as(PortableOptions)
    if runner == _NEED_ENDPOINT and not portable.job_endpoint:
        raise UsageError("--runner=PortableRunner needs --job_endpoint=HOST:PORT of a job server")
    # Other environments can contain our package; without a name, these are Beam's own image.
    is_named = portable.environment_config or portable.environment_options
    has_package = portable.environment_type not in (None, "DOCKER") or is_named
    if portable.job_endpoint and not has_package:
        raise UsageError(
            "workers would run Beam's own image, which does not contain in9; name worker pools "
            "with --environment_type=EXTERNAL --environment_config=HOST:PORT, or an image with "
            "--environment_type=DOCKER --environment_config=IMAGE"
        )
    if not str(portable.sdk_worker_parallelism).isdecimal():
        raise UsageError(
            "--sdk_worker_parallelism must be the number of worker processes of a machine, or 0: "
            f"got {portable.sdk_worker_parallelism}"
        )
    has_timeout = any(argument.startswith("--job_server_timeout") for argument in arguments)
    seconds = portable.job_server_timeout if has_timeout else _ANSWER_SECONDS
    if portable.job_endpoint and portable.job_endpoint != "embed":
        _check_answer(portable.job_endpoint, seconds)
    # Beam would apply the user's limit also to the stream of the job's states, and so to the whole
    # job.
    portable.job_server_timeout = _JOB_SECONDS


def _check_answer(endpoint: str, seconds: float) -> None:
    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=seconds)
        except grpc.FutureTimeoutError as error:
            raise UsageError(f"no job server answers at --job_endpoint={endpoint}") from error


@contextlib.contextmanager
def cancel_if_stopped(result: PipelineResult) -> Iterator[None]:
    """Cancels a job at its job server if the `with` block, which waits for the job, is interrupted.
    Otherwise the server would continue the job."""
    try:
        yield
    except KeyboardInterrupt:
        if isinstance(result, PortableResult):
            with contextlib.suppress(grpc.RpcError):
                result.cancel()
        raise


@contextlib.contextmanager
def servers_stopped(runner: PipelineRunner) -> Iterator[None]:
    """Stops the job server that a runner has started, at the end of the `with` block. Beam would
    stop it when the interpreter ends, which never happens in a process that exits by `os._exit`."""
    servers: list[JobServer] = []
    if isinstance(runner, PortableRunner):
        start = runner.default_job_server

        def start_and_keep(options: PipelineOptions) -> JobServer:
            servers.append(start(options))
            return servers[-1]

        runner.default_job_server = start_and_keep
    try:
        yield
    finally:
        for server in servers:
            server.stop()


@contextlib.contextmanager
def servers_on_loopback(options: PipelineOptions) -> Iterator[None]:
    """Binds the servers that Beam starts in this process during the block to the loopback.

    Beam binds them to all interfaces, and they give any file of this user to whoever asks. Only
    workers of `--environment_type=EXTERNAL` may be on other machines.
    """
    if options.view_as(PortableOptions).environment_type == "EXTERNAL":
        yield
        return
    make = grpc.server

    def make_on_loopback(*arguments: Any, **named: Any) -> grpc.Server:
        server = make(*arguments, **named)
        bind = server.add_insecure_port
        server.add_insecure_port = lambda address: bind(address.replace("[::]", "localhost"))
        return server

    grpc.server = make_on_loopback
    try:
        yield
    finally:
        grpc.server = make


def explain(error: Exception) -> str | None:
    """Explains an error of a portable runner; returns None for other errors."""
    if isinstance(error, grpc.RpcError):
        details = error.details() if hasattr(error, "details") else type(error).__name__
        return f"the job server no longer answers ({details})"
    if any(words in str(error) for words in _WORKER_GONE):
        return "a worker process has ended unexpectedly"
    return None
