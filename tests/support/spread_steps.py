"""Steps for tests of `Spread`, which workers import, and a function that runs one."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.runtime.custom_functions import imported_digests
from pipeline.runtime.progress import Progress, count
from pipeline.runtime.workers import Answer, Call, Engine, Step
from pipeline.storage.store import Store

_outputs: list[Any] = []


def _keep(output: Any) -> None:
    _outputs.append(output)


def outputs_of(
    engine: Engine | None,
    step: Step,
    elements: Sequence[object],
    folder: Path,
    card: Callable[[Any], int] | None = None,
) -> tuple[list[Any], dict[str, int]]:
    """Runs a step on elements, as a job does; returns its outputs and the counters."""
    # Workers import this module, and no Beam.
    import apache_beam as beam

    from pipeline.runners.beam_options import pipeline_options, run_pipeline
    from pipeline.runtime.spread import Spread, spread_over

    _outputs.clear()
    # Other tests of this process have imported functions that these steps do not call.
    imported_digests.clear()
    with spread_over(engine):
        pipeline = beam.Pipeline(options=pipeline_options([]))
        spread = pipeline | beam.Create(elements) | Spread(step, object, card=card)
        _ = spread | beam.Map(_keep)
        progress = Progress.for_store(Store(str(folder)))
        counters = run_pipeline(pipeline, progress, str(folder / "job.log"))
    return [*_outputs], counters or {}


class Shared(Engine):
    """An engine that several jobs use, one after the other."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.has_cards = engine, engine.has_cards

    def answers(self, calls: Sequence[Call]) -> Iterator[Answer]:
        return self._engine.answers(calls)

    def __exit__(self, *_: object) -> None:
        """Does nothing, since other jobs follow."""


class Sleep(Step):
    """Seconds -> the id of the process that has slept for them."""

    def process(self, seconds: float) -> list[int]:
        time.sleep(seconds)
        count("naps")
        return [os.getpid()]


class Note(Step):
    """Anything -> the same; notes in a file what it is asked to do, by which process and thread."""

    def __init__(self, file: Path, name: str) -> None:
        self._file, self._name = file, name

    def _note(self, what: str) -> None:
        with self._file.open("a") as file:
            file.write(f"{self._name} {what} {os.getpid()} {threading.get_ident()}\n")

    def setup(self) -> None:
        self._note("setup")

    def process(self, element: object) -> list[object]:
        self._note("process")
        time.sleep(0.02)  # So each worker gets some.
        return [element]

    def teardown(self) -> None:
        self._note("teardown")


class Fail(Step):
    """Raises an error, and leaves a file for each time."""

    def __init__(self, folder: Path, kind: type[Exception], message: str) -> None:
        self._folder, self._kind, self._message = folder, kind, message

    def process(self, _: object) -> list[object]:
        (self._folder / f"{os.getpid()}-{time.monotonic_ns()}").touch()
        raise self._kind(self._message)


class Import(Step):
    """A module -> whether its import has imported Beam."""

    def process(self, module: str) -> list[bool]:
        importlib.import_module(module)
        return ["apache_beam" in sys.modules]


class Die(Step):
    """Kills its process."""

    def process(self, _: object) -> list[object]:
        os.kill(os.getpid(), signal.SIGKILL)
        return []


class Meet(Step):
    """A number of names, such as ids of processes -> them; waits until so many have been said."""

    def __init__(self, folder: Path, name: Callable[[], int] = os.getpid) -> None:
        self._folder, self._name = folder, name

    def process(self, number: int) -> list[list[str]]:
        (self._folder / str(self._name())).touch()
        until = time.monotonic() + 60
        while len(found := os.listdir(self._folder)) < number:
            assert time.monotonic() < until, "nobody else has come"
            time.sleep(0.05)
        return [found]
