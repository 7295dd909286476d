"""Progress of a running job, on any runner that shares the dataset folder.

Workers note each finished shard as an empty file in the work folder; a thread of the
launching process counts the notes and says how far the job is. Notes are no part of the
dataset, and nothing relies on them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from pipeline.storage import WORK_FOLDER, Store

_FOLDER = f"{WORK_FOLDER}/progress"
"""Holds a folder for each running job, named by its process."""
_STAGES = {"segment": "images", "compose": "images", "evaluate": "pictures"}
_TOTAL = "total"

TERMINAL_SECONDS = 1.0
PLAIN_SECONDS = 30.0


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where the workers of one job leave their notes.

    Attributes:
      folder: absolute path, of this job alone.
    """

    folder: str

    @classmethod
    def of(cls, store: Store) -> Progress:
        """Notes of a job that this process launches."""
        return cls(store.path(f"{_FOLDER}/{os.getpid()}"))

    def note_total(self, stage: str, name: str, count: int) -> None:
        """Notes how much a stage has to do: `count` for the part called `name`."""
        self._note(os.path.join(stage, _TOTAL), name, count)

    def note_done(self, stage: str, name: str, count: int) -> None:
        """Notes a finished shard of a stage. Noting it again changes nothing."""
        self._note(stage, name, count)

    def _note(self, folder: str, name: str, count: int) -> None:
        path = os.path.join(self.folder, folder)
        # Only for show: a full disk must not fail a job here.
        with contextlib.suppress(OSError):
            os.makedirs(path, exist_ok=True)
            with open(os.path.join(path, f"{name}.{count}"), "wb"):
                pass

    def count(self, stage: str) -> tuple[int, int]:
        """(done, total) of a stage, by the notes so far."""
        return self._sum(stage), self._sum(os.path.join(stage, _TOTAL))

    def _sum(self, folder: str) -> int:
        try:
            names = os.listdir(os.path.join(self.folder, folder))
        except FileNotFoundError:
            return 0
        return sum(int(name.rpartition(".")[2]) for name in names if name != _TOTAL)

    def clear(self) -> None:
        """Removes the notes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(self.folder))


class _Stage:
    """Counts of one stage, and its rate."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done = 0
        self.total = 0
        self._started: tuple[float, int] | None = None

    def update(self, progress: Progress) -> None:
        self.done, self.total = progress.count(self.name)

    def line(self, now: float) -> str:
        """Such as `segment: 640 of 1300 images, 2.1/s, 5 min left`. A stage begins when it is
        first shown: its total is known long before."""
        text = f"{self.name}: {self.done} of {self.total} {_STAGES[self.name]}"
        if self._started is None:
            self._started = (now, self.done)
        seconds, done = now - self._started[0], self.done - self._started[1]
        if done <= 0 or seconds <= 0:
            return text
        rate = done / seconds
        return f"{text}, {rate:.1f}/s, {_duration((self.total - self.done) / rate)} left"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def shown(
    progress: Progress, out: TextIO | None = None, interval: float | None = None
) -> Iterator[None]:
    """Shows progress while the block runs: one line that changes on a terminal, else a line
    now and then.

    Args:
      progress: the notes.
      out: where to, standard error if None.
      interval: seconds between two looks, by the kind of `out` if None.
    """
    out = out or sys.stderr
    terminal = out.isatty()
    if interval is None:
        interval = TERMINAL_SECONDS if terminal else PLAIN_SECONDS
    progress.clear()
    over = threading.Event()

    def show() -> None:
        stages = [_Stage(name) for name in _STAGES]
        last = ""
        while not over.wait(interval):
            now = time.monotonic()
            for stage in stages:
                stage.update(progress)
            running = [stage for stage in stages if 0 < stage.total > stage.done]
            line = running[0].line(now) if running else last
            if line and terminal:
                out.write(f"\r\x1b[K{line}")
            elif line and line != last:
                out.write(f"{line}\n")
            last = line
            out.flush()
        if terminal and last:
            out.write("\r\x1b[K")
            out.flush()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        progress.clear()
