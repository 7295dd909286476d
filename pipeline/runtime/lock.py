"""Locks: one job at a time writes a dataset, and one evaluates a model on it.

A lock is a file that only one can create. It names its owner, and is taken over only if that
is known to be over: a process of this host that no longer runs, or a Dataflow job that has
ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypedDict

import msgspec

from pipeline.errors import JobError, in_short
from pipeline.storage.state_files import parse_json, warn_damaged
from pipeline.storage.store import WORK_FOLDER, Store, is_alive

DATASET_LOCK = f"{WORK_FOLDER}/lock"
TABLES_LOCK = f"{WORK_FOLDER}/lock-tables"
"""Held for the moment in which tables and page are made from all summaries that are there."""
_LOCK = re.compile(rf"{re.escape(DATASET_LOCK)}([-.].+)?")
"""Names of locks, and of one that is being given back."""
_WRITING_SECONDS = 2.0
"""How long a lock without content may be one that is just being written."""

_mine: list[tuple[Store, str, Mapping[str, Any]]] = []
"""The locks that this process holds, or is about to, and as which owner."""


def model_lock(folder: str, group: int) -> str:
    """Lock of a model's folder under `results/`, for one group of shards."""
    return f"{WORK_FOLDER}/lock-{folder}-{group}"


def this_process() -> dict[str, Any]:
    """This process as the owner of a lock."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _start_of(pid)}


def _start_of(pid: int) -> str | None:
    """When a process started, in the kernel's ticks: tells a reused number apart. None where
    the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _is_over(owner: Mapping[str, Any]) -> bool:
    if "dataflow" in owner:
        from pipeline.runtime.dataflow_jobs import is_over

        return bool(is_over(owner["dataflow"]))
    if owner["host"] != socket.gethostname():
        return False
    return not is_alive(owner["pid"]) or _start_of(owner["pid"]) != owner["started"]


def _name(owner: Mapping[str, Any]) -> str:
    if "dataflow" in owner:
        job = owner["dataflow"]
        return f"Dataflow job {job.get('job_id') or job['job_name']} in {job['region']}"
    return f"process {owner['pid']} on {owner['host']}"


class _Process(TypedDict):
    host: str
    pid: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    started: str | None


class _Job(TypedDict):
    project: str
    region: str
    job_name: str


def _parse_owner(data: bytes) -> dict[str, Any]:
    """What a lock says of its owner. Raises ValueError for what no lock says."""
    owner: dict[str, Any] = parse_json(data, dict[str, Any])
    if "dataflow" in owner:
        msgspec.convert(owner["dataflow"], _Job)
    else:
        msgspec.convert(owner, _Process)
    return owner


def _owner(store: Store, lock: str) -> tuple[dict[str, Any], str] | None:
    """(who holds a lock, identity of its file); None if it has gone. Waits for a lock that is
    being written; one that stays damaged is nobody's, and is removed."""
    until = time.monotonic() + _WRITING_SECONDS
    while True:
        info = store.files.info(store.path(lock))
        if info is None:
            return None
        try:
            return _parse_owner(store.read(lock)), info.identity
        except FileNotFoundError:
            return None
        except ValueError as error:
            if time.monotonic() > until:
                warn_damaged(store.path(lock), in_short(error))
                store.files.delete(store.own_path(lock), info.identity)
                return None
            time.sleep(0.05)


def acquire(store: Store, lock: str, owner: Mapping[str, Any], wait: float = 0.0) -> None:
    """Takes a lock. Taking it again as the same owner changes nothing.

    Args:
      store: the dataset folder.
      lock: `DATASET_LOCK`, `TABLES_LOCK`, or of `model_lock`.
      owner: `this_process()`, or `{"dataflow": {"project", "region", "job_name"}}`; what else
        it holds must tell it from others that are not to hold the lock as well.
      wait: seconds to wait for another owner.

    Raises:
      JobError: another one holds it.
    """
    until = time.monotonic() + wait
    data = json.dumps(owner, sort_keys=True).encode()
    while True:
        try:
            store.create_once(lock, data)
            return
        except FileExistsError:
            found = _owner(store, lock)
        if found is None:
            if store.has_folder(lock):
                raise JobError(f"{store.path(lock)} is a folder in a lock's place; remove it")
            continue
        holder, identity = found
        if holder == owner:
            return
        if _is_over(holder):
            store.files.delete(store.own_path(lock), identity)
        elif time.monotonic() < until:
            time.sleep(1.0 if store.is_remote else 0.1)
        else:
            raise JobError(
                f"{_name(holder)} is at work on it; wait until it is done. If it has gone, "
                f"remove {store.path(lock)}"
            )


def release(store: Store, lock: str, owner: Mapping[str, Any]) -> None:
    """Gives a lock back, if this owner holds it."""
    found = _owner(store, lock)
    if found is not None and found[0] == owner:
        store.files.delete(store.own_path(lock), found[1])


@contextlib.contextmanager
def held(store: Store, lock: str, wait: float = 0.0) -> Iterator[None]:
    """Holds a lock while the block runs; arguments and errors as `acquire`.

    A worker of a Dataflow job holds it for the job: a worker may vanish, and what it did is
    done again by another one. Else two threads of a process are two owners.
    """
    owner = _job_of_this_worker() or {**this_process(), "once": uuid.uuid4().hex}
    # Before it is taken: an interruption may come in between.
    mine = (store, lock, owner)
    _mine.append(mine)
    try:
        acquire(store, lock, owner, wait)
        yield
    finally:
        _mine.remove(mine)
        release(store, lock, owner)


def _job_of_this_worker() -> dict[str, Any] | None:
    if "apache_beam" not in sys.modules:
        return None  # Workers have it; others, such as `in9 report`, need not wait for it.
    from pipeline.runtime.dataflow_jobs import this_job

    job = this_job()
    return {"dataflow": job} if job else None


def is_held_by(store: Store, lock: str, owner: Mapping[str, Any]) -> bool:
    """Whether this owner holds a lock."""
    found = _owner(store, lock)
    return found is not None and found[0] == owner


def at_work(store: Store, lock: str) -> str | None:
    """Who holds a lock, in words; None if nobody does, or one that is over. Changes nothing."""
    try:
        owner = _parse_owner(store.read(lock))
    except (OSError, ValueError):
        return None
    return None if _is_over(owner) else _name(owner)


def remove_dead_locks(store: Store) -> None:
    """Removes the locks of owners that are over, which nobody may ever want again. They are taken
    from them as `acquire` does; what is no lock stays."""
    for path in store.files.children(store.path(WORK_FOLDER)):
        lock = f"{WORK_FOLDER}/{os.path.basename(path)}"
        if not _LOCK.fullmatch(lock):
            continue
        info = store.files.info(path)
        with contextlib.suppress(FileNotFoundError, ValueError):
            if info is not None and _is_over(_parse_owner(store.read(lock))):
                store.files.delete(store.own_path(lock), info.identity)


def release_all() -> None:
    """Removes the locks that threads of this process hold, before it ends at once."""
    for store, lock, owner in tuple(_mine):
        with contextlib.suppress(OSError, JobError):
            release(store, lock, owner)
