"""Progress of a running job, on any runner that shares the dataset folder.

Workers note each finished shard as an empty file in the work folder; a thread of the
launching process counts the notes and says how far the job is. Notes are no part of the
dataset, and nothing relies on them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

from pipeline.storage import WORK_FOLDER, Store

_FOLDER = f"{WORK_FOLDER}/progress"
_STAGES = {"segment": "images", "compose": "images", "evaluate": "pictures"}
_TOTAL = "total"

TERMINAL_SECONDS = 1.0
PLAIN_SECONDS = 30.0


def note_total(store: Store, stage: str, name: str, count: int) -> None:
    """Notes how much a stage has to do: `count` for the part called `name`."""
    _note(store, f"{stage}/{_TOTAL}", name, count)


def note_done(store: Store, stage: str, name: str, count: int) -> None:
    """Notes a finished shard of a stage. Noting it again changes nothing."""
    _note(store, stage, name, count)


def _note(store: Store, folder: str, name: str, count: int) -> None:
    path = store.path(f"{_FOLDER}/{folder}")
    # Only for show: a full disk must not fail a job here.
    with contextlib.suppress(OSError):
        os.makedirs(path, exist_ok=True)
        with open(os.path.join(path, f"{name}.{count}"), "wb"):
            pass


def _count(store: Store, folder: str) -> int:
    """Sum of the notes in a folder."""
    try:
        names = os.listdir(store.path(f"{_FOLDER}/{folder}"))
    except FileNotFoundError:
        return 0
    return sum(int(name.rpartition(".")[2]) for name in names if name != _TOTAL)


class _Stage:
    """Counts of one stage, and its rate."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done = 0
        self.total = 0
        self._started: tuple[float, int] | None = None

    def update(self, store: Store) -> None:
        self.done = _count(store, self.name)
        self.total = _count(store, f"{self.name}/{_TOTAL}")

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
def shown(store: Store, out: TextIO | None = None, interval: float | None = None) -> Iterator[None]:
    """Shows progress while the block runs: one line that changes on a terminal, else a line
    now and then.

    Args:
      store: the dataset folder.
      out: where to, standard error if None.
      interval: seconds between two looks, by the kind of `out` if None.
    """
    out = out or sys.stderr
    terminal = out.isatty()
    if interval is None:
        interval = TERMINAL_SECONDS if terminal else PLAIN_SECONDS
    shutil.rmtree(store.path(_FOLDER), ignore_errors=True)
    over = threading.Event()

    def show() -> None:
        stages = [_Stage(name) for name in _STAGES]
        last = ""
        while not over.wait(interval):
            now = time.monotonic()
            for stage in stages:
                stage.update(store)
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
        shutil.rmtree(store.path(_FOLDER), ignore_errors=True)
