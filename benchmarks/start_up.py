"""Measures how long commands take to start: help, a misspelt flag, and runs with nothing to do.

    python benchmarks/start_up.py [--rounds 5]

The yardsticks are an interpreter that does nothing, and one that imports Beam or torch, which every
pipeline or model needs. They end at once, as commands do.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measure import IN9, draw_small, machine, row, run_in9


def seconds(rounds: int, *words: object, expected: int = 0) -> float:
    """Measures the median wall time of a program.

    Raises CalledProcessError unless it ends with the expected exit code.
    """
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        command = [str(word) for word in words]
        done = subprocess.run(command, check=False, capture_output=True)
        times.append(time.perf_counter() - started)
        if done.returncode != expected:
            raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="repetitions; the median counts (5)")
    rounds = parser.parse_args().rounds
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source, output = draw_small(12, root / "in"), root / "out"
        run_in9("run", "--input", source, "--output", output)
        bare = {
            name: seconds(rounds, sys.executable, "-c", f"import os{others}; os._exit(0)")
            for name, others in (
                ("python", ""),
                ("import apache_beam", ", apache_beam"),
                ("import torch", ", torch"),
            )
        }
        for name, duration in bare.items():
            row(f"start-up: {name}", f"{duration:.2f} s")
        typo = seconds(rounds, *IN9, "run", "--ouput", output, expected=2)
        ratio = typo / bare["import apache_beam"]
        row("start-up: in9 run --ouput", f"{ratio:.2f} x", "import apache_beam", "<= 0.5")
        dataset = ("--dataset", output)
        calls: Sequence[tuple[str, tuple[object, ...], str, str]] = (
            ("in9 --help", ("--help",), "python", "<= 0.5 s"),
            ("in9 run --help", ("run", "--help"), "python", "<= 0.5 s"),
            (
                "in9 generate, nothing to do",
                ("generate", "--input", source, "--output", output),
                "import apache_beam",
                "",
            ),
            (
                "in9 run, nothing to do",
                ("run", "--input", source, "--output", output),
                "import torch",
                "",
            ),
            (
                "in9 evaluate, nothing to do",
                ("evaluate", *dataset, "--models", "efficientnet_lite0"),
                "import torch",
                "",
            ),
            ("in9 report, nothing to do", ("report", *dataset), "python", ""),
            ("in9 verify", ("verify", *dataset), "python", ""),
        )
        for name, arguments, yardstick, bound in calls:
            duration = seconds(rounds, *IN9, *arguments)
            beyond = f"{duration - bare[yardstick]:.2f} s beyond {yardstick}"
            row(f"start-up: {name}", f"{duration:.2f} s", beyond, bound)


if __name__ == "__main__":
    main()
