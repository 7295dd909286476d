"""Progress of a running job, on any runner that shares the dataset folder.

Workers note now and then how much is done of each shard, as the name of an empty file in the work
folder; a thread of the launching process counts the notes and says how far the job is. Notes are
no part of the dataset, and nothing relies on them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

from pipeline.storage.processes import Process, this_process
from pipeline.storage.store import WORK_FOLDER, Store

_FOLDER = f"{WORK_FOLDER}/progress"
"""Holds a folder for each running job, named by its process."""
_STAGES = {
    "segment": "images",
    "compose": "images",
    "evaluate": "pictures",
    "imagenet": "images",
    "attack": "composites",
    "saliency": "images",
    "export": "pictures",
    "examine": "images",
    "import": "images",
}
_TOTAL = "total"
_NOTE = re.compile(rf"(?P<part>(?P<stage>\w+)/(?P<total>{_TOTAL}/)?[^/]+)\.(?P<count>[0-9]+)")
"""Path of a note; others, such as those that file systems and desktops leave, say nothing."""

TERMINAL_SECONDS = 0.05
PLAIN_SECONDS = 30.0
REMOTE_SECONDS = 10.0
"""No more often than this where every look is a listing over the network."""
_NOTE_SECONDS = 0.05
_REMOTE_NOTE_SECONDS = 5.0
"""How often a part that is not done yet is noted."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where the workers of one job leave their notes.

    Attributes:
      store: the dataset folder.
      folder: relative, of this job alone.
    """

    store: Store
    folder: str

    @classmethod
    def for_store(cls, store: Store) -> Progress:
        """Notes of a job that this process launches."""
        return cls(store, f"{_FOLDER}/{this_process().name}")

    def note_total(self, stage: str, name: str, count: int) -> None:
        """Notes how much a stage has to do: `count` for the part called `name`."""
        self._note(f"{stage}/{_TOTAL}", name, count)

    def note_done(self, stage: str, name: str, count: int) -> None:
        """Notes how much is done of a part of a stage, all that is done of it: noting it again
        changes nothing."""
        self._note(stage, name, count)

    def _note(self, folder: str, name: str, count: int) -> None:
        # Only for show: a full disk must not fail a job here.
        with contextlib.suppress(OSError):
            self.store.create_once(f"{self.folder}/{folder}/{name}.{count}", b"")

    def forget(self, stage: str, name: str, count: int) -> None:
        """Removes a note that a later one has taken the place of."""
        with contextlib.suppress(OSError):
            self.store.delete(f"{self.folder}/{stage}/{name}.{count}")

    def count(self) -> dict[str, tuple[int, int]]:
        """(done, total) of each stage, by the notes so far."""
        parts: dict[tuple[str, bool, str], int] = {}
        for path in self.store.walk(self.folder):
            note = _NOTE.fullmatch(path.removeprefix(f"{self.folder}/"))
            if note and note["stage"] in _STAGES:
                part = (note["stage"], note["total"] is not None, note["part"])
                # Beside a note there may be older ones.
                parts[part] = max(parts.get(part, 0), int(note["count"]))
        counts = {stage: [0, 0] for stage in _STAGES}
        for (stage, is_total, _), number in parts.items():
            counts[stage][is_total] += number
        return {stage: (done, total) for stage, (done, total) in counts.items()}

    def clear(self) -> None:
        """Removes the notes, and those of jobs that are known to be over."""
        with contextlib.suppress(OSError):
            self.store.delete_tree(self.folder)
            jobs = {path.split("/")[2] for path in self.store.walk(_FOLDER)}
            for job in jobs:
                process = Process.from_name(job)
                if process and process.is_alive() is False:
                    self.store.delete_tree(f"{_FOLDER}/{job}")
            self.store.prune(_FOLDER)


class Meter:
    """Counts what is done of one part of a stage, and notes it now and then.

    Args:
      progress: takes the notes.
      stage: of the job.
      name: of the part.
    """

    def __init__(self, progress: Progress, stage: str, name: str) -> None:
        self._progress, self._stage, self._name = progress, stage, name
        self._seconds = _REMOTE_NOTE_SECONDS if progress.store.is_remote else _NOTE_SECONDS
        self._done = self._noted = 0
        self._next = time.monotonic() + self._seconds

    def add(self, count: int) -> None:
        """Counts what has been done since the last call."""
        self._done += count
        if time.monotonic() >= self._next:
            self._note()
            self._next = time.monotonic() + self._seconds

    def end(self, done: int | None = None) -> None:
        """Notes all that was counted, or that so much is done."""
        self._done = self._done if done is None else done
        self._note()

    def _note(self) -> None:
        if self._done == self._noted:
            return
        self._progress.note_done(self._stage, self._name, self._done)
        if self._noted:
            self._progress.forget(self._stage, self._name, self._noted)
        self._noted = self._done


class _Stage:
    """Counts of one stage, and its rate."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.done = 0
        self.total = 0
        self._started: tuple[float, int] | None = None

    def update(self, counts: Mapping[str, tuple[int, int]]) -> None:
        self.done, self.total = counts[self.name]

    @property
    def is_running(self) -> bool:
        return self.done < self.total

    def speed(self, now: float) -> str:
        """Such as `2.1/s, 5 min left`, empty while nothing is done. A stage begins when it is
        first shown: its total is known long before."""
        if self._started is None:
            self._started = (now, self.done)
        seconds, done = now - self._started[0], self.done - self._started[1]
        if done <= 0 or seconds <= 0:
            return ""
        rate = done / seconds
        return f"{rate:.1f}/s, {duration((self.total - self.done) / rate)} left"


