"""Helpers of the benchmarks: inputs of any size, the cost of a command, rows of the table.

Every benchmark imports this module, which ends the process unless `pipeline` is the one beside it:
rows name this checkout's commit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import pipeline
from pipeline.inputs.source_images import SourceImage

ROOT = Path(__file__).resolve().parents[1]
if not Path(pipeline.__file__).resolve().is_relative_to(ROOT):
    sys.exit(f"this would measure {pipeline.__file__}; set PYTHONPATH={ROOT}, or use its .venv")

IN9 = (sys.executable, "-P", "-m", "pipeline")
"""The words that run a command. Without -P, the current folder would come before this checkout."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a process.

    Attributes:
      wall: seconds from start to end.
      cpu: seconds of user and system time of the process and its children.
      peak: peak resident memory of the process and its children together, in MB; pages that they
        share count for each.
      output: standard output of the process.
    """

    wall: float
    cpu: float
    peak: float
    output: str = ""


TABLE = "IN9_BENCHMARK_ROWS"
"""Environment variable with the file to which rows are appended, for `benchmarks/results.py`."""


_NUMBER = re.compile(r"[-+]?(?:\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?|\b(?:nan|inf)\b)")


def row(quantity: str, value: str, yardstick: str = "", bound: str = "") -> None:
    """Prints a figure, and records it for the table.

    Ends the process if a number in `value` is not positive and finite, as nothing was measured.

    Args:
      quantity: name of the measured quantity.
      value: with its unit; a ratio is followed by x.
      yardstick: what the value is compared with.
      bound: wanted range of the value.
    """
    numbers = (float(number.replace(",", "")) for number in _NUMBER.findall(value))
    if not all(0 < number < math.inf for number in numbers):
        sys.exit(f"{quantity}: {value} is not positive and finite")
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


def run_in9(*arguments: object, **keys: int) -> Cost:
    """Runs a command of in9 in a separate process. Raises CalledProcessError if it fails.

    `keys` are those of the file that `--config` names.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.writelines(f"{key} = {value}\n" for key, value in keys.items())
        file.flush()
        return run_process(*IN9, *arguments, "--config", file.name)


def run_process(*words: object) -> Cost:
    """Runs a program in a separate process. Raises CalledProcessError if it fails."""
    command = [str(word) for word in words]
    started = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        with _peak_of_tree(process.pid) as peaks:
            output = process.stdout.read().decode()
        errors.seek(0)
        stderr = errors.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=stderr)
    return Cost(wall, usage.ru_utime + usage.ru_stime, max(peaks), output)


@contextlib.contextmanager
def _peak_of_tree(process: int) -> Iterator[list[float]]:
    """Looks at a process and its children while the block runs; yields the sums of their peaks."""
    sums: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        known = {process}
        while True:
            peaks = {each: peak_memory(each) for each in _tree(process)}
            # Until it runs its own program, a new process may use its parent's memory.
            sums.append(sum(peak for each, peak in peaks.items() if each in known))
            known = {process, *peaks}
            if ended.wait(_LOOK_SECONDS):
                break

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sums
    finally:
        ended.set()
        thread.join()


_LOOK_SECONDS = 0.05


def _tree(process: int) -> Iterator[int]:
    """Yields a process and all below it."""
    yield process
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{process}/task"):
            children = Path(f"/proc/{process}/task/{thread}/children").read_text()
            for child in children.split():
                yield from _tree(int(child))


def peak_memory(process: int | str = "self") -> float:
    """Returns the peak resident memory of a process, in MB; 0 if it has ended.

    `getrusage` returns at least that of the process that has started it, because `ru_maxrss`
    survives `exec`.
    """
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if found := re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text()):
            return int(found[1]) / 1024
    return 0.0


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
        (folder / f"{key}.JPEG").symlink_to(image.location.path)
        (annotations / f"{key}.xml").symlink_to(image.annotation.path)
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


_VECTORS = (
    *(("avx512f", "AVX-512"), ("avx2", "AVX2"), ("sse4_2", "SSE4.2")),
    *(("sve", "SVE"), ("asimd", "NEON")),
)
"""Flags of /proc/cpuinfo, and the vector instructions that they stand for, the widest first."""


def machine() -> str:
    """Describes this machine in a few words: cores, processor, vector instructions."""
    # On ARM, a processor has no name, and its flags have another one.
    lines = re.findall(r"(\w[\w ]*\w)\s*: (.*)", Path("/proc/cpuinfo").read_text())
    fields: dict[str, str] = dict(lines)
    name = fields.get("model name", platform.machine())
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    flags = fields.get("flags", fields.get("Features", "")).split()
    vectors = (known for flag, known in _VECTORS if flag in flags)
    return f"{os.cpu_count()} cores, {name}, {next(vectors, 'no known vector instructions')}"
