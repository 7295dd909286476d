"""Tries a job with Dask's workers on two machines, and prints what came out.

    scripts/machines [TRIAL...]

The machines are namespaces (`tests/support/machines.py`), so this needs root and Slurm's packages.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lost_workers import STEPS, lost_after_steps
from machines import HEAD, NODES, Slurm, address, children, missing, until
from PIL import Image
from runs import QUICK, ROOT, keys, results_of, words_of

from pipeline.dataset.folder import sample_folder

SMALL = (*QUICK, *keys(images_per_shard=8))


class Trials:
    """All trials, on a pair of machines.

    Args:
      stack: ends all processes.
      folder: an empty folder for all files.
    """

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.folder, self.stack = folder, stack
        certificates = folder / "certificates"
        subprocess.run([ROOT / "deploy" / "certificates", certificates], check=True)
        self.slurm = Slurm(stack, folder)
        self.environment = {
            **self.slurm.environment,
            "DASK_CONFIG": str(certificates / "dask.yaml"),
            "IN9_TEST_SLEEP": "0",
        }
        scheduler = ("dask", "scheduler", "--host", f"tls://{address(HEAD)}", "--no-dashboard")
        self.start("scheduler", HEAD, *scheduler)
        self.dask = f"tls://{address(HEAD)}:8786"
        recipe = folder / "recipe"
        self.in9("generate", *SMALL, "--output", folder / "first")
        self.in9("export", "--dataset", folder / "first", "--layout", "recipe", "--to", recipe)
        # With a recipe, a run has all steps that workers do.
        run = ("run", "--recipe", recipe, "--input", sample_folder())
        run = (*run, "--models", "python:tiny_models:first", "--output")
        self.in9(*run, folder / "here")
        self.run = (*run[:1], "--dask", self.dask, "--gpus", 2, *run[1:])

    def start(
        self, log: str, machine: str, *command: object, **more: str
    ) -> subprocess.Popen[bytes]:
        """Starts a command on a machine."""
        words = self.slurm.inside(machine, *command)
        return self.slurm.start(log, *words, env={**self.environment, **more})

    @contextlib.contextmanager
    def workers(self, *flags: object, **more: str) -> Iterator[None]:
        """Runs a worker on each node, with further flags and environment variables."""
        words = ("dask", "worker", self.dask, "--nthreads", 1, "--memory-limit", 0)
        started = [
            self.start(f"worker-{node}", node, *words, "--no-dashboard", *flags, **more)
            for node in NODES
        ]
        try:
            yield
        finally:
            for worker in started:
                # The worker is a child of what has started it on its machine.
                for pid in children(worker.pid):
                    os.kill(pid, signal.SIGTERM)
                worker.wait()

    def in9(self, *flags: object) -> float:
        """Runs in9 on the head; returns its time in seconds."""
        started = time.monotonic()
        words = self.slurm.inside(HEAD, sys.executable, "-m", "pipeline", *words_of(flags))
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return time.monotonic() - started

    def compare(self, output: str, here: str = "here") -> str:
        """Compares all files of an output with those of a run on one machine."""
        ours, theirs = results_of(self.folder / output), results_of(self.folder / here)
        equal = sum(ours.get(name) == data for name, data in theirs.items())
        return f"{equal} of {len(theirs)} files equal, {len(ours.keys() - theirs.keys())} more"

    def plain(self) -> str:
        """A run."""
        with self.workers():
            seconds = self.in9(*self.run, self.folder / "plain")
        return f"{self.compare('plain')}, {seconds:.0f} s"

    def kills(self) -> str:
        """A worker killed in each step."""
        lines = []
        losses = self.folder / "losses"
        with self.workers(**lost_after_steps(losses)):
            for step in STEPS:
                output = self.folder / f"kill-{step}"
                (losses / step).touch()
                seconds = self.in9(*self.run, output)
                assert not (losses / step).exists()
                lines.append(f"{step}: {self.compare(output.name)}, {seconds:.0f} s")
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
        flags = (*flags, "--dask", self.dask)
        with self.workers():
            base = self.in9(*flags, "--output", self.folder / "awake")
        with self.workers(IN9_TEST_SLEEP="0.1"):
            seconds = self.in9(*flags, "--output", self.folder / "asleep")
        ideal = 2000 * 0.1 / 2
        return f"{seconds - base:.1f} s more than without sleep, ideal {ideal:.0f} s"

    def node(self) -> str:
        """A node that is lost while both work."""
        output, meet = self.folder / "node", self.folder / "meet"
        meet.mkdir()
        flags = ("generate", *SMALL, "--segmenter", "python:sleeping:segment", "--output")
        self.in9(*flags, self.folder / "here-node")
        both = {"IN9_TEST_SLEEP": "0.5", "IN9_TEST_MEET": str(meet)}
        words = words_of((*flags, output, "--dask", self.dask))
        job = (sys.executable, "-m", "pipeline", *words)
        with self.workers(**both):
            started = time.monotonic()
            running = self.start("job", HEAD, *job)
            until(lambda: len([*meet.iterdir()]) == len(NODES), 180)
            self.slurm.take_away(NODES[1])
            assert running.wait(600) == 0, (self.folder / "job.log").read_text()
            seconds = time.monotonic() - started
        return f"{self.compare('node', 'here-node')}, {seconds:.0f} s"


def main() -> None:
    """Runs the named trials, or all."""
    if reason := missing():
        sys.exit(f"machines: {reason}")
    for name in sys.argv[1:] or ["plain", "kills", "sleep", "node"]:
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            trial: Callable[[], str] = getattr(Trials(stack, Path(folder)), name)
            print(f"{trial.__doc__} {trial()}", flush=True)


if __name__ == "__main__":
    main()
