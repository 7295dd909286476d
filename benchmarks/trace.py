"""Counts the functions of `pipeline/` that an image passes in `in9 run`.

    python benchmarks/trace.py

It runs the job in this checkout on 36 and on 72 drawn images, none of which is rejected, in the
same number of shards, with one worker and one model, and prints each function that counts with its
calls for an image. The two runs are separate processes, where Python's profiler sees every thread.

* A function is a `def` or a `lambda`, also inside of another one, and a method or a property. A
  comprehension and a generator expression belong to the function around them.
* A generator is called once, when it starts, however often it goes on.
* A function behind `functools.cache` or `lru_cache` is called as often as its cache is asked.
* What is done by the clock is off: notes of progress, checkpoints, renewals of the lock.

Functions without source, such as the generated `__init__` of a dataclass, are not counted, and
neither is what other flags, bad images or other layouts would need.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import io
import itertools
import json
import multiprocessing
import opcode
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple
from unittest import mock

from measure import ROOT, draw_small, row

from pipeline.commands.cli import main as in9
from pipeline.evaluate import predict_shards
from pipeline.runtime import lock, progress
from transforms.grabcut import prepare

FEW, MANY = 36, 72
RULE = (
    "functions of pipeline/ whose calls rise by at least one an image between "
    f"{FEW} and {MANY} images in the same number of shards"
)
_CLOCKS = (
    (progress, "PLAIN_SECONDS"),
    (progress, "_NOTE_SECONDS"),
    (lock, "RENEWAL_SECONDS"),
    (predict_shards, "CHECKPOINT_SECONDS"),
)
_PARTS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<module>")
"""Names of code that is no function of its own. Newer Pythons have no code for most of these."""


class Function(NamedTuple):
    """A function of a module, and the line where it begins."""

    module: str
    line: int
    name: str


class CallCounter:
    """A context that counts the calls of all functions in a folder, in this and in new threads.

    Args:
      folder: what lies in it, at any depth, is counted.

    Attributes:
      calls: number of calls of each function, once the context has ended.
    """

    def __init__(self, folder: Path) -> None:
        self.calls: Counter[Function] = Counter()
        self._prefix = f"{folder}/"
        self._lock = threading.Lock()

    def __enter__(self) -> CallCounter:
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        is_ours = sys.getprofile() == self._see
        sys.setprofile(None)
        threading.setprofile(None)
        assert is_ours, "something has replaced the profiler"
        # The profiler sees what fills a cache, and not what is found there.
        for cached in gc.get_objects():
            if isinstance(cached, functools._lru_cache_wrapper):
                code = getattr(cached.__wrapped__, "__code__", None)
                hits = cached.cache_info().hits
                if hits and code is not None and self._counts(code):
                    self.calls[self._function(code)] += hits

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and self._counts(frame.f_code) and _starts(frame):
            with self._lock:
                self.calls[self._function(frame.f_code)] += 1

    def _counts(self, code: CodeType) -> bool:
        return code.co_filename.startswith(self._prefix) and code.co_name not in _PARTS

    def _function(self, code: CodeType) -> Function:
        module = code.co_filename.removeprefix(self._prefix)
        return Function(module, code.co_firstlineno, code.co_qualname)


def _starts(frame: FrameType) -> bool:
    """Returns whether a frame begins, and is not a generator that goes on."""
    if frame.f_lasti < 0:
        return True
    instruction, argument = frame.f_code.co_code[frame.f_lasti : frame.f_lasti + 2]
    return opcode.opname[instruction] == "RESUME" and not argument & 3


def run_counted(images: int) -> tuple[Counter[Function], Any]:
    """Runs the job on a number of images; returns the calls, and the manifest's shards.

    Use a separate process for each run, so that no cache is filled before.
    """
    prepare(lambda: print("compiling the kernels, once on this machine (about 15 s)"))
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.ExitStack() as stack,
        # On a terminal there would be a bar, which calls functions by the clock.
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        for module, seconds in _CLOCKS:
            stack.enter_context(mock.patch.object(module, seconds, threading.TIMEOUT_MAX))
        output = Path(folder) / "out"
        command = ["run", "--input", str(draw_small(images, Path(folder) / "in"))]
        command += ["--output", str(output), "--models", "efficientnet_lite0"]
        keys = Path(folder) / "keys.toml"
        keys.write_text(f"images_per_shard = {images // 2}\n")
        command += ["--direct_num_workers", "1", "--config", str(keys)]
        with CallCounter(ROOT / "pipeline") as counter, contextlib.redirect_stdout(errors):
            code = in9(command)
        assert code == 0, errors.getvalue()
        manifest = json.loads((output / "manifest.json").read_text())
        assert manifest["images"]["val"]["selected"] == images, manifest["images"]
        return counter.calls, manifest["shards"]


def calls_per_image() -> dict[Function, float]:
    """Measures the calls for one more image of each function that the rule counts."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        (few, shards), (many, same) = pool.map(run_counted, (FEW, MANY))
    assert shards == same, (shards, same)
    rises = {function: (calls - few[function]) / (MANY - FEW) for function, calls in many.items()}
    return {function: rise for function, rise in sorted(rises.items()) if rise >= 1}


def describe(functions: dict[Function, float]) -> Iterator[str]:
    """Yields a line for each module, and one for each of its functions."""
    for module, group in itertools.groupby(functions, key=lambda function: function.module):
        yield f"\npipeline/{module}"
        for function in group:
            yield f"{functions[function]:8.2f}  {function.name}, line {function.line}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.parse_args()
    functions = calls_per_image()
    print(RULE)
    for line in describe(functions):
        print(line)
    print()
    row("trace: functions for each image", str(len(functions)), f"{FEW} and {MANY} images")
    modules = {function.module for function in functions}
    row("trace: modules with such a function", str(len(modules)), f"{FEW} and {MANY} images")


if __name__ == "__main__":
    main()
