"""The log of a job: Beam's words and tracebacks, off the terminal.

The file stays only if the job, or a model in it, fails; the line that the user sees then
names it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, cast

from pipeline.errors import JobError, escaped

_FORMAT = "%(asctime)s %(name)s %(levelname)s %(message)s"


class EscapingFormatter(logging.Formatter):
    """A formatter whose lines show what cannot be seen escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


class _Handler(logging.StreamHandler[io.TextIOWrapper]):
    """Writes what it can: a full disk must not drown the line that the user sees.

    Attributes:
      has_traceback: whether anything in it is worth keeping.
    """

    has_traceback = False

    def emit(self, record: logging.LogRecord) -> None:
        self.has_traceback |= _is_ours_to_explain(record)
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nothing."""


def _is_ours_to_explain(record: logging.LogRecord) -> bool:
    """A traceback of ours; what became of it is said in a line of its own."""
    return bool(record.exc_info) and record.name.startswith("pipeline")


def _for_the_terminal(record: logging.LogRecord) -> bool:
    # What a job server says, Beam hands on as the root logger's, or Prism's and its workers'.
    is_beam = record.name == "root" or record.name.startswith(("apache_beam", "Prism", "SdkWorker"))
    return not is_beam and not _is_ours_to_explain(record)


@contextlib.contextmanager
def job_log(path: str, *, worker_processes: bool = False) -> Iterator[None]:
    """Keeps a job's log while the block runs.

    Args:
      path: of the file.
      worker_processes: whether Beam starts processes, which would write to our standard
        error at length.
    """
    root = logging.getLogger()
    others = list(root.handlers)
    keep = False
    with contextlib.ExitStack() as stack:
        # Unbuffered: what a full disk does not take is lost, and not in the way at the end.
        stream = stack.enter_context(_create(path))
        file = _Handler(io.TextIOWrapper(stream, "utf-8", write_through=True))
        file.setFormatter(EscapingFormatter(_FORMAT))
        if worker_processes:
            stack.enter_context(_children_write_to(stream.fileno()))
        for handler in others:
            handler.addFilter(_for_the_terminal)
        root.addHandler(file)
        threads = threading.excepthook
        threading.excepthook = _log_thread
        try:
            yield
        except Exception:
            keep = True
            logging.getLogger("apache_beam").exception("the job failed")
            raise
        finally:
            threading.excepthook = threads
            root.removeHandler(file)
            for handler in others:
                handler.removeFilter(_for_the_terminal)
            if not keep and not file.has_traceback:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(path)


def _create(path: str) -> BinaryIO:
    """A new file that its owner alone can read, unbuffered."""

    def private(name: str, flags: int) -> int:
        return os.open(name, flags, 0o600)

    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # Anew, and not through a link that may lie there.
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
        return cast(BinaryIO, open(path, "xb", buffering=0, opener=private))
    except OSError as error:
        raise JobError(f"the log {path} cannot be made: {error.strerror}") from error


@contextlib.contextmanager
def in_one_line(log: str, translate: Callable[[Exception], Exception]) -> Iterator[None]:
    """Raises what a block raises as the user is to read it.

    Args:
      log: of the `job_log` inside, which a `JobError` names if there is anything in it.
      translate: the block's error -> a UsageError or JobError.
    """
    try:
        yield
    except Exception as error:
        translated = translate(error)
        # A job that has lost its dataset has lost the log there as well.
        is_there = os.path.exists(log) and os.path.getsize(log) > 0
        if isinstance(translated, JobError) and is_there and log not in str(translated):
            translated = JobError(f"{translated} (details: {log})")
        raise translated from error


def _log_thread(died: threading.ExceptHookArgs) -> None:
    """A runner's thread that dies takes its error to the log; the runner reports it, too."""
    error: Any = died.exc_value
    logging.getLogger("apache_beam").error("a thread died", exc_info=error)


@contextlib.contextmanager
def _children_write_to(log: int) -> Iterator[None]:
    """Points the process's standard error, which its children inherit, at a file; our own
    goes on to the terminal."""
    inherited = os.dup(2)
    before, encoding = sys.stderr, sys.stderr.encoding
    os.dup2(log, 2)
    # Under a test, standard error may be something else already.
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
