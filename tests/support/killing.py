"""Kills work in the middle: before a change of a file, or a worker that has just finished a call.

    IN9_TEST_KILL=STEP:MARK dask worker --preload tests/support/killing.py ...

is a worker that kills itself when it has just finished a call of a step. Only the first worker that
can make the folder MARK does so.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

STEPS = {
    "Identify": "pipeline.generate.graph:IdentifySources",
    "Segment": "pipeline.generate.segment:SegmentShard",
    "Compose": "pipeline.generate.compose:ComposeShard",
    "Move": "pipeline.generate.commit:MoveFiles",
    "RunModels": "pipeline.evaluate.model_stage:RunModels",
}
"""The steps that workers run, by the class that does the work of each."""
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


def dask_setup(_: object) -> None:
    """Prepares a worker; Dask calls this in each that it starts with `--preload`."""
    if "IN9_TEST_KILL" not in os.environ:
        return
    step, mark = os.environ["IN9_TEST_KILL"].split(":")
    module, _, name = STEPS[step].partition(":")
    kind = getattr(importlib.import_module(module), name)
    original = kind.process

    @functools.wraps(original)
    def killing(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        try:
            os.mkdir(mark)
        except FileExistsError:
            return result
        os.kill(os.getpid(), signal.SIGKILL)

    kind.process = killing
