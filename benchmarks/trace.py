"""Counts the code that an image passes on its way from `--input` to a row of `summary.csv`.

    python benchmarks/trace.py [--limit 4] [--list]

It runs `in9 run` on some images of the sample in this process, with one worker and one model, under
Python's profiler. It counts the code of `pipeline/` and `transforms/` that runs in the steps of the
graph, and in threads that they start, until `summary.csv` exists. Flags, checks, closing words and
the page are not part of it, and neither is code that runs while a module is imported or a kernel is
compiled. It counts

* functions: each named function once; a method that two classes share is one function;
* modules: files with such a function;
* types: our classes, and their base classes of ours, of all arguments of such a function (including
  `self`), and of all constructed objects.

It prints the numbers of all of them, and of those that occur at least as often as there are images.
The latter approximate what each image passes: code that runs once for a shard, a model or a job is
left out, but code that happens to run as often for another reason is included.

Python's profiler does not see compiled code, such as the kernels of GrabCut, nor classes without
instances, such as a `TypedDict`, and paths for bad input, other flags or other layouts do not run.
So the figures serve to compare two states of the code; they are less than all there is to learn.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from inspect import CO_VARARGS, CO_VARKEYWORDS
from pathlib import Path
from types import FrameType
from typing import Any

from measure import row

from pipeline.commands.cli import main as in9

ROOT = Path(__file__).resolve().parent.parent
OURS = ("pipeline", "transforms")
_FOLDERS = tuple(f"{ROOT / name}/" for name in OURS)
_WORKER = "/apache_beam/runners/worker/"
_NO_STEPS = ("<frozen importlib", "/numba/")
"""Files of importing and compiling. Code below these is never counted, because a second run, which
finds everything compiled, would count less."""
_END = "/results/summary.csv"


class Trace:
    """A count of our code that ran in the steps of a graph.

    Attributes:
      functions: number of calls by (module, function).
      types: number of calls by class, for calls with an instance as an argument and for
        constructions.
    """

    def __init__(self) -> None:
        self.functions: Counter[tuple[str, str]] = Counter()
        self.types: Counter[type] = Counter()
        self._is_over = False

    def run(self, arguments: list[str]) -> int:
        """Runs a command, and returns its exit code.

        Use a separate process for each run, because the hooks cannot be removed.
        """
        start_thread = threading.Thread.start

        def start(thread: threading.Thread) -> None:
            # The stack of a thread does not show which code has started it.
            if _is_in_step(sys._getframe(1)):
                thread.run = _of_step(thread.run)  # type: ignore[method-assign]
            start_thread(thread)

        threading.Thread.start = start  # type: ignore[assignment,method-assign]
        sys.addaudithook(self._watch)
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        try:
            return in9(arguments)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        # Files are written under another name and then renamed.
        if event == "os.rename" and str(arguments[1]).endswith(_END):
            self._is_over = True

    def _see(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        is_ours = code.co_filename.startswith(_FOLDERS)
        # The generated functions of dataclasses and named tuples have no file.
        if event != "call" or self._is_over or not (is_ours or code.co_filename == "<string>"):
            return
        if not _is_in_step(frame):
            return
        if is_ours and not code.co_name.startswith("<"):
            module = str(Path(code.co_filename).relative_to(ROOT))
            self.functions[module, code.co_qualname] += 1
        kinds = {
            value if isinstance(value, type) else type(value) for value in _arguments_of(frame)
        }
        self.types.update({base for kind in kinds for base in kind.__mro__ if _is_ours(base)})


def _of_step(run: Callable[[], None]) -> Callable[[], None]:
    def run_of_step() -> None:
        run()

    return run_of_step


def _is_in_step(frame: FrameType | None) -> bool:
    """Returns whether a frame is below Beam's worker, or in a thread that such a frame started."""
    while frame is not None:
        code = frame.f_code
        if any(part in code.co_filename for part in _NO_STEPS):
            return False
        if _WORKER in code.co_filename or code.co_name == "run_of_step":
            return True
        frame = frame.f_back
    return False


def _arguments_of(frame: FrameType) -> Iterator[Any]:
    """Yields the arguments with which a function was called."""
    code, values = frame.f_code, frame.f_locals
    count = code.co_argcount + code.co_kwonlyargcount
    count += sum(bool(code.co_flags & flag) for flag in (CO_VARARGS, CO_VARKEYWORDS))
    return (values[name] for name in code.co_varnames[:count] if name in values)


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in OURS


def _print_names(functions: Iterable[tuple[str, str]], types: Iterable[type]) -> None:
    for module, group in itertools.groupby(sorted(functions), key=lambda each: each[0]):
        print(f"{module}: {', '.join(name for _, name in group)}")
    print(f"types: {', '.join(sorted(f'{kind.__module__}.{kind.__qualname__}' for kind in types))}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=4, help="images of each class (4)")
    parser.add_argument("--list", action="store_true", help="print their names, module by module")
    arguments = parser.parse_args()
    trace = Trace()
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "out"
        command = ["run", "--output", str(output), "--limit", str(arguments.limit)]
        command += ["--models", "efficientnet_lite0", "--direct_num_workers=1"]
        if code := trace.run(command):
            return code
        images = json.loads((output / "manifest.json").read_text())["images"]["val"]["listed"]
    for scope, least in (("in all", 1), ("for each image", images)):
        functions = [each for each, calls in trace.functions.items() if calls >= least]
        types = [kind for kind, calls in trace.types.items() if calls >= least]
        if arguments.list:
            print(f"\n{scope}\n")
            _print_names(functions, types)
        yardstick = f"{images} images to a row"
        row(f"trace: functions {scope}", str(len(functions)), yardstick)
        row(f"trace: modules {scope}", str(len({module for module, _ in functions})), yardstick)
        row(f"trace: types {scope}", str(len(types)), yardstick)
    return 0


if __name__ == "__main__":
    sys.exit(main())
