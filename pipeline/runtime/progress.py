"""Counters and progress of a job.

Workers count through Beam what was done, what was written, and how long each stage took, so on any
runner the counters are sums over all workers.

From time to time, workers note how much of each shard is done: an empty file in the work folder,
whose name holds the count. A thread of the launching process shows how far the job is, on any
runner that shares the dataset folder. Nothing relies on notes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import operator
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from pipeline.errors import JobError, UsageError, counted, plain, shown_bytes
from pipeline.runtime.job_log import in_one_line, job_log
from pipeline.storage.processes import has_ended, this_process
from pipeline.storage.state_files import parse_json
from pipeline.storage.store import WORK_FOLDER, FileDigest, Store

if TYPE_CHECKING:
    import rich.progress
    from apache_beam.runners.runner import PipelineResult


_NAMESPACE = "in9"
_SECONDS = "microseconds_"
_BYTES = "bytes_"
_NOTE_SECONDS = 3.0
"""Shortest time in seconds between two notes of a task that is not done yet. Each note costs two
requests to storage, which may be far away."""


_counters: ContextVar[Counter[str] | None] = ContextVar("counters", default=None)


@contextlib.contextmanager
def counted_here() -> Iterator[Counter[str]]:
    """Yields the counters that `count` adds to in this thread, instead of Beam's."""
    counters = Counter[str]()
    token = _counters.set(counters)
    try:
        yield counters
    finally:
        _counters.reset(token)


def count(name: str, by: int = 1) -> None:
    """Adds to a counter. Called inside a DoFn; does nothing where Beam has not been imported."""
    # A count of 0 is skipped, because not every runner reports counters of 0.
    if by and (counters := _counters.get()) is not None:
        counters[name] += by
    elif by and (beam := sys.modules.get("apache_beam")):
        beam.metrics.Metrics.counter(_NAMESPACE, name).inc(by)


def count_bytes(path: str, size: int) -> None:
    """Counts the bytes of a new file by its top-level folder."""
    count(_BYTES + path.partition("/")[0], size)


def count_written(files: Iterable[FileDigest]) -> None:
    """Counts the bytes of several new files; see `count_bytes`."""
    for file in files:
        count_bytes(file.path, file.bytes)


def count_shard(counter: str, files: Sequence[FileDigest], *, is_new: bool) -> None:
    """Counts a shard that this job has made, or has kept because it was up to date.

    Adds `_made` or `_kept` to the counter `source_shards` or `output_shards`, and counts the bytes
    of a new shard's files, but the last, its record.
    """
    count(f"{counter}_made" if is_new else f"{counter}_kept")
    if is_new:
        count_written(files[:-1])


class Tally:
    """Counts of a job's results, and its progress, for one task of its work, such as a shard.

    A runner may restart a step that has already done its work, and use only the counters of the
    second attempt. So the counts are written to a note before the task's file is written, and an
    attempt that finds a file made by its own job adds the counts of the note.

    Args:
      progress: the job's progress; the notes are stored in its folder, and removed with it.
      submit: calls what writes a note, perhaps in another thread; calls must keep their order.
    """

    def __init__(
        self,
        progress: Progress,
        stage: str,
        task: str,
        submit: Callable[[Callable[[], None]], object] = operator.call,
    ) -> None:
        self.path = f"{self.folder(progress, stage)}/{task}.json"
        self.counts: Counter[str] = Counter()
        self._progress, self._task, self._submit = progress, (stage, task), submit
        self._done = self._noted = 0
        self._next = time.monotonic() + _NOTE_SECONDS

    @staticmethod
    def folder(progress: Progress, stage: str) -> str:
        """Returns the relative folder of a stage's notes."""
        return f"{progress.folder}/made/{stage}"

    def note(self) -> None:
        """Writes a note of the counts so far."""
        counts = shown_bytes(json.dumps(self.counts, sort_keys=True))
        self._submit(functools.partial(self._progress.write, self.path, counts))

    def load(self) -> bool:
        """Restores the counts that this job has noted for the task; returns whether it had any."""
        try:
            self.counts = Counter(parse_json(self._progress.store.read(self.path), dict[str, int]))
        except (OSError, ValueError):
            return False
        return True

    def end(self) -> None:
        """Adds the counts to the job's counters. Called inside a DoFn."""
        for name, by in self.counts.items():
            count(name, by)

    def advance(self, items: int) -> None:
        """Adds the number of the task's items that were finished since the last call."""
        self._done += items
        if time.monotonic() >= self._next:
            self.note_done()

    def note_done(self, done: int | None = None) -> None:
        """Writes a note of the number of finished items, which is `done` if that is given."""
        self._done = self._done if done is None else done
        if self._done != self._noted:
            note = (*self._task, self._done, self._noted)
            self._submit(functools.partial(self._progress.note_done, *note))
            self._noted, self._next = self._done, time.monotonic() + _NOTE_SECONDS


