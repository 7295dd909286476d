"""What a run leaves in the work folder, and jobs that run as loops in this process.

The log of a job keeps Beam's messages and tracebacks off the terminal. The file is kept only if the
job, or a model in it, fails. The error line that the user sees then names the file.

No list names the files that killed processes leave, so they are recognised by their names:

tmp/<process>+<hex>     a file or claim that was being written
lock*                   a lock: see `remove_dead_locks`
progress/<process>      progress notes of a job
<command>-<number>.log  the log of a command that may run beside others

Temporary files, locks and notes of a process that is known to have ended are removed at once; notes
by the next job that shows its progress. Whether a process in another container or on a lost machine
has ended cannot be known, so its temporary files and notes are removed after a week without change.
So are logs, which tell until then why a command failed. Files with any other name stay.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import posixpath
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO, TypeVar, cast

from pipeline.errors import JobError, UsageError, escaped
from pipeline.runtime.lock import remove_dead_locks
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import Progress, show_progress
from pipeline.storage.parallel import read_ahead
from pipeline.storage.store import TEMPORARY, WORK_FOLDER, Store

WEEK_SECONDS = 7 * 24 * 3600.0
_LOG = re.compile(r"[a-z]+-[0-9]+\.log")
_TEMPORARY = re.compile(r".+\+[0-9a-f]{32}")
_NOTES = re.compile(r".+\+[0-9]+(\+[0-9]*)?")


@contextlib.contextmanager
def removed_if_refused(store: Store, *notes: str) -> Iterator[None]:
    """Removes a new folder again if the block fails before it has written a file, because later
    commands take a work folder for a sign that the folder is ours.

    Args:
      store: the folder that the block writes into.
      notes: relative paths of folders whose files do not count as written, and are removed as well.
    """
    topmost = store.root
    while not store.is_remote and not os.path.exists(os.path.dirname(topmost)):
        topmost = os.path.dirname(topmost)
    is_new, was_used = not store.has_folder(""), store.has_folder(WORK_FOLDER)
    try:
        yield
    except Exception:
        # A folder that cannot even be listed, such as one in no bucket, has nothing to remove.
        with contextlib.suppress(OSError):
            files = [] if was_used else list(store.walk(""))
            if not was_used and all(path.startswith(tuple(notes)) for path in files):
                store.delete_all(files)
                store.prune(WORK_FOLDER)
            if is_new:
                Store.at(topmost).prune("")
        raise


def remove_leftovers(store: Store) -> None:
    """Removes leftovers of killed processes. Other jobs may be running.

    Args:
      store: a dataset folder, or the folder of its published versions.
    """
    store.remove_temporary()
    remove_dead_locks(store)
    notes = posixpath.dirname(Progress.for_store(store).folder)
    cutoff = time.time() - WEEK_SECONDS
    for folder, pattern in ((WORK_FOLDER, _LOG), (TEMPORARY, _TEMPORARY), (notes, _NOTES)):

        def is_old(name: str, folder: str = folder, pattern: re.Pattern[str] = pattern) -> bool:
            path = store.path(f"{folder}/{name}")
            return pattern.fullmatch(name) is not None and _last_change(store, path) < cutoff

        store.remove_each(folder, is_old)
    store.prune(notes)


def _last_change(store: Store, path: str) -> float:
    """Returns when a file, or anything in a folder, last changed, in seconds since the epoch."""
    times = [info.time for info in store.files.walk(path)]
    if store.is_remote:
        info = store.files.info(path)
        times += [info.time] if info else []
    else:
        # Renaming a file changes only this time, and not the time of its content.
        with contextlib.suppress(FileNotFoundError):
            times.append(os.lstat(path).st_ctime)
    return max(times, default=time.time())


_FORMAT = "%(asctime)s %(name)s %(levelname)s %(message)s"


class EscapingFormatter(logging.Formatter):
    """A formatter that escapes unprintable characters."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


