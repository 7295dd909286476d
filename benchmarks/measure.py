"""Helpers of the benchmarks: inputs of any size, the cost of a command, rows of the table."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.inputs.source_images import SourceImage


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a process.

    Attributes:
      wall: seconds from start to end.
      cpu: seconds of user and system time of the process and its children.
      peak: peak resident memory, in MB.
      output: standard output of the process.
    """

    wall: float
    cpu: float
    peak: float
    output: str = ""


TABLE = "IN9_BENCHMARK_ROWS"
"""Environment variable with the file to which rows are appended, for `benchmarks/results.py`."""


def row(quantity: str, value: str, yardstick: str = "", bound: str = "") -> None:
    """Prints a figure, and records it for the table.

    Args:
      quantity: name of the measured quantity.
      value: with its unit; a ratio is followed by x.
      yardstick: what the value is compared with.
      bound: wanted range of the value.
    """
    against = f" ({yardstick})" if yardstick else ""
    print(f"{quantity}: {value}{against}" + (f"; {bound}" if bound else ""), flush=True)
    if path := os.environ.get(TABLE):
        with open(path, "a", encoding="utf-8") as file:
            line = {"what": quantity, "value": value, "yardstick": yardstick, "bound": bound}
            file.write(json.dumps(line) + "\n")


def commit() -> str:
    """Returns the commit of the checkout, `unknown` outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def run_in9(*arguments: object) -> Cost:
    """Runs a command in a separate process. Raises CalledProcessError if it fails."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        output = process.stdout.read().decode()
        errors.seek(0)
        stderr = errors.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=stderr)
    return Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output)


def multiply(images: Sequence[SourceImage], count: int, root: Path) -> Path:
    """Fills an input folder with `count` links to images in turn, under new keys."""
    annotations = root / "Annotations" / "val"
    annotations.mkdir(parents=True)
    for number in range(count):
        image = images[number % len(images)]
        assert image.annotation is not None
        key = f"copy_{number:06d}"
        folder = root / "val" / image.wnid
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{key}.JPEG").symlink_to(image.path)
        (annotations / f"{key}.xml").symlink_to(image.annotation)
    return root


def draw_small(count: int, root: Path) -> Path:
    """Fills an input folder with `count` drawn pictures that are segmented very quickly.

    Each shows a disc on noise; the pictures belong to two classes in turn.
    """
    random = np.random.default_rng(0)
    annotations = root / "Annotations" / "val"
    annotations.mkdir(parents=True)
    y, x = np.mgrid[:80, :100]
    for number in range(count):
        wnid = ("n01440764", "n02085620")[number % 2]
        pixels = random.integers(60, 120, (80, 100, 3)).astype(np.uint8)
        pixels[(x - 50) ** 2 + (y - 40) ** 2 < 20**2] += 120
        folder = root / "val" / wnid
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"drawn_{number:06d}.JPEG", quality=90)
        (annotations / f"drawn_{number:06d}.xml").write_text(
            "<annotation><size><width>100</width><height>80</height></size><object><bndbox>"
            "<xmin>28</xmin><ymin>18</ymin><xmax>72</xmax><ymax>62</ymax></bndbox></object>"
            "</annotation>"
        )
    return root


def slope(small: tuple[int, float], large: tuple[int, float]) -> float:
    """Computes the cost of one more image from two runs (images, cost), without start-up."""
    return (large[1] - small[1]) / (large[0] - small[0])


def peak_of_this_process() -> float:
    """Returns the peak resident memory of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine() -> str:
    """Describes this machine in a few words."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return f"{os.cpu_count()} cores, {model[1] if model else 'unknown processor'}"
