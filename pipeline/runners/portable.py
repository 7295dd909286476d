"""Job servers, such as Flink's, which take the graph and let worker pools run it.

This module does what Beam leaves to its users. It requires the flags that a job server needs, and
refuses those that make Beam open this process to the network. It limits the wait for a server's
answer without limiting the job itself. It stops Flink's job together with this process.
"""

import contextlib
import dataclasses
import threading
import urllib.request
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    SparkRunnerOptions,
    StandardOptions,
)
from apache_beam.runners.portability.job_server import JobServer
from apache_beam.runners.portability.portable_runner import PortableRunner

from pipeline.errors import JobError, UsageError, refuse_first
from pipeline.runtime.progress import Progress, counters_of
from transforms.limits import load_json

_SERVERS = ("PortableRunner", "FlinkRunner", "SparkRunner")
_REFUSED = {
    **dict.fromkeys(("RayRunner", "PySparkRunner"), "tears groups apart without an error"),
    "DaskRunner": "runs only one of two leaves, mixes tagged outputs, and has no metrics",
    **dict.fromkeys(
        ("PrismRunner", "KafkaStreamsRunner", "InteractiveRunner", "TestDirectRunner"),
        "would open this process to the network",
    ),
}
"""Runners whose results are wrong without an error, or that start servers on all interfaces."""
_ANSWER_SECONDS = 60
"""Default time limit for a job server to answer, in seconds."""
_JOB_SECONDS = 10 * 366 * 24 * 3600
CACHE_MILLIS = 5_000
"""How long Flink keeps worker processes that have nothing to do, in milliseconds. By Beam's default
they end with each stage, and their successors load all libraries again. Flink also keeps dead ones
for so long, and sends them work again, so its restarts must wait longer."""
IDLE_SECONDS = 300.0
"""Time in seconds after which a job ends that Flink runs, but of which no step has begun."""
_LOOK_SECONDS = 5.0


def is_portable(runner: str | None) -> bool:
    """Returns whether this runner is a job server, rather than this process or Dataflow."""
    return (runner or "").rpartition(".")[2] in _SERVERS


def prepare(options: PipelineOptions, arguments: Iterable[str]) -> None:
    """Checks and completes the flags of a job server; leaves other runners' flags unchanged.

    Raises UsageError if the runner is refused, a flag is missing, wrong or refused, or no job
    server answers.
    """
    runner = (options.view_as(StandardOptions).runner or "").rpartition(".")[2]
    if runner in _REFUSED:
        raise UsageError(
            f"--runner={runner} {_REFUSED[runner]}. For several machines, see --dask ADDRESS in "
            "docs/deploy.md"
        )
    if not is_portable(runner):
        return
    portable = options.view_as(PortableOptions)
    # Beam would choose LOOPBACK for a Flink or Spark on this machine.
    portable.environment_type = portable.environment_type or "DOCKER"
    kind, endpoint = portable.environment_type, portable.job_endpoint
    flink, spark = options.view_as(FlinkRunnerOptions), options.view_as(SparkRunnerOptions)
    # Other environments can contain our package; without a name, these are Beam's own image.
    has_package = kind != "DOCKER" or portable.environment_config or portable.environment_options
    opens = "would open this process to the network: "
    reasons = {
        f"--environment_type={kind} {opens}say EXTERNAL, PROCESS or DOCKER": (
            kind not in ("EXTERNAL", "PROCESS", "DOCKER")
        ),
        f"--job_endpoint=embed {opens}say HOST:PORT of a job server": endpoint == "embed",
        f"--flink_submit_uber_jar {opens}leave it out": flink.flink_submit_uber_jar,
        f"--spark_submit_uber_jar {opens}leave it out": spark.spark_submit_uber_jar,
        "--runner=PortableRunner needs --job_endpoint=HOST:PORT of a job server": (
            runner == "PortableRunner" and not endpoint
        ),
        "workers would run Beam's own image, which does not contain in9; name worker pools with "
        "--environment_type=EXTERNAL --environment_config=HOST:PORT, or an image with "
        "--environment_type=DOCKER --environment_config=IMAGE": not has_package,
        "--sdk_worker_parallelism must be the number of worker processes of a machine, or 0: got "
        f"{portable.sdk_worker_parallelism}": (
            not str(portable.sdk_worker_parallelism).isdecimal()
        ),
    }
    refuse_first(reasons)
    given = {argument.partition("=")[0] for argument in arguments}
    if endpoint:
        _check_answer(
            endpoint,
            portable.job_server_timeout if "--job_server_timeout" in given else _ANSWER_SECONDS,
        )
    # Beam would apply the user's limit to the stream of states, too, and so to the whole job.
    portable.job_server_timeout = _JOB_SECONDS
    if "--environment_cache_millis" not in given:
        portable.environment_cache_millis = CACHE_MILLIS
    # By a name of its own, Flink's job can be found again.
    google = options.view_as(GoogleCloudOptions)
    google.job_name = f"{google.job_name or 'in9'}-{uuid.uuid4().hex[:12]}"


