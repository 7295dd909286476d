"""Counters of a job: what was done, what was written, and how long each stage took.

Workers add to them through Beam, so they are sums over all workers on any runner.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from apache_beam.metrics import Metrics
from apache_beam.runners.runner import PipelineResult

from pipeline.storage.store import FileDigest

_NAMESPACE = "in9"
_SECONDS = "microseconds_"
_BYTES = "bytes_"
STAGES = (
    *("list", "examine", "segment", "plan", "compose", "commit"),
    *("evaluate", "imagenet", "attack", "saliency", "publish"),
)
"""In the order of the graph."""


def count(name: str, by: int = 1) -> None:
    """Adds to a counter. Called inside a DoFn."""
    # Of a counter without anything, some runners tell nothing.
    if not by:
        return
    Metrics.counter(_NAMESPACE, name).inc(by)


def count_written(files: Iterable[FileDigest]) -> None:
    """Counts the bytes of new files by the folder that they belong into."""
    for file in files:
        count(_BYTES + file.path.partition("/")[0], file.bytes)


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
            found[counter.key.metric.name] += counter.result
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
