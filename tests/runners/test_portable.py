"""Tests the unchanged job on the portable runner, with a job server and separate worker pools."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cluster import LOOPBACK, Cluster, listens_at
from gcs import free_port
from runs import (
    ROOT,
    TINY_MODEL,
    finished_shards,
    manifest_of,
    run_in9,
    start_in9,
    wait_until,
)
from soundness import assert_sound

from pipeline.errors import UsageError
from pipeline.runners.beam_options import pipeline_options

SERVER = ROOT / "tests" / "support" / "job_server.py"
RESULTS = ("results/summary.csv", "results/gaps.csv", "results/per_class.csv")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Job server that takes a worker from each of two pools."""
    with contextlib.ExitStack() as stack:
        cluster = Cluster(stack, tmp_path_factory.mktemp("cluster"), pools=2, forked=True)
        port, dispatch = free_port(), free_port()
        pools = ("--dispatch_port", dispatch, "--pools", ",".join(cluster.addresses))
        server = (sys.executable, SERVER, "--port", port, *pools)
        cluster.serve(port, f"localhost:{dispatch}", *server)
        yield cluster


def test_the_job_through_a_job_server_and_two_worker_pools(
    cluster: Cluster, small_sample: Path, tmp_path: Path
) -> None:
    fresh, output = tmp_path / "fresh", tmp_path / "out"
    few = ("--variants", "original,mixed_same,mixed_rand", "--images_per_shard", 2)
    few += ("--batch_size", 1)  # Both groups take a while.
    run = ("run", "--input", small_sample, *few, *TINY_MODEL, "--output")
    run_in9(*run, fresh)
    # The timeout is for the answer of the server, not for the job.
    running = start_in9(*run, output, *cluster.flags, "--job_server_timeout=3", "--gpus", 2)
    workers: dict[int, int] = {}
    groups: dict[str, int] = {}

    def watch() -> None:
        # A group's claim is there for a moment only.
        while running.poll() is None:
            with contextlib.suppress(OSError):
                for claim in output.glob(".in9/lock-*-[01]/*/about"):
                    groups[claim.parts[-3][-1]] = json.loads(claim.read_text())["owner"]["pid"]
            time.sleep(0.001)

    with ThreadPoolExecutor(1) as pool_of_one:
        watching = pool_of_one.submit(watch)
        while running.poll() is None:
            workers.update((worker, pool) for pool in (0, 1) for worker in cluster.workers(pool))
            time.sleep(0.05)
        watching.result()
    out, error = running.communicate()
    assert running.returncode == 0, error
    # The two blocks are evaluated in processes of different pools.
    assert {workers[groups["0"]], workers[groups["1"]]} == {0, 1}
    selected = manifest_of(fresh)["images"]["val"]["selected"]
    assert f"{selected} composed, {3 * selected} pictures predicted" in out
    assert (output / "manifest.json").read_bytes() == (fresh / "manifest.json").read_bytes()
    for table in RESULTS:
        assert (output / table).read_bytes() == (fresh / table).read_bytes()


def test_servers_for_workers_of_this_machine_listen_on_the_loopback(
    small_sample: Path, tmp_path: Path
) -> None:
    processes = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")
    flags = ("--input", small_sample, "--output", tmp_path / "out", "--segmenter", "box")
    running = start_in9("generate", *flags, *processes)
    addresses: set[str] = set()
    while running.poll() is None:
        with contextlib.suppress(OSError):  # It may end, or close a file, at any moment.
            addresses |= {address for address, _ in listens_at(running.pid)}
        time.sleep(0.02)
    assert running.returncode == 0, running.communicate()
    assert addresses
    assert addresses <= LOOPBACK


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_workers_say_that_they_have_no_gpu(
    cluster: Cluster, small_sample: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    few = ("--variants", "original", "--limit", 1, "--segmenter", "box", *TINY_MODEL)
    flags = ("--input", small_sample, "--output", output, *few, "--device", "cuda")
    done = run_in9("run", *flags, *cluster.flags, check=1)
    assert len(done.stderr.splitlines()) == 1
    assert "this machine has no CUDA device that torch can use" in done.stderr


def test_a_worker_process_that_is_killed_fails_the_job_and_the_next_goes_on(
    cluster: Cluster, small_sample: Path, tmp_path: Path
) -> None:
    fresh, output = tmp_path / "fresh", tmp_path / "out"
    few = ("--images_per_shard", 2, "--formats", "parquet")
    flags = ("generate", "--input", small_sample, *few, "--output")
    run_in9(*flags, fresh)
    running = start_in9(*flags, output, *cluster.flags)
    wait_until(lambda: finished_shards(output), running)
    (worker,) = cluster.workers(0)
    os.kill(worker, signal.SIGKILL)
    killed = time.monotonic()
    out, error = running.communicate(timeout=60)
    assert time.monotonic() - killed < 30
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


def test_flags_of_portable_runners_are_checked_before_the_job() -> None:
    needs = "--runner=PortableRunner"
    with pytest.raises(UsageError, match="needs --job_endpoint=HOST:PORT"):
        pipeline_options([needs])
    with pytest.raises(UsageError, match="Beam's own image, which does not contain in9"):
        pipeline_options([needs, "--job_endpoint=localhost:1"])
    loopback = (needs, "--job_endpoint=localhost:1", "--environment_type=LOOPBACK")
    with pytest.raises(UsageError, match="number of worker processes of a machine, or 0: got two"):
        pipeline_options([*loopback, "--sdk_worker_parallelism=two"])
    with pytest.raises(
        UsageError, match=r"DaskRunner .* of two leaves only one runs.*worker_command"
    ):
        pipeline_options(["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"])


def test_a_job_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    flags = ("--runner=PortableRunner", f"--job_endpoint=localhost:{free_port()}")
    more = ("--environment_type=LOOPBACK", "--job_server_timeout=2")
    done = run_in9("run", "--output", tmp_path / "out", *flags, *more, check=2)
    assert "no job server answers at --job_endpoint=localhost:" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_job_server_that_ends_fails_the_job_in_one_line(
    cluster: Cluster, small_sample: Path, tmp_path: Path
) -> None:
    # This test comes last because the others need the server.
    output = tmp_path / "out"
    running = start_in9("generate", "--input", small_sample, "--output", output, *cluster.flags)
    wait_until(lambda: list(output.glob(".in9/progress/*/*/*")), running)
    os.killpg(cluster.server.pid, signal.SIGKILL)
    _, error = running.communicate(timeout=60)
    assert running.returncode == 1
    assert error.startswith("in9 generate: the job failed: the job server no longer answers")
    assert len(error.splitlines()) == 1