def _check_answer(endpoint: str, seconds: float) -> None:
    with grpc.insecure_channel(endpoint) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=seconds)
        except grpc.FutureTimeoutError as error:
            raise UsageError(f"no job server answers at --job_endpoint={endpoint}") from error


@dataclasses.dataclass(frozen=True)
class _FlinkJob:
    """A job on a Flink whose REST address is known. All methods raise OSError if it is silent."""

    address: str
    name: str

    def seconds(self) -> float:
        """Returns for how many seconds Flink has called the job RUNNING; 0 if it does not."""
        times = [(one["timestamps"]["RUNNING"], one["now"]) for one in map(self._ask, self._ids())]
        return max((float(now - began) / 1000 for began, now in times if began), default=0.0)

    def cancel(self) -> bool:
        """Cancels the job; returns whether Flink had it."""
        return bool([self._ask(f"{job}?mode=cancel", "PATCH") for job in self._ids()])

    def _ids(self) -> list[str]:
        jobs = self._ask("overview")["jobs"]
        return [job["jid"] for job in jobs if job["name"] == self.name and job["end-time"] < 0]

    def _ask(self, path: str, method: str = "GET") -> Any:
        url = f"{'' if '://' in self.address else 'http://'}{self.address}/jobs/{path}"
        request = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(request, timeout=_LOOK_SECONDS) as answer:
            return load_json(answer.read())


def run_to_end(pipeline: beam.Pipeline, progress: Progress) -> dict[str, int]:
    """Runs a graph on a job server to its end; workers note in `progress` that it has begun.

    Raises KeyboardInterrupt if this process is to stop, which says what may still run; JobError if
    Flink's workers never begin.
    """
    name = pipeline.options.view_as(GoogleCloudOptions).job_name
    master = pipeline.options.view_as(FlinkRunnerOptions).flink_master
    flink = None if master.startswith("[") else _FlinkJob(master, name)
    result = None
    try:
        with contextlib.ExitStack() as stack, _ended_if_idle(flink, progress):
            _stop_with(stack, pipeline.runner)
            result = pipeline.run()
            result.wait_until_finish()
            return counters_of(result)
    except KeyboardInterrupt:
        with contextlib.suppress(Exception):  # Otherwise the message says what may go on.
            if flink and flink.cancel():
                raise
        # Beam's server of Flink does not pass this on; others do.
        with contextlib.suppress(grpc.RpcError):
            if result:
                result.cancel()
        raise KeyboardInterrupt(
            f"stopped, but its job {name} may go on: end it where it runs (give --flink_master="
            "HOST:PORT, and Flink's is ended for you)"
        ) from None


@contextlib.contextmanager
def _ended_if_idle(flink: _FlinkJob | None, progress: Progress) -> Iterator[None]:
    """Cancels Flink's job if no step begins, such as without workers; Flink would wait for ever."""
    ended, idle = threading.Event(), threading.Event()

    def watch(flink: _FlinkJob) -> None:
        while not ended.wait(_LOOK_SECONDS):
            with contextlib.suppress(Exception):  # Flink or the storage may answer later.
                if any(progress.store.walk(progress.folder)):
                    return
                if flink.seconds() > IDLE_SECONDS:
                    idle.set()
                    flink.cancel()

    if flink:
        threading.Thread(target=watch, args=(flink,), daemon=True).start()
    try:
        yield
    except Exception as error:
        if idle.is_set():
            raise JobError(
                f"no step has begun {IDLE_SECONDS:.0f} s after Flink has started the job: see what "
                "its worker pools print. Then run the same command again"
            ) from error
        raise
    finally:
        ended.set()


def _stop_with(stack: contextlib.ExitStack, runner: PortableRunner) -> None:
    """Has a stack stop a runner's job server; Beam does not if a process ends by `os._exit`."""
    start = runner.default_job_server

    def start_and_stop(options: PipelineOptions) -> JobServer:
        server = start(options)
        stack.callback(server.stop)
        return server

    runner.default_job_server = start_and_stop
