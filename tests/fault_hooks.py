"""What commands of `fault_lab` import before they begin: a guard, kills at a given moment, and a
model of no weight.

The guard is an audit hook. It notes what a command must not do: start a process, delete outside
of its folder (which it does not get to), open what is foreign.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import sys
import tempfile
import threading
from typing import Any

NOTES = "IN9_FAULT_NOTES"
"""File that notes are written to, a line each."""
ROOT = "IN9_FAULT_ROOT"
"""The only folder in which files may be deleted."""
FOREIGN = "IN9_FAULT_FOREIGN"
"""Folder of which nothing may be opened; may be empty."""
KILL = "IN9_FAULT_KILL"
"""`N PATTERN`: the process dies before the Nth file appears whose path holds the pattern. `N`
alone: before the Nth change of anything below `ROOT`, be it written, renamed, made or removed."""
MORE_MEMORY = 2 << 30
"""Bytes that a command may take beyond what it begins with: no input shall fill the machine."""

_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
_DELETES = ("os.remove", "os.rmdir", "shutil.rmtree")
_CHANGES = ("os.rename", "os.link", "os.mkdir", *_DELETES[:2], "open")
_inside = threading.local()


def _note(text: str) -> None:
    with open(os.environ[NOTES], "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text.replace("\n", " ") + "\n")


def _is_below(path: Any, folder: str) -> bool:
    at, name = os.path.split(os.path.abspath(os.fsdecode(path)))
    return os.path.join(os.path.realpath(at), name).startswith(folder.rstrip("/") + "/")


class _Guard:
    def __init__(self) -> None:
        self._root, self._foreign = os.environ[ROOT], os.environ.get(FOREIGN, "")
        count, _, pattern = os.environ.get(KILL, "").partition(" ")
        self._left, self._pattern = int(count or 0), pattern

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if getattr(_inside, "busy", False):
            return
        _inside.busy = True
        try:
            self._look(event, arguments)
        finally:
            _inside.busy = False

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._left and not self._pattern and _changes(event, arguments, self._root):
            self._count_down()
        if event in _STARTS:
            _note(f"starts a process: {arguments[:2]}"[:300])
        elif event in _DELETES and arguments[1] in (None, -1):
            if not _is_below(arguments[0], self._root):
                _note(f"deletes {arguments[0]}")
                os._exit(97)
        elif event == "open" and self._foreign and isinstance(arguments[0], str | bytes):
            if _is_below(arguments[0], self._foreign):
                _note(f"opens {os.fsdecode(arguments[0])}")
        elif (
            self._pattern
            and event in ("os.rename", "os.link")
            and re.search(self._pattern, str(arguments[1]))
        ):
            self._count_down()

    def _count_down(self) -> None:
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _changes(event: str, arguments: tuple[Any, ...], root: str) -> bool:
    """Whether an event changes what lies below a folder."""
    if event not in _CHANGES or not isinstance(arguments[0], str | bytes):
        return False
    if event == "open":
        return bool(arguments[2] & (os.O_WRONLY | os.O_RDWR)) and _is_below(arguments[0], root)
    # What `shutil.rmtree` removes it names within the folder that it is in.
    is_inside = event in _DELETES and arguments[1] not in (None, -1)
    return is_inside or _is_below(arguments[0], root)


def tiny() -> Any:
    """A model that everybody has."""
    import torch

    torch.manual_seed(0)
    layers = torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 1000)
    return torch.nn.Sequential(*layers)


if NOTES in os.environ:
    with open("/proc/self/statm", encoding="utf-8") as _file:
        _size = int(_file.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (_size + MORE_MEMORY, resource.RLIM_INFINITY))
    tempfile.tempdir = None  # Of the process that this one is a fork of.
    sys.addaudithook(_Guard())
