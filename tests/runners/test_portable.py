"""Tests the unchanged job on the portable runner, with a job server and separate worker pools."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PortableOptions
from apache_beam.runners.runner import create_runner
from apache_beam.transforms.environments import DockerEnvironment
from forking import NO_FIGURES, Started
from gcs import free_port, wait_for
from machines import children, kill
from runs import (
    ROOT,
    TINY_MODEL,
    finished_shards,
    forks,
    keys,
    manifest_of,
    run_in9,
    start_in9,
    wait_until,
)
from soundness import assert_sound

from pipeline.errors import JobError, UsageError
from pipeline.runners.beam_options import _translate, pipeline_options
from pipeline.runners.portable import CACHE_MILLIS
from pipeline.runtime.job_log import in_one_line

SUPPORT = ROOT / "tests" / "support"
POOL = ("--environment_type=EXTERNAL", "--environment_config=localhost:50000")
RESULTS = ("results/summary.csv", "results/gaps.csv", "results/per_class.csv")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A worker pool, whose workers are forks, and a job server.

    `flags` are those of a job on them.
    """

    pool: Started
    server: Started
    flags: tuple[str, ...]

    def workers(self) -> list[int]:
        """Returns the process ids of the pool's live workers."""
        return children(*children(self.pool.pid))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A job server that takes two workers from a pool."""
    # The models of tests are in this folder.
    paths = f"{ROOT}{os.pathsep}{SUPPORT}"
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", NO_FIGURES: "1"}
    port, at = free_port(), free_port()
    with contextlib.ExitStack() as stack:

        def start(port: int, name: str, *words: str) -> Started:
            program = SUPPORT / name
            process = forks().start([*words, str(port)], environment, program=program)
            stack.callback(kill, process)
            wait_for(port, process)
            return process

        pool = start(at, "worker_pool.py", "--service_port")
        server = start(port, "job_server.py")
        flags = ("--runner=PortableRunner", f"--job_endpoint=localhost:{port}")
        flags += ("--environment_type=EXTERNAL", f"--environment_config=localhost:{at}")
        yield Cluster(pool, server, flags)


def test_the_job_through_a_job_server_and_its_workers(
    cluster: Cluster, small_sample: Path, tmp_path: Path
) -> None:
    fresh, output = tmp_path / "fresh", tmp_path / "out"
    few = ("--variants", "original,mixed_same,mixed_rand", *keys(images_per_shard=2))
    few += keys(batch_size=1)  # Both groups take a while.
    run = ("run", "--input", small_sample, *few, *TINY_MODEL, "--output")
    run_in9(*run, fresh)
    # The timeout is for the answer of the server, not for the job.
    running = start_in9(*run, output, *cluster.flags, "--job_server_timeout=3", "--gpus", 2)
    groups: dict[str, int] = {}
    # A group's claim is there for a moment only.
    while running.poll() is None:
        with contextlib.suppress(OSError):
            for claim in output.glob(".in9/lock-*-[01]/*/about"):
                groups[claim.parts[-3][-1]] = json.loads(claim.read_text())["owner"]["pid"]
        time.sleep(0.001)
    out, error = running.communicate()
    assert running.returncode == 0, error
    # The two blocks are evaluated in different workers.
    assert len({groups["0"], groups["1"], running.pid}) == 3
    selected = manifest_of(fresh)["images"]["val"]["selected"]
    assert f"{selected} composed, {3 * selected} pictures predicted" in out
    assert (output / "manifest.json").read_bytes() == (fresh / "manifest.json").read_bytes()
    for table in RESULTS:
        assert (output / table).read_bytes() == (fresh / table).read_bytes()


def test_a_worker_process_that_is_killed_fails_the_job_and_the_next_goes_on(
    cluster: Cluster, small_sample: Path, tmp_path: Path
) -> None:
    fresh, output = tmp_path / "fresh", tmp_path / "out"
    few = (*keys(images_per_shard=2), "--formats", "parquet")
    flags = ("generate", "--input", small_sample, *few, "--output")
    run_in9(*flags, fresh)
    running = start_in9(*flags, output, *cluster.flags)
    wait_until(lambda: finished_shards(output), running)
    worker, *_ = cluster.workers()
    os.kill(worker, signal.SIGKILL)
    out, error = running.communicate()
    assert running.returncode == 1
    assert out == ""
    assert len(error.splitlines()) == 1
    assert "a worker process has ended unexpectedly. Run the same command again" in error
    assert not (output / "manifest.json").exists()
    finished = finished_shards(output)
    assert 0 < len(finished) < len(finished_shards(fresh))

    done = run_in9(*flags, output, *cluster.flags)
    assert "18 images segmented" not in done.stdout
    shards = finished_shards(output)
    assert {name: shards[name] for name in finished} == finished
    assert manifest_of(output) == manifest_of(fresh)
    assert_sound(output)


NO_ENVIRONMENT = "--environment_type= --environment_config="
NO_PACKAGE = "workers would run Beam's own image, which does not contain in9"
ANOTHER = "would open this process to the network. For several machines, see --dask ADDRESS"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("PortableRunner", "--runner=PortableRunner needs --job_endpoint=HOST:PORT"),
        (
            "PortableRunner --job_endpoint=localhost:1 --environment_type= --environment_config=",
            NO_PACKAGE,
        ),
        (
            "PortableRunner --job_endpoint=localhost:1 --sdk_worker_parallelism=two",
            "--sdk_worker_parallelism must be the number of worker processes of a machine, or 0: "
            "got two",
        ),
        ("apache_beam.runners.dask.dask_runner.DaskRunner", "--runner=DaskRunner runs only one of"),
        ("RayRunner", "--runner=RayRunner tears groups apart"),
        ("PySparkRunner", "--runner=PySparkRunner tears groups apart"),
        ("prism", f"--runner=PrismRunner {ANOTHER}"),
        *(
            (runner, f"--runner={runner} {ANOTHER}")
            for runner in ("KafkaStreamsRunner", "InteractiveRunner", "TestDirectRunner")
        ),
        ("portable --job_endpoint=embed", "--job_endpoint=embed would open"),
        (
            "portable --job_endpoint=localhost:1 --environment_type=LOOPBACK",
            "--environment_type=LOOPBACK would open",
        ),
        (
            "flink --environment_type=beam:env:embedded_python_loopback:v1",
            "--environment_type=beam:env:embedded_python_loopback:v1 would open",
        ),
        # Without a type, Beam would choose LOOPBACK for a local master.
        *(
            (f"{runner} {NO_ENVIRONMENT}", NO_PACKAGE)
            for runner in (
                "flink",
                "flink --flink_master=[local]",
                "spark --spark_master_url=local[4]",
            )
        ),
        ("flink --flink_submit_uber_jar", "--flink_submit_uber_jar would open"),
        ("spark --spark_submit_uber_jar", "--spark_submit_uber_jar would open"),
    ],
)
def test_flags_that_are_refused_before_the_job(words: str, line: str) -> None:
    runner, *flags = words.split()
    with pytest.raises(UsageError) as error:
        pipeline_options([f"--runner={runner}", *POOL, *flags])
    assert str(error.value).startswith(line)


def test_a_local_flink_gets_no_workers_in_this_process() -> None:
    image = "--environment_config=image"
    options = pipeline_options(["--runner=flink", "--flink_master=[local]", image])
    environment = create_runner("FlinkRunner").default_environment(options)
    assert isinstance(environment, DockerEnvironment)


def test_workers_are_kept_between_stages_unless_the_user_says_otherwise() -> None:
    for flags, kept in (((), str(CACHE_MILLIS)), (("--environment_cache_millis=0",), "0")):
        options = pipeline_options(["--runner=flink", *POOL, *flags])
        assert str(options.view_as(PortableOptions).environment_cache_millis) == kept


@pytest.mark.parametrize(
    ("told", "line"),
    [
        (
            "org.apache.beam.vendor.grpc.v1p60p1.io.grpc.StatusRuntimeException: CANCELLED: client "
            "cancelled",
            "a worker process has ended unexpectedly",
        ),
        (
            "java.util.concurrent.TimeoutException: Heartbeat of TaskManager with id 1 timed out.",
            "TimeoutException: Heartbeat of TaskManager with id 1 timed out.",
        ),
        (
            "java.lang.RuntimeException: Error received from SDK harness for instruction 4: "
            "Traceback (most recent call last):\n  File\nOSError: [Errno 5] broken [while running "
            "'Segment']\n",
            "OSError: [Errno 5] broken",
        ),
    ],
)
def test_the_cause_that_flink_tells_is_in_the_message(told: str, line: str, tmp_path: Path) -> None:
    error = RuntimeError(f"Pipeline in9-1_2-3 failed in state FAILED: {told}")
    with pytest.raises(JobError) as raised, in_one_line(str(tmp_path / "log"), _translate):
        raise error
    assert str(raised.value).startswith(line)
    assert "Run the same command again" in str(raised.value)


def test_a_job_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    flags = ("--runner=PortableRunner", f"--job_endpoint=localhost:{free_port()}")
    more = (*POOL, "--job_server_timeout=2")
    done = run_in9("run", "--output", tmp_path / "out", *flags, *more, check=2)
    assert "no job server answers at --job_endpoint=localhost:" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_job_that_is_stopped_says_what_may_go_on(
    cluster: Cluster, small_sample: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    running = start_in9("generate", "--input", small_sample, "--output", output, *cluster.flags)
    wait_until(lambda: list(output.glob(".in9/progress/*/*/*")), running)
    os.killpg(running.pid, signal.SIGINT)
    _, error = running.communicate()
    assert running.returncode == 1
    assert re.fullmatch(
        r"in9 generate: stopped, but its job in9-\w+ may go on: end it where it runs \(give "
        r"--flink_master=HOST:PORT, and Flink's is ended for you\); run the same .*\n",
        error,
    )
    assert not (output / "manifest.json").exists()


def test_a_job_server_that_ends_fails_the_job_in_one_line(
    cluster: Cluster, small_sample: Path, tmp_path: Path
) -> None:
    # This test comes last because the others need the server.
    output = tmp_path / "out"
    running = start_in9("generate", "--input", small_sample, "--output", output, *cluster.flags)
    wait_until(lambda: list(output.glob(".in9/progress/*/*/*")), running)
    os.killpg(cluster.server.pid, signal.SIGKILL)
    _, error = running.communicate()
    assert running.returncode == 1
    assert error.startswith("in9 generate: the job failed: the job server no longer answers")
    assert len(error.splitlines()) == 1
