"""Counters of a job: what was done, what was written, and how long each stage took.

Workers add to them through Beam, so they are sums over all workers on any runner.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.runtime.progress import Progress
from pipeline.storage.state_files import parse_json
from pipeline.storage.store import FileDigest

if TYPE_CHECKING:
    from apache_beam.runners.runner import PipelineResult

_NAMESPACE = "in9"
_SECONDS = "microseconds_"
_BYTES = "bytes_"
STAGES = (
    *("list", "examine", "segment", "plan", "compose", "commit"),
    *("evaluate", "imagenet", "attack", "saliency", "publish"),
)
"""In the order of the graph."""


def count(name: str, by: int = 1) -> None:
    """Adds to a counter. Called inside a DoFn; where nothing has imported Beam, nobody counts."""
    # Of a counter without anything, some runners tell nothing.
    if by and (beam := sys.modules.get("apache_beam")):
        beam.metrics.Metrics.counter(_NAMESPACE, name).inc(by)


def count_bytes(path: str, size: int) -> None:
    """Counts the bytes of a new file by the folder that it belongs into."""
    count(_BYTES + path.partition("/")[0], size)


def count_written(files: Iterable[FileDigest]) -> None:
    """Counts the bytes of new files, as `count_bytes`."""
    for file in files:
        count_bytes(file.path, file.bytes)


def count_shard(counter: str, files: Sequence[FileDigest], *, is_new: bool) -> None:
    """Counts a shard that is up to date.

    Args:
      counter: `source_shards` or `output_shards`, of which `_made` or `_kept` is counted.
      files: of the shard, its record last.
      is_new: whether it has been made; then its files count, too, but for the record.
    """
    count(f"{counter}_made" if is_new else f"{counter}_kept")
    if is_new:
        count_written(files[:-1])


class UnitTally:
    """Counts what a job does for one unit of its work, such as a shard.

    A runner may start a step again that has done its work, and take the counters of the second
    attempt alone. So the counts are noted before the unit's file is written, and an attempt that
    finds what its own job has made counts the same.

    Args:
      progress: of the job, with whose notes these come and go.
      stage: of the job.
      unit: name of the unit within the stage.

    Attributes:
      path: of the note, relative to the dataset folder.
    """

    def __init__(self, progress: Progress, stage: str, unit: str) -> None:
        self._store, self.path = progress.store, f"{self.folder(progress, stage)}/{unit}.json"
        self._counts: Counter[str] = Counter()

    @staticmethod
    def folder(progress: Progress, stage: str) -> str:
        """Relative folder of the notes of a stage."""
        return f"{progress.folder}/made/{stage}"

    def add(self, name: str, by: int = 1) -> None:
        """Adds to a counter of this name."""
        self._counts[name] += by

    def __getitem__(self, name: str) -> int:
        return self._counts[name]

    def note(self) -> None:
        """Notes the counts so far. A note that cannot be written is left out: it is for show."""
        with contextlib.suppress(OSError):
            self._store.write(self.path, json.dumps(self._counts, sort_keys=True).encode())

    def recall(self) -> bool:
        """Takes over what this job has noted of the unit; returns whether there was anything."""
        try:
            self._counts = Counter(parse_json(self._store.read(self.path), dict[str, int]))
        except (OSError, ValueError):
            return False
        return True

    def end(self) -> None:
        """Adds the counts to the job's counters. Called inside a DoFn."""
        for name, by in self._counts.items():
            count(name, by)


@contextlib.contextmanager
def timed(stage: str) -> Iterator[None]:
    """Adds the time of a block, or of a function that it decorates, to a stage. Nothing may be
    yielded to Beam inside, or the stages behind would be counted, too: a `process` that it
    decorates returns a list."""
    started = time.perf_counter()
    try:
        yield
    finally:
        count(_SECONDS + stage, round((time.perf_counter() - started) * 1e6))


def counters_of(result: PipelineResult) -> dict[str, int]:
    """All counters of a finished job by name, added up over its steps."""
    found: Counter[str] = Counter()
    for counter in result.metrics().query()["counters"]:
        if counter.key.metric.namespace == _NAMESPACE:
            # Beam gives None for 0, which a worker says of what it counted for another bundle.
            found[counter.key.metric.name] += counter.result or 0
    return dict(found)


def stage_seconds(counters: Mapping[str, int]) -> dict[str, float]:
    """Seconds that each stage took, added up over the workers; stages that did not run are
    left out."""
    return {s: counters[_SECONDS + s] / 1e6 for s in STAGES if _SECONDS + s in counters}


def bytes_written(counters: Mapping[str, int]) -> dict[str, int]:
    """Bytes of new files by folder of the dataset."""
    return {
        name.removeprefix(_BYTES): value
        for name, value in sorted(counters.items())
        if name.startswith(_BYTES) and value
    }
