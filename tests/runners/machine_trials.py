"""Tries a job on two machines, in every way that docs/machines.md names, and prints what came out.

    scripts/machines [TRIAL...]

The machines are namespaces (`tests/support/machines.py`), so this needs root and Slurm's packages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import apache_beam as beam
from killing import STEPS
from machines import HEAD, NODES, Slurm, address, missing
from PIL import Image
from runs import QUICK, ROOT, results_of

from pipeline.dataset.config import ComposeConfig, DatasetConfig, SegmentConfig
from pipeline.dataset.folder import sample_folder
from pipeline.dataset.records import ShardCounts
from pipeline.generate.cut_source import Cutter, read_source
from pipeline.generate.graph import list_split
from pipeline.generate.job import GenerateJob
from pipeline.generate.segment import SegmentShard
from pipeline.generate.shard_elements import make_shards
from pipeline.inputs.layout import find_layout, list_images
from pipeline.inputs.source_images import SourceImage
from pipeline.runners.coordinator import Coordinator
from pipeline.runners.workers import Workers
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

SUPPORT = ROOT / "tests" / "support"
SMALL = (*QUICK, "--images_per_shard", 8)
TIMES = 2
"""How often the sample's images are segmented, which takes OpenCV about a minute on one core."""
RUN = ("run", *SMALL, "--models", "python:tiny_models:first", "--output")


class Trials:
    """All trials, on one pair of machines."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.folder = folder
        self.slurm = Slurm(stack, folder)
        self.stack = stack
        self._fresh: Path | None = None
        # Starts a worker on one machine and the next on the other, as ssh would.
        entries = [" ".join(self.slurm.inside(node)) for node in NODES]
        self.enter = folder / "enter"
        self.enter.write_text(
            f'#!/bin/sh\nif mkdir "$1" 2>/dev/null; then shift; exec {entries[0]} "$@"\n'
            f'else rmdir "$1"; shift; exec {entries[1]} "$@"; fi\n'
        )
        self.enter.chmod(0o755)

    def in9(self, *flags: object, **more: str) -> tuple[float, str]:
        """Runs in9 on the head; returns its time in seconds and its messages."""
        done, seconds = self.try_in9(*flags, **more)
        assert done.returncode == 0, done.stderr
        return seconds, done.stderr

    def try_in9(
        self, *flags: object, **more: str
    ) -> tuple[subprocess.CompletedProcess[str], float]:
        """Runs in9 on the head, which may fail; returns what came out, and its time in seconds."""
        # Not inside of it, because there the command would not find the other machines.
        words = self.slurm.in_network(HEAD, sys.executable, "-m", "pipeline", *flags)
        started = time.monotonic()
        environment = {**self.slurm.environment, "IN9_TEST_SLEEP": "0", **more}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        return done, time.monotonic() - started

    def by_command(self, *before: object, workers: int = 2) -> tuple[object, ...]:
        """Returns the flags for workers on both machines."""
        mark = self.folder / secrets.token_hex(4)
        command = " ".join(map(str, (self.enter, mark, *before)))
        number = f"--direct_num_workers={workers}"
        return (
            "--worker_command",
            command,
            number,
            "--callback_address",
            address(HEAD),
            "--gpus",
            2,
        )

    def compare(self, output: Path) -> str:
        """Compares all files of an output with those of a run on one machine."""
        if self._fresh is None:
            self._fresh = self.folder / "fresh"
            # Logits depend on the number of threads, and a worker has those of its machine.
            self.in9(*RUN, self._fresh)
        ours, theirs = results_of(output), results_of(self._fresh)
        equal = sum(ours.get(name) == data for name, data in theirs.items())
        return f"{equal} of {len(theirs)} files equal, {len(ours.keys() - theirs.keys())} more"

    def command(self) -> str:
        """A run by a command."""
        self.in9(*RUN, self.folder / "command", *self.by_command())
        return self.compare(self.folder / "command")

    def pools(self) -> str:
        """A run on two pools."""
        secret = self.folder / "secret"
        secret.write_text(secrets.token_hex())
        addresses = [f"{address(node)}:50000" for node in NODES]
        for node, listen in zip(NODES, addresses, strict=True):
            pool = (sys.executable, "-m", "pipeline.runners.worker", "--listen", listen)
            inside = self.slurm.inside(node, *pool, "--secret", secret)
            self.slurm.start(f"pool-{node}", *inside, env=self.slurm.environment)
        flags = ("--worker_pools", ",".join(addresses), "--worker_secret", secret, "--gpus", 2)
        self.in9(*RUN, self.folder / "pools", *flags, "--callback_address", address(HEAD))
        return self.compare(self.folder / "pools")

    def kills(self) -> str:
        """A worker killed in each stage."""
        lines = []
        for step in STEPS:
            output = self.folder / f"kill-{step}"
            killing = (sys.executable, SUPPORT / "killing.py", step, self.folder / f"mark-{step}")
            seconds, error = self.in9(*RUN, output, *self.by_command(*killing))
            assert "its part is done again" in error, (step, error)
            lines.append(f"{step}: {self.compare(output)}, {seconds:.0f} s")
        return "; ".join(lines)

    def sleep(self) -> str:
        """2,000 small pictures and a segmenter that sleeps, for 10 to 190 ms by picture."""
        source = self.folder / "pictures"
        for number in range(2000):
            wnid, name = "n02085620", f"image_{number:05d}"
            path = source / "val" / wnid / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64), (number % 251, number % 241, 90)).save(path)
            xml = source / "Annotations" / "val" / f"{name}.xml"
            xml.parent.mkdir(parents=True, exist_ok=True)
            box = "<xmin>16</xmin><ymin>16</ymin><xmax>47</xmax><ymax>47</ymax>"
            size = "<size><width>64</width><height>64</height></size>"
            item = f"<object><name>{wnid}</name><bndbox>{box}</bndbox></object>"
            xml.write_text(f"<annotation>{size}{item}</annotation>")
        flags = ("generate", "--input", source, *SMALL, "--segmenter", "python:sleeping:segment")
        flags = (*flags, *self.by_command())
        base, _ = self.in9(*flags, "--output", self.folder / "awake")
        seconds, _ = self.in9(*flags, "--output", self.folder / "asleep", IN9_TEST_SLEEP="0.1")
        ideal = 2000 * 0.1 / 2
        return f"{seconds - base:.1f} s more than without sleep, ideal {ideal:.0f} s"

    def never(self) -> str:
        """A worker that never calls back."""
        silent = self.by_command("sh", "-c", "'echo no node is free; exec sleep 600'")
        flags = (*RUN, self.folder / "never", *silent, "--worker_timeout", 5)
        done, seconds = self.try_in9(*flags)
        return f"exit code {done.returncode} after {seconds:.0f} s: {done.stderr.strip()[-300:]}"

    def grabcut(self) -> str:
        """Segment alone, with OpenCV's GrabCut: one worker and two in turn, then bare loops."""
        lines = []
        for _ in range(2):
            lines += [f"workers: {number}, {_segment(number):.2f} images/s" for number in (1, 2)]
            lines += [f"loops: {number}, {_loop(number):.2f} images/s" for number in (1, 2)]
        return "; ".join(lines)