def duration(seconds: float) -> str:
    """A length of time as people say it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Lines:
    """Shows the running stage as a line, such as `segment: 640 of 1300 images, 2.1/s, 5 min
    left`, wherever it differs from the last."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last = ""

    def show(self, stage: _Stage, now: float) -> None:
        line = f"{stage.name}: {stage.done} of {stage.total} {_STAGES[stage.name]}"
        speed = stage.speed(now)
        line += f", {speed}" if speed else ""
        if line != self._last:
            self._out.write(f"{line}\n")
            self._out.flush()
            self._last = line

    def close(self) -> None:
        """Nothing: lines stay."""


class _Bar:
    """Shows the running stage as a live bar, which goes when the job ends."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            console=Console(file=out),
            auto_refresh=False,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._bar.start()

    def show(self, stage: _Stage, now: float) -> None:
        if stage.name not in self._tasks:
            for task in self._tasks.values():
                self._bar.remove_task(task)
            self._tasks = {stage.name: self._bar.add_task(stage.name, speed="")}
        text = f"{_STAGES[stage.name]} {stage.speed(now)}"
        task = self._tasks[stage.name]
        self._bar.update(task, completed=stage.done, total=stage.total, speed=text)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.stop()


@contextlib.contextmanager
def shown(
    progress: Progress, out: TextIO | None = None, interval: float | None = None
) -> Iterator[None]:
    """Shows progress while the block runs: a live bar on a terminal, else a line now and then.

    Args:
      progress: the notes.
      out: where to, standard error if None.
      interval: seconds between two looks, by the kind of `out` if None.
    """
    out = out or sys.stderr
    terminal = out.isatty()
    if interval is None:
        interval = TERMINAL_SECONDS if terminal else PLAIN_SECONDS
        if progress.store.is_remote:
            interval = max(interval, REMOTE_SECONDS)
    progress.clear()
    display = _Bar(out) if terminal else _Lines(out)
    over = threading.Event()

    def watch() -> None:
        stages = [_Stage(name) for name in _STAGES]
        last: _Stage | None = None
        while not over.wait(interval):
            try:
                counts = progress.count()
            except OSError:  # A store that does not answer now may do so later.
                continue
            for stage in stages:
                stage.update(counts)
            running = next((stage for stage in stages if stage.is_running), None)
            # Of one that has ended, once, that all of it is done.
            if (shown_now := running or last) is not None:
                display.show(shown_now, time.monotonic())
            last = running

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        display.close()
        progress.clear()