@contextlib.contextmanager
def timed(stage: str) -> Iterator[None]:
    """Adds the time of a block, or of a decorated function, to a stage.

    Nothing may be yielded to Beam inside, or the time of later stages would count, too; so a
    decorated `process` returns a list.
    """
    started = time.perf_counter()
    try:
        yield
    finally:
        count(_SECONDS + stage, round((time.perf_counter() - started) * 1e6))


def counters_of(result: PipelineResult) -> dict[str, int]:
    """Returns all counters of a finished job by name, summed over its steps."""
    totals: Counter[str] = Counter()
    for counter in result.metrics().query()["counters"]:
        if counter.key.metric.namespace == _NAMESPACE:
            # Beam gives None for 0 of a counter that only a worker's other bundles use.
            totals[counter.key.metric.name] += counter.result or 0
    return dict(totals)


def stage_seconds(counters: Mapping[str, int], stages: Iterable[str]) -> dict[str, float]:
    """Returns the seconds that each of these stages took, if it ran, summed over the workers."""
    return {s: counters[_SECONDS + s] / 1e6 for s in stages if _SECONDS + s in counters}


def bytes_written(counters: Mapping[str, int]) -> dict[str, int]:
    """Returns the bytes of new files in each top-level folder of the dataset."""
    return {
        name.removeprefix(_BYTES): value
        for name, value in sorted(counters.items())
        if name.startswith(_BYTES) and value
    }


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
_NOTE = re.compile(r"(?P<task>(?P<stage>\w+)/(?P<total>total/)?[^/]+)\.(?P<count>[0-9]+)")
"""Path of a note. Other files, such as those that file systems and desktops leave, are ignored."""

TERMINAL_SECONDS = 0.05
PLAIN_SECONDS = 30.0
"""Time in seconds between two looks at the notes, for a bar on a terminal and for lines."""
REMOTE_SECONDS = 10.0
"""The same for a bar if the dataset folder is remote, where each look is a listing."""


@dataclasses.dataclass(frozen=True)
class Progress:
    """The folder in which the workers of one job leave their notes."""

    store: Store
    folder: str

    @classmethod
    def for_store(cls, store: Store) -> Progress:
        """Returns the folder for the notes of a job that this process launches."""
        return cls(store, f"{_FOLDER}/{this_process().name}")

    def write(self, path: str, content: bytes) -> None:
        """Writes a note; a failed write is ignored, because notes are only for display."""
        with contextlib.suppress(OSError):
            self.store.write(path, content)

    def note_total(self, stage: str, name: str, count: int) -> None:
        """Writes a note that the task `name` of a stage has `count` items in all."""
        self.note_done(f"{stage}/total", name, count)

    def note_done(self, stage: str, name: str, count: int, replaced: int = 0) -> None:
        """Writes a note that `count` items of a task are done so far; removes that of `replaced`.

        It holds the sum and not the increase, so that a repeated note changes nothing.
        """
        task = f"{self.folder}/{stage}/{name}"
        self.write(f"{task}.{count}", b"")
        if replaced:
            with contextlib.suppress(OSError):
                self.store.delete(f"{task}.{replaced}")

    def count(self) -> dict[str, tuple[int, int]]:
        """Returns (done, total) of each stage, according to the notes so far."""
        notes = filter(None, map(_NOTE.fullmatch, self.store.below(self.folder).walk("")))
        counts: dict[str, list[int]] = {}
        # Older notes of a task may still exist; its largest one comes last.
        rising = sorted(notes, key=lambda note: int(note["count"]))
        for note in {note["task"]: note for note in rising}.values():
            counts.setdefault(note["stage"], [0, 0])[bool(note["total"])] += int(note["count"])
        return {stage: (done, total) for stage, (done, total) in counts.items()}

    def clear(self) -> None:
        """Removes the notes of this job, and of other jobs that are known to have ended."""
        with contextlib.suppress(OSError):
            self.store.delete_tree(self.folder)
            self.store.remove_each(_FOLDER, has_ended)
            self.store.prune(_FOLDER)


