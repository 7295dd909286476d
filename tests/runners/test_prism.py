"""Tests the unchanged job on Prism, Beam's own runner in Go, and the messages when a part dies."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from gcs import free_port
from runs import (
    TINY_MODEL,
    darken,
    finished_shards,
    pictures_of,
    results_of,
    run_in9,
    start_in9,
    wait_until,
)
from soundness import assert_sound

PRISM = Path(sys.executable).with_name("prism")


@pytest.fixture(scope="module")
def prism(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Prism with a pool of forks. Without Prism these tests are skipped, or fail in CI."""
    if not PRISM.exists():
        missing = "no prism: scripts/test installs it where there is Go"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    with contextlib.ExitStack() as stack:
        cluster = Cluster(stack, tmp_path_factory.mktemp("prism"), pools=1, forked=True)
        port = free_port()
        flags = ("-job_port", port, "-serve_http=false", "-beam_strict")
        cluster.serve(port, cluster.addresses[0], PRISM, *flags)
        yield cluster


@pytest.fixture
def beams_pool(tmp_path: Path) -> Iterator[str]:
    """The address of a pool whose workers are Beam's own processes."""
    with contextlib.ExitStack() as stack:
        yield Cluster(stack, tmp_path, pools=1).addresses[0]


def test_a_run_and_an_update_of_one_class(
    prism: Cluster, beams_pool: str, tiny_input: Path, tmp_path: Path
) -> None:
    local, output = tmp_path / "local", tmp_path / "out"
    few = ("--images_per_shard", 1, "--formats", "parquet", "--pictures", "none", *TINY_MODEL)
    variants = ("--variants", "original,fg_mask,only_bg_t,mixed_same,mixed_rand")
    run = ("run", "--input", tiny_input, *few, *variants, "--attack", 1, "--saliency", 1)
    run = (*run, "--overwrite", "rebuild", "--output")
    first = run_in9(*run, output, *prism.flags, f"--environment_config={beams_pool}")
    before = finished_shards(output)
    for picture in pictures_of(tiny_input)[:2]:
        darken(picture)
    second = run_in9(*run, output, *prism.flags)
    # Files show what was made again. Under load, Prism loses counters of some bundles, so printed
    # numbers may be too low.
    after = finished_shards(output)
    assert set(after) == set(before)
    assert 1 <= sum(after[name] != before[name] for name in after) <= 2
    for done in (first, second):
        assert "val: 6 images" in done.stdout
        assert "adversarial backgrounds, %" in done.stdout
        assert done.stderr == ""
    # Workers, which write the page, are no forks of commands, and draw its figures.
    run_in9(*run, local, figures=True)
    assert results_of(output) == results_of(local)


@pytest.mark.usefixtures("prism")
def test_a_prism_that_beam_starts_ends_with_the_job(tiny_input: Path, tmp_path: Path) -> None:
    port = free_port()
    few = ("--segmenter", "box", "--formats", "parquet", "--variants", "original")
    run = ("generate", "--input", tiny_input, *few, "--output", tmp_path / "out")
    started = ("--runner=PrismRunner", f"--prism_location={PRISM}", f"--job_port={port}")
    done = run_in9(*run, *started)
    assert "val: 6 images" in done.stdout
    assert done.stderr == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("localhost", port))


def test_what_goes_ends_the_job_in_one_line_and_the_next_goes_on(
    prism: Cluster, small_sample: Path, tmp_path: Path
) -> None:
    # This test comes last because the others need Prism.
    output = tmp_path / "out"
    few = ("--images_per_shard", 1, "--formats", "parquet", "--variants", "original")
    generate = ("generate", "--input", small_sample, *few, "--output", output)
    failed = "in9 generate: the job failed: "
    finished: dict[str, int] = {}
    for victim, line in (
        (
            "worker",
            f"{failed}a worker process has ended unexpectedly. Run the same command again to go on",
        ),
        ("launcher", "in9 generate: stopped; run the same command again to go on"),
        ("Prism", f"{failed}the job server no longer answers"),
    ):
        running = start_in9(*generate, *prism.flags)
        count = len(finished)
        wait_until(lambda count=count: len(finished_shards(output)) > count, running)
        if victim == "worker":
            (worker,) = prism.workers(0)
            os.kill(worker, signal.SIGKILL)
        elif victim == "launcher":
            os.killpg(running.pid, signal.SIGINT)
        else:
            os.killpg(prism.server.pid, signal.SIGKILL)
        out, error = running.communicate(timeout=30)
        assert (running.returncode, out) == (1, "")
        *progress, last = error.splitlines()
        assert last.startswith(line)
        # A job that takes long prints lines of progress first.
        assert all(re.match(r"\w+: \d+ of ", message) for message in progress)
        assert not (output / "manifest.json").exists()
        # Finished shards are not rebuilt.
        shards = finished_shards(output)
        assert shards.items() >= finished.items()
        finished = shards

    run_in9(*generate)
    shards = finished_shards(output)
    assert shards.items() >= finished.items()
    assert len(shards) > len(finished)
    assert_sound(output)
