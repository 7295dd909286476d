"""Locks: one process at a time writes a dataset, and one evaluates a model on it.

A lock is a file that only one process can create. It names its process, and is taken over
only if that process is known to be dead: one of this host that no longer runs.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from typing import Any

from pipeline.errors import JobError
from pipeline.storage import WORK_FOLDER, Store, is_alive

DATASET_LOCK = f"{WORK_FOLDER}/lock"
TABLES_LOCK = f"{WORK_FOLDER}/lock-tables"
"""Held for the moment in which tables and page are made from all summaries that are there."""
_WRITING_SECONDS = 2.0
"""How long a lock without content may be one that is just being written."""
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""How file systems say that they have no hard links."""

_mine: set[str] = set()
"""Paths of the locks that this process holds."""


def model_lock(folder: str, group: int) -> str:
    """Lock of a model's folder under `results/`, for one group of shards."""
    return f"{WORK_FOLDER}/lock-{folder}-{group}"


def _start_of(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: tells a reused number apart. None where
    the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _is_dead(owner: dict[str, Any]) -> bool:
    if owner["host"] != socket.gethostname():
        return False
    return not is_alive(owner["pid"]) or _start_of(owner["pid"]) != owner["started"]


def _owner(path: str) -> dict[str, Any] | None:
    """Who holds a lock; None if it has gone. Waits for a lock that is being written."""
    until = time.monotonic() + _WRITING_SECONDS
    while True:
        try:
            with open(path, encoding="utf-8") as file:
                owner: dict[str, Any] = json.load(file)
                return owner
        except FileNotFoundError:
            return None
        except json.JSONDecodeError as error:
            if time.monotonic() > until:
                raise JobError(f"{path} is no lock of ours; remove it and try again") from error
            time.sleep(0.05)


def _create(path: str, owner: dict[str, Any]) -> None:
    """Creates a lock with its content at once, so that a kill or a full disk never leaves one
    that names nobody. Raises FileExistsError if there is one."""
    aside = f"{path}.{uuid.uuid4().hex}"
    try:
        with open(aside, "x", encoding="utf-8") as file:
            json.dump(owner, file)
        try:
            os.link(aside, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with open(path, "x", encoding="utf-8") as file:
                json.dump(owner, file)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(aside)


def _take_over(path: str, dead: dict[str, Any]) -> None:
    """Removes the lock of a dead process, unless another process was faster."""
    aside = f"{path}.{uuid.uuid4().hex}"
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    if _owner(aside) != dead:
        # It had been taken over, and this is the new owner's: put it back.
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    os.remove(aside)


@contextlib.contextmanager
def held(store: Store, lock: str, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock while the block runs.

    Args:
      store: the dataset folder.
      lock: `DATASET_LOCK`, `TABLES_LOCK`, or of `model_lock`.
      wait: seconds to wait for another process that holds it.

    Raises:
      JobError: another process holds it.
    """
    until = time.monotonic() + wait
    path = store.path(lock)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": _start_of(os.getpid())}
    while True:
        try:
            _create(path, me)
        except FileExistsError:
            owner = _owner(path)
            if owner is None:
                continue
            if _is_dead(owner):
                _take_over(path, owner)
            elif time.monotonic() < until:
                time.sleep(0.1)
            else:
                raise JobError(
                    f"process {owner['pid']} on {owner['host']} is at work on it; wait until it "
                    f"is done. If it has gone, remove {path}"
                ) from None
            continue
        break
    _mine.add(path)
    try:
        yield
    finally:
        _mine.discard(path)
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def release_all() -> None:
    """Removes the locks that threads of this process hold, before it ends at once."""
    for path in list(_mine):
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
