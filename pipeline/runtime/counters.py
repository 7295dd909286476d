"""Counters of a job: what was done, what was written, and how long each stage took.

Workers count through Beam, so on any runner the counters are sums over all workers.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.errors import shown_bytes
from pipeline.runtime.progress import Progress
from pipeline.storage.state_files import parse_json
from pipeline.storage.store import FileDigest

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult

_NAMESPACE = "in9"
_SECONDS = "microseconds_"
_BYTES = "bytes_"
_NOTE_SECONDS = 0.05
_REMOTE_NOTE_SECONDS = 5.0
"""Shortest time in seconds between two notes of a part that is not done yet, in a remote dataset
folder."""


def count(name: str, by: int = 1) -> None:
    """Adds to a counter. Called inside a DoFn; does nothing where Beam has not been imported."""
    # A count of 0 is skipped, because not every runner reports counters of 0.
    if by and (beam := sys.modules.get("apache_beam")):
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

    Args:
      counter: `source_shards` or `output_shards`, to which `_made` or `_kept` is added.
      files: the shard's files, with its record last.
      is_new: whether this job has made the shard. If so, the bytes of its files are counted, too,
        except those of the record.
    """
    count(f"{counter}_made" if is_new else f"{counter}_kept")
    if is_new:
        count_written(files[:-1])


class UnitTally:
    """Counts of a job's results, and its progress, for one unit of its work, such as a shard.

    A runner may restart a step that has already done its work, and use only the counters of the
    second attempt. So the counts are written to a note before the unit's file is written, and an
    attempt that finds a file made by its own job adds the counts of the note.

    Args:
      progress: the job's progress; the notes are stored in its folder, and removed with it.
      stage: name of the job's stage.
      unit: name of the unit within the stage.

    Attributes:
      path: path of the note, relative to the dataset folder.
    """

    def __init__(self, progress: Progress, stage: str, unit: str) -> None:
        self.path = f"{self.folder(progress, stage)}/{unit}.json"
        self._counts: Counter[str] = Counter()
        self._progress, self._part = progress, (stage, unit)
        self._seconds = _REMOTE_NOTE_SECONDS if progress.store.is_remote else _NOTE_SECONDS
        self._done = self._noted = 0
        self._next = time.monotonic() + self._seconds

    @staticmethod
    def folder(progress: Progress, stage: str) -> str:
        """Returns the relative folder of a stage's notes."""
        return f"{progress.folder}/made/{stage}"

    def add(self, name: str, by: int = 1) -> None:
        """Adds to the count of this name."""
        self._counts[name] += by

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def note(self) -> None:
        """Writes a note of the counts so far. A failed write is ignored, because counts are only
        for display."""
        with contextlib.suppress(OSError):
            self._progress.store.write(
                self.path, shown_bytes(json.dumps(self._counts, sort_keys=True))
            )

    def recall(self) -> bool:
        """Restores the counts that this job has noted for the unit; returns whether a note was
        found."""
        try:
            self._counts = Counter(parse_json(self._progress.store.read(self.path), dict[str, int]))
        except (OSError, ValueError):
            return False
        return True

    def end(self) -> None:
        """Adds the counts to the job's counters. Called inside a DoFn."""
        for name, by in self._counts.items():
            count(name, by)

    def advance(self, items: int) -> None:
        """Adds the number of the unit's items that were finished since the last call."""
        self._done += items
        if time.monotonic() >= self._next:
            self.note_done()
            self._next = time.monotonic() + self._seconds

    def note_done(self, done: int | None = None) -> None:
        """Writes a note of the number of finished items, which is `done` if that is given."""
        self._done = self._done if done is None else done
        if self._done != self._noted:
            self._progress.note_done(*self._part, self._done, self._noted)
            self._noted = self._done


@contextlib.contextmanager
def timed(stage: str) -> Iterator[None]:
    """Adds the time of a block, or of a decorated function, to a stage. Nothing may be yielded to
    Beam inside, or the time of later stages would count, too; so a decorated `process` returns a
    list."""
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
            # Beam gives None for 0, which a worker reports for counters that only its other bundles
            # use.
            totals[counter.key.metric.name] += counter.result or 0
    return dict(totals)


def stage_seconds(counters: Mapping[str, int], stages: Iterable[str]) -> dict[str, float]:
    """Returns the seconds that each of these stages took, summed over the workers; stages that did
    not run are left out."""
    return {s: counters[_SECONDS + s] / 1e6 for s in stages if _SECONDS + s in counters}


def bytes_written(counters: Mapping[str, int]) -> dict[str, int]:
    """Returns the bytes of new files in each top-level folder of the dataset."""
    return {
        name.removeprefix(_BYTES): value
        for name, value in sorted(counters.items())
        if name.startswith(_BYTES) and value
    }
