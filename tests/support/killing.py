"""Kills work in the middle, before a change of a file."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

CHANGES = ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir", "open")


def killed_before_change(number: int, work: Callable[[], object]) -> bool:
    """Runs work in a process that is killed after `number` changes of files or folders.

    Returns whether it was killed before the work ended.
    """
    child = os.fork()
    if child == 0:
        remaining = iter(range(number))

        def look(event: str, arguments: tuple[Any, ...]) -> None:
            reads = event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if event in CHANGES and not reads and next(remaining, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        try:
            work()
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status) == -signal.SIGKILL
