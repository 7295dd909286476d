"""Portable runners: a job server takes the graph, and worker pools elsewhere run it.

What Beam leaves to its users: flags that are needed, a time limit of requests that would end
the wait for a job as well, and what it says when a server or a worker goes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

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
"""How long a job server may take to answer, by default."""
_JOB_SECONDS = 10 * 366 * 24 * 3600
_WORKER_GONE = ("Channel closed prematurely", "SDK worker disconnected")
"""As Beam's server in Python and as Prism say it."""


def is_portable(options: PipelineOptions) -> bool:
    """Whether a job server runs the job, and not this process or Dataflow."""
    runner = (options.view_as(StandardOptions).runner or "").rpartition(".")[2]
    return runner in (_NEED_ENDPOINT, *_STARTS_SERVER)


def prepare(options: PipelineOptions, arguments: Iterable[str]) -> None:
    """Checks the flags of a portable runner, and completes them; leaves others as they are.

    Args:
      options: changed in place.
      arguments: what the user wrote.

    Raises:
      UsageError: a runner that loses elements, or a flag that is missing; or no job server
        answers.
    """
    runner = (options.view_as(StandardOptions).runner or "").rpartition(".")[2]
    if runner in _SILENTLY_WRONG:
        raise UsageError(
            f"--runner={runner} gives wrong results without an error; use the default, "
            "DataflowRunner, or PortableRunner with Flink"
        )
    if not is_portable(options):
        return
    portable = options.view_as(PortableOptions)
    if runner == _NEED_ENDPOINT and not portable.job_endpoint:
        raise UsageError("--runner=PortableRunner needs --job_endpoint=HOST:PORT of a job server")
    if portable.job_endpoint and not _has_package(portable):
        raise UsageError(
            "workers would run Beam's own image, which does not hold in9: name worker pools "
            "with --environment_type=EXTERNAL --environment_config=HOST:PORT, or an image with "
            "--environment_type=DOCKER --environment_config=IMAGE"
        )
    if not str(portable.sdk_worker_parallelism).isdecimal():
        raise UsageError(
            "--sdk_worker_parallelism must be the number of worker processes of a machine, or 0: "
            f"got {portable.sdk_worker_parallelism}"
        )
    given = any(argument.startswith("--job_server_timeout") for argument in arguments)
    seconds = portable.job_server_timeout if given else _ANSWER_SECONDS
    if portable.job_endpoint and portable.job_endpoint != "embed":
        _check_answer(portable.job_endpoint, seconds)
    # Beam would apply it to the stream that tells how the job goes, and so to the job.
    portable.job_server_timeout = _JOB_SECONDS


def _has_package(portable: PortableOptions) -> bool:
    """Whether the flags say where the workers get our package from."""
    if portable.environment_type in (None, "DOCKER"):
        return bool(portable.environment_config or portable.environment_options)
    return True


def _check_answer(endpoint: str, seconds: float) -> None:
    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=seconds)
        except grpc.FutureTimeoutError as error:
            raise UsageError(f"no job server answers at --job_endpoint={endpoint}") from error


@contextlib.contextmanager
def cancel_if_stopped(result: PipelineResult) -> Iterator[None]:
    """Cancels a job at its job server if the block, which waits for it, is interrupted: the
    server would go on without us."""
    try:
        yield
    except KeyboardInterrupt:
        if isinstance(result, PortableResult):
            with contextlib.suppress(grpc.RpcError):
                result.cancel()
        raise


@contextlib.contextmanager
def servers_stopped(runner: PipelineRunner) -> Iterator[None]:
    """Stops, after the block, the job server that a runner has started for it. Beam leaves that
    to the end of the interpreter, and a process that ends at once has none."""
    servers: list[JobServer] = []
    if isinstance(runner, PortableRunner):
        start = runner.default_job_server

        def noted(options: PipelineOptions) -> JobServer:
            servers.append(start(options))
            return servers[-1]

        runner.default_job_server = noted
    try:
        yield
    finally:
        for server in servers:
            server.stop()


def explain(error: Exception) -> str | None:
    """What an error of a portable runner means, None if it is of another kind."""
    if isinstance(error, grpc.RpcError):
        details = error.details() if hasattr(error, "details") else type(error).__name__
        return f"the job server does not answer any more ({details})"
    if any(words in str(error) for words in _WORKER_GONE):
        return "a worker process has gone"
    return None
