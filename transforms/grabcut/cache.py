"""Where the compiled kernels lie, and how they get there once for all processes.

Each version of the kernels has a folder of its own, named after a hash of everything that
decides their code: the sources of this package, the versions of Python, numba and
llvmlite, the processor. So stale code cannot be found. A file in it, written last, says
that it is complete. Who compiles holds a lock, which ends with the process that holds it.

An image that is built once and runs on many machines names the processor by numba's own
variables, NUMBA_CPU_NAME and NUMBA_CPU_FEATURES, and so has one folder for all of them.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import importlib.metadata
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transforms.grabcut.errors import Unavailable

_APPLICATION = "imagenet9-pipeline"
_COMPLETE = "complete"
_LOCK = "lock"


def _processor() -> tuple[str, str]:
    """Name and features of the processor that numba compiles for: this one, if none is named.

    Raises:
      Unavailable: this one lacks a feature that is named, so that the code could not run.
    """
    from llvmlite import binding

    host = binding.get_host_cpu_features()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    named = [] if features is None else [part for part in features.split(",") if part]
    missing = [part[1:] for part in named if part[0] == "+" and not host.get(part[1:])]
    if missing:
        raise Unavailable(f"this processor lacks {', '.join(missing)} of NUMBA_CPU_FEATURES")
    name = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
    return name, host.flatten() if features is None else features


@functools.cache
def code_hash() -> str:
    """Hash of what decides the machine code: 16 hexadecimal digits.

    Raises:
      Unavailable: numba is not installed, or must not compile for this processor.
    """
    try:
        versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite")]
        versions += [sys.version, *_processor()]
    except (ImportError, OSError, RuntimeError) as error:
        raise Unavailable(f"numba cannot be imported: {error}") from error
    digest = hashlib.sha256("\n".join(versions).encode())
    folder = Path(__file__).parent
    for path in sorted(folder.glob("*.py")):
        digest.update(f"\n{path}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _user_folder() -> Path:
    """The user's cache folder for this application."""
    own = os.environ.get("IN9_CACHE_DIR")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    # As for `expanduser`, a user without a home has a cache that cannot be written.
    return (Path(base) if base else Path(os.path.expanduser("~/.cache"))) / _APPLICATION


def _temporary_folder() -> Path:
    return Path(tempfile.gettempdir()) / f"{_APPLICATION}-{os.getuid()}"


def _is_own(folder: Path) -> bool:
    """Whether a folder that anybody could have made is this user's and closed to others:
    cached code is run as it is found."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == os.getuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    )


def is_complete(folder: Path) -> bool:
    """Whether all kernels have been compiled into a folder."""
    return (folder / _COMPLETE).is_file()


def mark_complete(folder: Path) -> None:
    """States that all kernels have been compiled into a folder. Raises OSError."""
    (folder / _COMPLETE).touch()


def code_folder() -> Path:
    """The folder of the compiled kernels: one that is complete, else one that can be written.

    Raises:
      Unavailable: neither the user's cache nor the temporary folder can be written.
    """
    name = f"grabcut-{code_hash()}"
    user, temporary = _user_folder() / name, _temporary_folder() / name
    if is_complete(user):
        return user
    if is_complete(temporary) and _is_own(_temporary_folder()):
        return temporary
    failures = []
    for folder in (user, temporary):
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            failures.append(f"{folder}: {error.strerror or error}")
            continue
        if folder is temporary and not _is_own(folder.parent):
            failures.append(f"{folder.parent}: belongs to, or is open to, other users")
            continue
        return folder
    raise Unavailable("compiled code cannot be kept in " + " or ".join(failures))


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder that can be written; waits for whoever has it.

    Raises:
      OSError: its file cannot be opened, or the file system knows no locks.
    """
    with (folder / _LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Locator:
    """Tells numba, which asks by these names, where a function's code is.

    Numba's own locators go by the file of the function alone, and want to write to the
    folder, which may be part of a read-only image.
    """

    def __init__(self, path: str) -> None:
        self._folder = str(code_folder())

    @classmethod
    def from_function(cls, function: object, path: str) -> Locator:
        return cls(path)

    def ensure_cache_path(self) -> None:
        os.makedirs(self._folder, exist_ok=True)

    def get_cache_path(self) -> str:
        return self._folder

    def get_source_stamp(self) -> str:
        return code_hash()

    def get_disambiguator(self) -> str:
        return "kernel"
