"""The log of a job, which keeps Beam's messages and tracebacks off the terminal.

It is kept only if the job, or a model in it, fails; the error line then names it.
"""

import contextlib
import io
import logging
import os
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from pipeline.errors import JobError, UsageError, escaped

_FORMAT = "%(asctime)s %(name)s %(levelname)s %(message)s"


class EscapingFormatter(logging.Formatter):
    """A formatter that escapes unprintable characters."""

    def format(self, record: logging.LogRecord) -> str:
        return escaped(super().format(record))


class _Handler(logging.StreamHandler[io.TextIOWrapper]):
    """A handler that ignores failed writes: errors of a full disk would bury the line for the user.

    `has_traceback` says that it has a traceback of this package, so the log is worth keeping.
    """

    has_traceback = False

    def emit(self, record: logging.LogRecord) -> None:
        self.has_traceback |= _is_our_traceback(record)
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Does nothing."""


def _is_our_traceback(record: logging.LogRecord) -> bool:
    """Returns whether a record is our traceback, whose meaning for the user another line tells."""
    # Those of workers have only their text.
    return bool(record.exc_info or record.exc_text) and record.name.startswith("pipeline")


def is_for_terminal(record: logging.LogRecord) -> bool:
    """Returns whether a message is ours; users could not act on libraries', which the log has."""
    return record.name.startswith(("pipeline", "transforms")) and not _is_our_traceback(record)


@contextlib.contextmanager
def job_log(path: str) -> Iterator[None]:
    """Keeps a job's log while the block runs."""
    root = logging.getLogger()
    keep = False
    # Unbuffered, so that text that a full disk refuses is not written again at the end.
    with _create(path) as stream:
        file = _Handler(io.TextIOWrapper(stream, "utf-8", write_through=True))
        file.setFormatter(EscapingFormatter(_FORMAT))
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

    A JobError names the `job_log` inside the block, unless the path is empty.
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
    logging.getLogger("apache_beam").error("a thread died", exc_info=arguments.exc_value)