class _Handler(logging.StreamHandler[io.TextIOWrapper]):
    """A handler that ignores failed writes, because the errors of a full disk would bury the line
    that the user should see.

    Attributes:
      has_traceback: whether it has written a traceback of this package, so that the log is worth
        keeping.
    """

    has_traceback = False

    def emit(self, record: logging.LogRecord) -> None:
        self.has_traceback |= _is_our_traceback(record)
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Does nothing."""


def _is_our_traceback(record: logging.LogRecord) -> bool:
    """Returns whether a record is a traceback of this package. The terminal does not need it,
    because a separate line reports what it means for the user."""
    return bool(record.exc_info) and record.name.startswith("pipeline")


def is_for_terminal(record: logging.LogRecord) -> bool:
    """Returns whether a record is a message of this package. Those of libraries tell users nothing
    that they could act on; the log has them."""
    is_ours = record.name.startswith(("pipeline", "transforms"))
    return is_ours and not _is_our_traceback(record)


@contextlib.contextmanager
def job_log(path: str, *, worker_processes: bool = False) -> Iterator[None]:
    """Keeps a job's log while the block runs.

    Args:
      path: path of the log file.
      worker_processes: whether Beam starts worker processes. They would write a lot to this
        process's standard error, so their output goes to the log.
    """
    root = logging.getLogger()
    keep = False
    with contextlib.ExitStack() as stack:
        # Unbuffered, so that text that a full disk refuses is lost at once, and is not written
        # again at the end.
        stream = stack.enter_context(_create(path))
        file = _Handler(io.TextIOWrapper(stream, "utf-8", write_through=True))
        file.setFormatter(EscapingFormatter(_FORMAT))
        if worker_processes:
            stack.enter_context(_children_write_to(stream.fileno()))
        root.addHandler(file)
        excepthook = threading.excepthook
        threading.excepthook = _log_thread
        try:
            yield
        except Exception:
            keep = True
            logging.getLogger("apache_beam").exception("the job failed")
            raise
        finally:
            threading.excepthook = excepthook
            root.removeHandler(file)
            if not keep and not file.has_traceback:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)


def _create(path: str) -> BinaryIO:
    """Creates an unbuffered file that only its owner can read."""
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # A link of this name must not be followed.
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        return cast(
            BinaryIO,
            open(path, "xb", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600)),
        )
    except OSError as error:
        raise JobError(f"the log {path} cannot be made: {error.strerror}") from error


@contextlib.contextmanager
def in_one_line(log: str, translate: Callable[[Exception], Exception]) -> Iterator[None]:
    """Translates errors of the block into errors for the user.

    Args:
      log: path of the `job_log` inside the block; a `JobError` names the log unless it is empty.
      translate: turns the block's error into a UsageError or JobError.
    """
    try:
        yield
    except Exception as error:
        translated = translate(error)
        if isinstance(translated, UsageError):
            # The error line is enough for the user, so the log is not needed.
            with contextlib.suppress(FileNotFoundError):
                os.remove(log)
        # The log is missing if the job's dataset folder was removed.
        has_log = os.path.exists(log) and os.path.getsize(log) > 0
        if isinstance(translated, JobError) and has_log and log not in str(translated):
            translated = JobError(f"{translated} (details: {log})")
        raise translated from error


def _log_thread(arguments: threading.ExceptHookArgs) -> None:
    """Logs the error that ended a runner's thread; the runner reports the error, too."""
    error: Any = arguments.exc_value
    logging.getLogger("apache_beam").error("a thread died", exc_info=error)


@contextlib.contextmanager
def _children_write_to(log: int) -> Iterator[None]:
    """Redirects standard error, which child processes inherit, to a file; this process's own
    messages still reach the terminal."""
    inherited = os.dup(2)
    before, encoding = sys.stderr, sys.stderr.encoding
    os.dup2(log, 2)
    # A test may have replaced standard error already.
    if before is sys.__stderr__:
        sys.stderr = os.fdopen(os.dup(inherited), "w", encoding=encoding, buffering=1)
    handlers = [h for h in logging.getLogger().handlers if isinstance(h, logging.StreamHandler)]
    ours = [handler for handler in handlers if handler.stream is before]
    for handler in ours:
        handler.setStream(sys.stderr)
    try:
        yield
    finally:
        for handler in ours:
            handler.setStream(before)
        if sys.stderr is not before:
            sys.stderr.close()
            sys.stderr = before
        os.dup2(inherited, 2)
        os.close(inherited)


T = TypeVar("T")
R = TypeVar("R")


@contextlib.contextmanager
def run_locally(progress: Progress, log: str) -> Iterator[None]:
    """Shows the progress of a block, and translates its errors.

    Args:
      progress: where the block writes notes of its progress.
      log: path of a file for tracebacks, which is kept only if the block fails.

    Raises:
      UsageError, JobError: raised by the block; any other error becomes a JobError.
    """
    with in_one_line(log, _translate), job_log(log), show_progress(progress):
        yield


def _translate(error: Exception) -> Exception:
    if isinstance(error, UsageError | JobError):
        # Constructors of subclasses may take more than a message.
        return (UsageError if isinstance(error, UsageError) else JobError)(str(error))
    return JobError(f"{type(error).__name__}: {error}. Run the same command again to go on")


def map_shards(work: Callable[[T], R], shards: Iterable[T]) -> list[R]:
    """Calls a function on each shard, as many at a time as there are cores; returns the results in
    order.

    Raises:
      Exception: the first error, after the calls that had begun have ended.
    """
    return [result for _, result in read_ahead(work, shards, usable_cores())]
