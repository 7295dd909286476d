"""Hooks that commands of `fault_lab` import first: a guard, timed kills and a tiny model.

The guard is an audit hook. It notes what a command must not do: start a process, delete anything
outside its folder (the hook ends the command before that), or open foreign files.
"""

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
"""Environment variable with the file to which notes are written, one a line."""
ROOT = "IN9_FAULT_ROOT"
"""Environment variable with the only folder in which files may be deleted."""
FOREIGN = "IN9_FAULT_FOREIGN"
"""Environment variable with a folder in which nothing may be opened; may be empty."""
KILL = "IN9_FAULT_KILL"
"""Environment variable `N PATTERN`: the process dies before the Nth file whose path matches the
pattern appears."""
MORE_MEMORY = 2 << 30
"""Bytes that a command may allocate beyond its initial size: no input may fill the machine."""

_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
_DELETES = ("os.remove", "os.rmdir", "shutil.rmtree")
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
            self._left -= 1
            if self._left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)


def tiny() -> Any:
    """Returns a model that needs no download."""
    import torch

    torch.manual_seed(0)
    layers = torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 1000)
    return torch.nn.Sequential(*layers)


def _adding(value: float, outputs: int) -> Any:
    """Returns the tiny model with a value added to some outputs."""
    import torch

    model, added = tiny(), torch.where(torch.arange(1000) < outputs, value, 0.0)
    model.register_forward_hook(lambda _, __, logits: logits + added)
    return model


def nan() -> Any:
    """Returns a model with an output that is NaN."""
    return _adding(float("nan"), 1)


def masked() -> Any:
    """Returns a model that masks all classes."""
    return _adding(-float("inf"), 1000)


class Untold(RuntimeError):
    """An error whose message cannot be read."""

    def __str__(self) -> str:
        raise ValueError("no message")


def untold(*_: Any) -> Any:
    """Fails as a segmenter, a variant or a model without a readable message."""
    raise Untold


def untold_forward() -> Any:
    """Returns a model that can be loaded, and then fails like `untold`."""
    model = tiny()
    model.register_forward_pre_hook(lambda _, inputs: untold() if len(inputs[0]) > 1 else None)
    return model


if NOTES in os.environ:
    with open("/proc/self/statm", encoding="utf-8") as _file:
        _size = int(_file.read().split()[0]) * resource.getpagesize()
    with contextlib.suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (_size + MORE_MEMORY, resource.RLIM_INFINITY))
    tempfile.tempdir = None  # Inherited from the process that forked this one.
    sys.addaudithook(_Guard())
