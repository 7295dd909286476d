"""The loop over shards of commands that need no Beam: export and import."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from pipeline.errors import JobError, UsageError, plain
from pipeline.runtime.job_log import in_one_line, job_log
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import Progress, show_progress
from pipeline.storage.interface import read_ahead

T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def run_locally(progress: Progress, log: str) -> Iterator[None]:
    """Shows the progress of a block, and translates its errors.

    Args:
      log: path of a file for tracebacks, which is kept only if the block fails.

    Raises:
      UsageError, JobError: raised by the block; any other error becomes a JobError.
    """
    with in_one_line(log, _translate), job_log(log), show_progress(progress):
        yield


def _translate(error: Exception) -> Exception:
    is_ours, named = isinstance(error, UsageError | JobError), plain(error)
    return named if is_ours else JobError(f"{named}. Run the same command again to go on")


def map_shards(work: Callable[[T], R], shards: Iterable[T]) -> list[R]:
    """Calls a function on each shard, as many at a time as there are cores.

    Returns:
      The results in the order of the shards.

    Raises:
      Exception: the first error, after the calls that had begun have ended.
    """
    return [result for _, result in read_ahead(work, shards, usable_cores())]