def _segment(workers: int) -> float:
    """Returns how many images a second workers segment, each a shard of its own."""
    with tempfile.TemporaryDirectory() as folder:
        store, config = (
            Store(folder),
            DatasetConfig(segment=SegmentConfig(segmenter="cv2"), compose=ComposeConfig()),
        )
        layout = find_layout(sample_folder(), None, "val")
        job = GenerateJob(
            config, (layout,), imagenet9(), store, Progress.for_store(store), previous={}
        )
        listed, totals = list_split(job, layout)
        # With keys of their own, because images of one key would share a shard.
        images = [
            dataclasses.replace(image, key=f"{image.key}_{time}")
            for image in listed
            for time in range(TIMES)
        ]
        totals = dataclasses.replace(totals, counts=ShardCounts(len(images), 1))
        shards = [shard.make() for shard in make_shards(images, totals)]
        pipeline = beam.Pipeline(Coordinator(Workers(workers)))
        _ = pipeline | beam.Create(shards) | beam.Reshuffle() | beam.ParDo(SegmentShard(job))
        pipeline.run()
        times = sorted(path.stat().st_mtime for path in Path(folder).rglob("val-*.parquet"))
        # Without the shards at which workers begin and load libraries.
        counted = times[2 * workers :]
        return (len(counted) - 1) / (counted[-1] - counted[0])


def _loop(processes: int) -> float:
    """Returns how many images a second processes without Beam segment, each its share."""
    listed, *_ = list_images(find_layout(sample_folder(), None, "val"), imagenet9())
    images = [*listed] * TIMES
    cutter = Cutter(SegmentConfig(segmenter="cv2"))

    def work(part: Sequence[SourceImage]) -> None:
        for image in part:
            list(cutter.cut(read_source(image.path, image.annotation)))

    started = time.monotonic()
    forks = multiprocessing.get_context("fork")
    running = [
        forks.Process(target=work, args=(images[number::processes],)) for number in range(processes)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    return len(images) / (time.monotonic() - started)


def main() -> None:
    """Runs the named trials, or all."""
    if reason := missing():
        sys.exit(f"machines: {reason}")
    names = sys.argv[1:] or ["command", "pools", "kills", "never", "sleep", "grabcut"]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        trials = Trials(stack, Path(folder))
        for name in names:
            trial: Callable[[], str] = getattr(trials, name)
            print(f"{trial.__doc__} {trial()}", flush=True)


if __name__ == "__main__":
    main()