def duration(seconds: float) -> str:
    """Formats a length of time as people say it: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _make_bar() -> rich.progress.Progress:
    """Makes a bar on standard error that shows its tasks' `items`, and disappears at its end."""
    # Imported here, because workers may lack it.
    from rich import console, progress

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[items]}"),
        # In a notebook as on a terminal, because a widget would need another package.
        console=console.Console(
            file=sys.stderr,
            force_jupyter=False,
            force_terminal="ipykernel" in sys.modules or None,
        ),
        auto_refresh=False,
        transient=True,
        speed_estimate_period=600,
    )


def _rate(task: rich.progress.Task) -> str:
    """Returns text such as `, 2.1/s, 5 min left`, from when something is first done; "" before."""
    left = task.time_remaining
    return f", {task.speed:.1f}/s, {duration(left)} left" if task.speed and left else ""


@contextlib.contextmanager
def live_bar(name: str, total: int, noun: str) -> Iterator[Callable[[float], None]]:
    """Shows a bar while the block runs, if standard error is a terminal, and in a notebook.

    Yields a function that advances it by a number of items. The name, such as `epoch 3 of 200`,
    stands before the bar; the noun is a plural.
    """
    if not (sys.stderr.isatty() or "ipykernel" in sys.modules):
        yield lambda count: None
        return
    with _make_bar() as bar:
        task = bar.add_task(name, total=total, items=noun)
        yield lambda count: bar.update(
            task, advance=count, items=noun + _rate(bar.tasks[0]), refresh=True
        )


@contextlib.contextmanager
def show_progress(progress: Progress, items: Mapping[str, str] = {}) -> Iterator[None]:
    """Shows progress while the block runs: a live bar on a terminal, otherwise occasional lines.

    A line is such as `segment: 640 of 1300 images, 2.1/s, 5 min left`. `items` are the plural nouns
    of stages that run models.
    """
    out, ended, bar = sys.stderr, threading.Event(), _make_bar()
    of_bar = REMOTE_SECONDS if progress.store.is_remote else TERMINAL_SECONDS
    interval = of_bar if out.isatty() else PLAIN_SECONDS
    progress.clear()
    for stage, noun in {**_STAGES, **items}.items():
        bar.add_task(stage, total=0, visible=False, noun=noun, items="")

    def watch() -> None:
        shown: dict[str, str] = {}
        while not ended.wait(interval):
            # A store that does not respond now may respond later.
            with contextlib.suppress(OSError):
                counts = progress.count()
                for task in bar.tasks:
                    stage, noun = task.description, task.fields["noun"]
                    done, total = counts.get(stage, (0, 0))
                    bar.update(
                        task.id,
                        completed=done,
                        total=total,
                        visible=total > 0,
                        items=noun + _rate(task),
                    )
                    line = f"{stage}: {done} of {counted(total, noun[:-1])}{_rate(task)}"
                    # A stage that was shown before is shown once more as done.
                    is_shown = done < total or stage in shown
                    if is_shown and line != shown.get(stage) and not out.isatty():
                        print(line, file=out, flush=True)
                        shown[stage] = line
                    # Later stages have not begun.
                    if done < total:
                        break
                bar.refresh()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        with bar if out.isatty() else contextlib.nullcontext():
            yield
    finally:
        ended.set()
        thread.join()
        progress.clear()


@contextlib.contextmanager
def run_locally(progress: Progress, log: str) -> Iterator[None]:
    """Shows the progress of a block; translates its errors to UsageError and JobError.

    The log of tracebacks is kept only if the block fails.
    """
    with in_one_line(log, _translate), job_log(log), show_progress(progress):
        yield


def _translate(error: Exception) -> Exception:
    is_ours, named = isinstance(error, UsageError | JobError), plain(error)
    return named if is_ours else JobError(f"{named}. Run the same command again to go on")
