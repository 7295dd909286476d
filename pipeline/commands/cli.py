"""The entry point of the command line, `in9` or `python -m pipeline`."""

import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO, cast

from pipeline.commands.command_line import COMMANDS, parse_command_line, run_command
from pipeline.errors import JobError, UsageError, escaped, wrapped
from pipeline.runtime.job_log import EscapingFormatter, is_for_terminal
from pipeline.runtime.machine import keep_freed_memory, open_standard_streams

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C; the signal by which service managers and batch systems stop a process; and that of a
terminal that is closed."""


def main(argv: list[str] | None = None, *, takes_keys: bool = False) -> int:
    """Runs a command; `argv` holds the words after `in9`, None those of `sys.argv`.

    With `takes_keys`, flags may be keys of the file of `--config`, too, as those of a template are.

    Returns:
      The exit code:
        0: the command is done.
        1: the job failed; a line on standard error says what to do.
        2: usage is wrong or input is unreadable; a line on standard error says what to do.
        3: conditions of `--fail_if` hold; a line is printed for each of them.
        4: none holds, but some are open, with `--if_open fail`.
    """
    words = sys.argv[1:] if argv is None else argv
    name = " ".join(["in9", *(word for word in words[:1] if word in COMMANDS)])
    _prepare()
    try:
        with _stopped_by_signals():
            arguments, remaining_words = parse_command_line(words, takes_keys=takes_keys)
            if arguments.command in ("train", "matrix"):
                # Training threads share the cores with processes that load pictures. A thread that
                # spins while it waits for another costs half of a step's time, or more.
                os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
            with contextlib.redirect_stdout(cast(TextIO, _ReadableStream(sys.stdout))):
                return run_command(arguments, remaining_words)
    except KeyboardInterrupt as stopped:
        for number in _STOPPING:  # A second signal does not wait for the locks.
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # The terminal may be gone.
            # Beam adds where it was.
            what = str(stopped).partition(" [while running ")[0] or "stopped"
            _report_error(name, f"{what}; run the same command again to go on", 1)
            sys.stderr.flush()
        # Imported late, because it is slow to import, and printing help needs none of it.
        from pipeline.runtime.lock import release_all

        release_all()
        # Do not wait for threads that are in the middle of an image.
        os._exit(1)
    except UsageError as error:
        return _report_error(name, error, 2)
    except (JobError, OSError) as error:
        return _report_error(f"{name}: the job failed", error, 1)
    except MemoryError:
        return _report_error(f"{name}: the job failed", "there is not enough memory", 1)
    except RuntimeError as error:
        return _report_shortage(name, error)


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """Makes signals that stop a process raise KeyboardInterrupt.

    The block ends in KeyboardInterrupt even if it, or a library in it, turns the first one into
    another error. Signals that are ignored, as with `nohup`, stay ignored.
    """
    received = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        # Beam replaces an exception without arguments by a RuntimeError.
        raise KeyboardInterrupt("stopped")

    for number in _STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    except Exception as error:
        if received:
            raise KeyboardInterrupt("stopped") from error
        raise


def run_process() -> NoReturn:
    """Runs a command and ends the process with its exit code."""
    open_standard_streams()
    # Threads that are started earlier would get their own malloc arenas.
    _prepare()
    try:
        _start_waker()
    except RuntimeError as error:
        sys.exit(_report_shortage("in9", error))
    # Warnings of libraries belong into the log of a job. As errors (`-W error`), they would fail
    # models and pictures.
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    code = main()
    if code != 1:  # A failed job leaves servers and processes behind, which might not end.
        atexit._run_exitfuncs()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    # Else the interpreter would free all objects one by one, which takes up to a second, and end
    # threads inside C++ code, so that the process would abort, or wait for ever.
    os._exit(code)


def _start_waker() -> None:
    """Starts a thread that wakes this thread, the main one, whenever a handled signal arrives.

    Python runs handlers in the main thread only. If the system interrupts another thread, the main
    thread goes on waiting, often for the end of a job, and neither Ctrl-C nor SIGTERM stops it.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    # Python's C handler runs in the interrupted thread, and writes the signal's number.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    # A handler must exist, or the signal would not interrupt a wait.
    signal.signal(signal.SIGURG, lambda *_: None)

    main_thread = threading.get_ident()

    def wake() -> None:
        while True:
            if os.read(reader, 1) == bytes([signal.SIGURG]):
                continue
            # More than once, because the main thread may be about to begin its wait, for seconds
            # on a busy machine.
            for number in range(7):
                time.sleep(0.05 * 2**number)
                signal.pthread_kill(main_thread, signal.SIGURG)

    threading.Thread(target=wake, name="in9 signals", daemon=True).start()


def _prepare() -> None:
    """Configures the allocator, threads, the log, and environment variables that libraries read."""
    # Libraries start threads, and threads started earlier would get their own malloc arenas.
    keep_freed_memory()
    # Otherwise, a thread that returns from a kernel waits 5 ms while another one runs Python.
    sys.setswitchinterval(0.0005)
    # Arrow's own allocator would keep additional memory, which grows with the number of threads.
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    # We report an unreachable hub in one line; the library would print two for every attempt.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    # Whoever logs first would otherwise configure logging; Beam does so when it is imported.
    terminal = logging.StreamHandler()
    terminal.setFormatter(EscapingFormatter("in9: %(levelname)s: %(message)s"))
    terminal.addFilter(is_for_terminal)
    logging.basicConfig(level=logging.WARNING, handlers=[terminal])


class _ReadableStream:
    """Standard output that escapes invisible characters, wraps lines, and shows them at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(wrapped(escaped(text)))
            if "\n" in text:
                self._stream.flush()
        except BrokenPipeError:
            # Its reader, such as `head`, has closed it. The work goes on: its exit code counts.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _report_error(prefix: str, error: object, code: int) -> int:
    """Prints one line that says why a command ends early; returns its exit code."""
    print(escaped(f"{prefix}: {' '.join(str(error).split())}"), file=sys.stderr)
    return code


def _report_shortage(name: str, error: RuntimeError) -> int:
    """Reports a shortage of threads, returning the exit code; raises any other error."""
    if "can't start new thread" not in str(error):
        raise error
    return _report_error(
        f"{name}: the job failed",
        f"{error}: the limit of threads and processes is reached (ulimit -u, or the container's)",
        1,
    )


if __name__ == "__main__":
    run_process()
