"""Progress of a running job, on any runner that shares the dataset folder.

From time to time, workers note how much of each shard is done. Each note is an empty file in the
work folder, and its name holds the count. A thread of the launching process counts these notes and
shows how far the job is. Notes are not part of the dataset, and nothing relies on them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TextIO

from pipeline.errors import counted
from pipeline.storage.processes import Process, this_process
from pipeline.storage.store import WORK_FOLDER, Store

_FOLDER = f"{WORK_FOLDER}/progress"
"""Folder with a subfolder for each running job, named after the job's process."""
_STAGES = {
    "segment": "images",
    "compose": "images",
    "export": "pictures",
    "examine": "images",
    "import": "images",
}
"""What is counted in each stage that runs no models."""
_TOTAL = "total"
_NOTE = re.compile(rf"(?P<part>(?P<stage>\w+)/(?P<total>{_TOTAL}/)?[^/]+)\.(?P<count>[0-9]+)")
"""Path of a note. Other files, such as those that file systems and desktops leave, are ignored."""

TERMINAL_SECONDS = 0.05
PLAIN_SECONDS = 30.0
"""Time in seconds between two looks at the notes, for a bar on a terminal and for lines."""
REMOTE_SECONDS = 10.0
"""Shortest time in seconds between two looks at a remote dataset folder, where each look is a
listing over the network."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """The folder in which the workers of one job leave their notes.

    Attributes:
      store: the dataset folder.
      folder: relative path of this job's own folder.
    """

    store: Store
    folder: str

    @classmethod
    def for_store(cls, store: Store) -> Progress:
        """Returns the folder for the notes of a job that this process launches."""
        return cls(store, f"{_FOLDER}/{this_process().name}")

    def note_total(self, stage: str, name: str, count: int) -> None:
        """Writes a note that the part `name` of a stage has `count` items in all."""
        self.note_done(f"{stage}/{_TOTAL}", name, count)

    def note_done(self, stage: str, name: str, count: int, replaced: int = 0) -> None:
        """Writes a note that `count` items of a part are done so far, and removes the note of
        `replaced` items, if there were any. The note holds the sum and not the increase, so that a
        repeated note changes nothing."""
        part = f"{self.folder}/{stage}/{name}"
        # Notes are only for display, so a full disk must not fail the job here.
        with contextlib.suppress(OSError):
            self.store.create_once(f"{part}.{count}", b"")
        if replaced:
            with contextlib.suppress(OSError):
                self.store.delete(f"{part}.{replaced}")

    def drop(self, stage: str, total: str, parts: Iterable[str]) -> None:
        """Removes the notes of parts that will not be done, and the note of their total."""
        dropped = {f"{stage}/{_TOTAL}/{total}", *(f"{stage}/{part}" for part in parts)}
        with contextlib.suppress(OSError):
            for path in list(self.store.walk(f"{self.folder}/{stage}")):
                note = _NOTE.fullmatch(path.removeprefix(f"{self.folder}/"))
                if note and note["part"] in dropped:
                    self.store.delete(path)

    def count(self) -> dict[str, tuple[int, int]]:
        """Returns (done, total) of each stage, according to the notes so far."""
        parts: dict[tuple[str, bool, str], int] = {}
        for path in self.store.walk(self.folder):
            note = _NOTE.fullmatch(path.removeprefix(f"{self.folder}/"))
            if note:
                part = (note["stage"], note["total"] is not None, note["part"])
                # Older notes of the part may still exist.
                parts[part] = max(parts.get(part, 0), int(note["count"]))
        counts: dict[str, list[int]] = {}
        for (stage, is_total, _), number in parts.items():
            counts.setdefault(stage, [0, 0])[is_total] += number
        return {stage: (done, total) for stage, (done, total) in counts.items()}

    def clear(self) -> None:
        """Removes the notes of this job, and of other jobs that are known to have ended."""
        with contextlib.suppress(OSError):
            self.store.delete_tree(self.folder)
            jobs = {path.split("/")[2] for path in self.store.walk(_FOLDER)}
            for job in jobs:
                process = Process.from_name(job)
                if process and process.is_alive() is False:
                    self.store.delete_tree(f"{_FOLDER}/{job}")
            self.store.prune(_FOLDER)


class _Stage:
    """Counts and rate of one stage, whose `items` are counted."""

    def __init__(self, name: str, items: str) -> None:
        self.name, self.items = name, items
        self.done = 0
        self.total = 0
        self._started: tuple[float, int] | None = None

    @property
    def is_running(self) -> bool:
        return self.done < self.total

    def speed(self, now: float) -> str:
        """Returns text such as `2.1/s, 5 min left`, empty while nothing is done. The clock starts
        when the stage is first shown, because its total is known long before it begins."""
        if self._started is None:
            self._started = (now, self.done)
        seconds, done = now - self._started[0], self.done - self._started[1]
        if done <= 0 or seconds <= 0:
            return ""
        rate = done / seconds
        return f"{rate:.1f}/s, {duration((self.total - self.done) / rate)} left"


def duration(seconds: float) -> str:
    """Formats a length of time as people say it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Lines:
    """A display that prints a line for the running stage, such as `segment: 640 of 1300 images,
    2.1/s, 5 min left`, whenever it has changed."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last = ""

    def show(self, stage: _Stage, now: float) -> None:
        unit = stage.items.removesuffix("s")
        line = f"{stage.name}: {stage.done} of {counted(stage.total, unit)}"
        speed = stage.speed(now)
        line += f", {speed}" if speed else ""
        if line != self._last:
            self._out.write(f"{line}\n")
            self._out.flush()
            self._last = line

    def close(self) -> None:
        """Does nothing, because printed lines stay."""


class _Bar:
    """A display with a live bar of the running stage, which disappears when the job ends."""

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
        text = f"{stage.items} {stage.speed(now)}"
        task = self._tasks[stage.name]
        self._bar.update(task, completed=stage.done, total=stage.total, speed=text)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.stop()


@contextlib.contextmanager
def show_progress(
    progress: Progress,
    out: TextIO | None = None,
    interval: float | None = None,
    items: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """Shows progress while the block runs: a live bar on a terminal, otherwise occasional lines.

    Args:
      progress: the notes to show.
      out: stream to write to; standard error if None.
      interval: seconds between two looks; if None, it depends on `out` and on the storage.
      items: what is counted in each stage that runs models, in the plural.
    """
    out = out or sys.stderr
    terminal = out.isatty()
    if interval is None:
        interval = TERMINAL_SECONDS if terminal else PLAIN_SECONDS
        if progress.store.is_remote:
            interval = max(interval, REMOTE_SECONDS)
    progress.clear()
    display = _Bar(out) if terminal else _Lines(out)
    ended = threading.Event()

    def watch() -> None:
        stages = [_Stage(*names) for names in {**_STAGES, **(items or {})}.items()]
        last: _Stage | None = None
        while not ended.wait(interval):
            try:
                counts = progress.count()
            except OSError:  # A store that does not respond now may respond later.
                continue
            for stage in stages:
                stage.done, stage.total = counts.get(stage.name, (0, 0))
            running = next((stage for stage in stages if stage.is_running), None)
            # A stage that has ended is shown once more, as done.
            if (current := running or last) is not None and current.total:
                display.show(current, time.monotonic())
            last = running

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        display.close()
        progress.clear()
