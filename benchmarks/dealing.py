"""Measures how long workers take for 600 calls of unequal length, against the time that they must.

    python benchmarks/dealing.py [--workers 2]

The calls sleep, for 5 to 60 ms, so that they cost no CPU. With the extra `dask`, it also starts a
cluster of as many workers on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
from measure import ROOT, machine, row

from pipeline.runtime.spread import Spread, spread_over
from pipeline.runtime.workers import Engine, LocalWorkers, Step

_CALLS = 600


class Sleep(Step):
    """Seconds -> the same; sleeps for them."""

    def process(self, seconds: float) -> list[float]:
        time.sleep(seconds)
        return [seconds]


@contextlib.contextmanager
def dask(workers: int) -> Iterator[str]:
    """Runs a Dask cluster on this machine; yields the path of its scheduler's file."""
    with tempfile.TemporaryDirectory() as folder:
        file, words = f"{folder}/scheduler", (sys.executable, "-m", "dask")
        at = ("--host", "tcp://127.0.0.1", "--port", "0", "--scheduler-file", file)
        one = ("--scheduler-file", file, "--nthreads", "1", "--memory-limit", "0")
        commands = [("scheduler", *at), *[("worker", *one, "--local-directory", folder)] * workers]
        running = []
        try:
            for command in commands:
                word = (*words, *command, "--no-dashboard")
                running.append(subprocess.Popen(word, stderr=subprocess.DEVNULL))
                while not Path(file).exists():
                    time.sleep(0.1)
            yield file
        finally:
            for process in reversed(running):
                process.terminate()
                process.wait()


def seconds(engine: Engine, lengths: list[float]) -> float:
    """Returns how long an engine takes for calls, without the start of its workers."""
    with spread_over(engine):
        times = []
        for each in ([0.5] * 8, lengths):
            started = time.monotonic()
            pipeline = beam.Pipeline("FnApiRunner")
            _ = pipeline | beam.Create(each) | Spread(Sleep(), float)
            pipeline.run().wait_until_finish()
            times.append(time.monotonic() - started)
    return times[-1]


def main() -> None:
    # Workers import the step from this file.
    os.environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(Path(__file__).parent)))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="worker processes (2)")
    workers = parser.parse_args().workers
    print(machine())
    lengths = [0.005 + 0.055 * place / (_CALLS - 1) for place in range(_CALLS)]
    random.Random(7).shuffle(lengths)
    ideal = sum(lengths) / workers
    local = seconds(LocalWorkers(workers), lengths)
    row(f"dealing: {workers} local workers", f"{local / ideal:.2f} x", "the ideal", "<= 1.25")
    from pipeline.runtime.dask_workers import DaskWorkers

    with dask(workers) as address:
        spread = seconds(DaskWorkers(address), lengths)
    row(f"dealing: {workers} Dask workers", f"{spread / ideal:.2f} x", "the ideal", "<= 1.25")


if __name__ == "__main__":
    # So that the step's class has a name that workers can import.
    from dealing import main as run

    run()
