"""The log of a job, which keeps Beam's messages and tracebacks off the terminal.

The file is kept only if the job, or a model in it, fails. The error line that the user sees then
names the file.
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
    """A handler that ignores failed writes.

    The errors of a full disk would bury the line that the user should see.

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
    """Returns whether a record is a traceback of this package.

    The terminal does not need it, because a separate line reports what it means for the user.
    """
    # Those of workers have only their text.
    return bool(record.exc_info or record.exc_text) and record.name.startswith("pipeline")


def is_for_terminal(record: logging.LogRecord) -> bool:
    """Returns whether a record is a message of this package.

    Those of libraries tell users nothing that they could act on; the log has them.
    """
    return record.name.startswith(("pipeline", "transforms")) and not _is_our_traceback(record)


@contextlib.contextmanager
def job_log(path: str) -> Iterator[None]:
    """Keeps a job's log while the block runs."""
    root = logging.getLogger()
    keep = False
    # Unbuffered, so that text that a full disk refuses is lost at once, and is not written again at
    # the end.
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
    logging.getLogger("apache_beam").error("a thread died", exc_info=arguments.exc_value)
