"""Jobs that are loops of this process: shards in threads, progress, errors in one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pipeline.errors import JobError, UsageError
from pipeline.runtime.job_log import in_one_line, job_log
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import Progress, shown
from pipeline.storage.parallel import read_ahead

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def run_locally(progress: Progress, log: str) -> Iterator[None]:
    """Shows how far the work of a block is.

    Args:
      progress: where it notes what is done.
      log: path of a file for tracebacks; it is there if the block failed.

    Raises:
      UsageError, JobError: as raised inside; other errors as JobError.
    """
    with in_one_line(log, _translate), job_log(log), shown(progress):
        yield


def _translate(error: Exception) -> Exception:
    if isinstance(error, UsageError | JobError):
        return type(error)(str(error))
    return JobError(f"{type(error).__name__}: {error}. Run the same command again to go on")


def each_shard(work: Callable[[T], R], shards: Iterable[T]) -> list[R]:
    """Results of a call on each shard, in order; as many at a time as there are cores.

    Raises:
      Exception: the first error, after the others that had begun have ended.
    """
    return [result for _, result in read_ahead(work, shards, usable_cores())]
