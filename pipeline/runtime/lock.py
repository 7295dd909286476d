"""Locks: one job at a time writes a dataset, and one evaluates a model on it.

A lock is a claim on a path (`Files.claim`) with a token of its own. It is taken over from a
holder that is over:

* a process of this boot and process-id namespace that no longer runs, or a Dataflow job that has
  ended: that is known;
* an earlier attempt of the same job: its steps share a token, which travels with the graph, so
  that what a runner tries again, on whatever machine, does not wait for what was lost;
* else a holder without a sign of life. Holders renew their claims; who waits watches that, and
  counts only seconds of its own that it has watched, so that no two clocks are compared.

The last two may be wrong: a holder that was suspended wakes up later. So what it writes is fenced
(`Store.fenced`): with the claim gone, it raises JobError.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import posixpath
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypedDict

import msgspec

from pipeline.errors import JobError, UsageError
from pipeline.storage import processes
from pipeline.storage.file_kind import PathClaim
from pipeline.storage.files import files_of
from pipeline.storage.processes import Process
from pipeline.storage.state_files import parse_json, warn_damaged
from pipeline.storage.store import WORK_FOLDER, Store

DATASET_LOCK = f"{WORK_FOLDER}/lock"
TABLES_LOCK = f"{WORK_FOLDER}/lock-tables"
"""Held for the moment in which tables and page are made from all summaries that are there."""
_LOCK = re.compile(rf"{re.escape(DATASET_LOCK)}(-.+)?")
RENEWAL_SECONDS = 10.0
"""Between two signs of life, each of three requests; an object may be written once a second."""
EXPIRY_SECONDS = 60.0
"""Without a sign, a holder counts as over. Five may fail: importing torch keeps other threads
waiting for some seconds, and a storage that is out of reach is asked again for as long. More
would only let the run after a kill wait longer."""
_DAMAGED_SECONDS = 2.0
"""The same for one that does not say who holds it: a power cut has left it, unless a network file
system shows a whole one late."""
_LOOK_SECONDS = 0.1
_REMOTE_LOOK_SECONDS = 1.0
"""Between two looks at a lock that another one holds."""
_LOG = logging.getLogger(__name__)

_mine: list[tuple[Store, str, str]] = []
"""The locks that this process holds, or is about to, with their tokens."""


def model_lock(folder: str, group: int) -> str:
    """Lock of a model's folder under `results/`, for one group of shards."""
    return f"{WORK_FOLDER}/lock-{folder}-{group}"


class _OwnerProcess(TypedDict):
    host: str
    place: str
    pid: Annotated[int, msgspec.Meta(ge=1, lt=2**31)]
    started: str


class _OwnerJob(TypedDict):
    project: str
    region: str
    job_name: str


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
      job: token of the job that it is a step of; empty if it is none.
      owner: `this_process()` there, or `{"dataflow": {"project", "region", "job_name"}}`; empty
        if the lock does not say, since it is damaged.
    """

    job: str
    owner: Mapping[str, Any]

    @classmethod
    def from_claim(cls, claim: PathClaim) -> Holder:
        """What a claim says."""
        with contextlib.suppress(ValueError):
            said = parse_json(claim.about, dict[str, Any])
            owner = said.get("owner", {})
            if "dataflow" in owner:
                msgspec.convert(owner["dataflow"], _OwnerJob)
            else:
                msgspec.convert(owner, _OwnerProcess)
            return cls(str(said.get("job", "")), owner)
        return cls("", {})

    def __str__(self) -> str:
        if "dataflow" in self.owner:
            job = self.owner["dataflow"]
            return f"Dataflow job {job.get('job_id') or job['job_name']} in {job['region']}"
        if self.owner:
            return f"process {self.owner['pid']} on {self.owner['host']}"
        return "a holder without a name"

    def is_at_work(self) -> bool | None:
        """Whether it is; None if that cannot be known from here."""
        if "dataflow" in self.owner:
            from pipeline.runtime.dataflow_jobs import is_over

            return not is_over(self.owner["dataflow"])
        process = self._process()
        return None if process is None else process.is_alive()

    def is_attempt_of(self, job: str) -> bool:
        """Whether it is a step of a job, which tries it again: another one than those that run
        beside it on the same machine."""
        process = self._process()
        return bool(job) and self.job == job and not (process and process.is_alive())

    def _process(self) -> Process | None:
        if not self.owner or "dataflow" in self.owner:
            return None
        return Process(self.owner["place"], self.owner["pid"], self.owner["started"])


def this_process() -> dict[str, Any]:
    """This process as the owner of a lock."""
    process = dataclasses.asdict(processes.this_process())
    return {"host": socket.gethostname(), **process}


class _Watch:
    """What one who waits has seen of a lock's holder."""

    def __init__(self) -> None:
        self._seen: PathClaim | None = None
        self._looked = 0.0
        self._silent = 0.0
        self.has_renewed = False

    def look(self, claim: PathClaim) -> None:
        """Takes note of the claim as it is now."""
        now = time.monotonic()
        if self._seen is None or self._seen.token != claim.token:
            self._silent, self.has_renewed = 0.0, False
        elif self._seen.state != claim.state:
            self._silent, self.has_renewed = 0.0, True
        else:
            # Who waits may have been suspended as well, or the whole machine.
            self._silent += min(now - self._looked, RENEWAL_SECONDS)
        self._seen, self._looked = claim, now

    def has_expired(self, holder: Holder) -> bool:
        """Whether it gave no sign of life for as long as a holder at work never would."""
        return self._silent >= (EXPIRY_SECONDS if holder.owner else _DAMAGED_SECONDS)


def acquire(
    store: Store, lock: str, token: str, owner: Mapping[str, Any], wait: float = 0.0
) -> None:
    """Takes a lock. Taking it again with the same token changes nothing.

    Args:
      store: the dataset folder.
      lock: `DATASET_LOCK`, `TABLES_LOCK`, or of `model_lock`.
      token: hexadecimal digits that no other holder has.
      owner: as of `Holder`.
      wait: seconds to wait for another holder. Of one of which nothing is known, a sign of life
        is waited for in any case.

    Raises:
      JobError: another one holds it.
    """
    files, path = files_of(store.root), store.own_path(lock)
    about = json.dumps({"job": store.job, "owner": owner}, sort_keys=True).encode()
    until, watch, told = time.monotonic() + wait, _Watch(), ""
    while True:
        claim = files.claimed(path)
        if claim is None:
            if files.claim(path, token, about, store.temporary()):
                return
            continue
        if claim.token == token:
            return
        watch.look(claim)
        holder = Holder.from_claim(claim)
        at_work = not holder.is_attempt_of(store.job) and holder.is_at_work()
        if at_work is False or (at_work is None and watch.has_expired(holder)):
            files.unclaim(path, claim, store.temporary())
            continue
        if (at_work or watch.has_renewed) and time.monotonic() >= until:
            hint = f". If it has gone, remove {path}" if "dataflow" in holder.owner else ""
            raise JobError(f"{holder} is at work on it; wait until it is done{hint}")
        if at_work is None and told != claim.token:
            told = claim.token
            if holder.owner:
                words = "%s holds %s; waiting up to %.0f s for a sign of life"
                _LOG.warning(words, holder, path, EXPIRY_SECONDS)
            else:
                warn_damaged(path, "it does not say who holds it")
        time.sleep(_REMOTE_LOOK_SECONDS if store.is_remote else _LOOK_SECONDS)


def release(store: Store, lock: str, token: str) -> None:
    """Gives a lock back, if it is still held with this token."""
    files, path = files_of(store.root), store.own_path(lock)
    while (claim := files.claimed(path)) is not None and claim.token == token:
        files.unclaim(path, claim, store.temporary())  # Not one that is renewed just now.


def release_of(store: Store, lock: str, owner: Mapping[str, Any]) -> None:
    """Gives a lock back for an owner that is known to be over, if it holds it."""
    claim = files_of(store.root).claimed(store.path(lock))
    if claim is not None and Holder.from_claim(claim).owner == owner:
        release(store, lock, claim.token)


def is_held(store: Store, lock: str, token: str | None = None) -> bool:
    """Whether a lock is held; with a token, whether with that one."""
    claim = files_of(store.root).claimed(store.path(lock))
    return claim is not None and token in (None, claim.token)


def at_work(store: Store, lock: str) -> str | None:
    """Who holds a lock, in words; None if nobody does, or one that is known to be over."""
    claim = files_of(store.root).claimed(store.path(lock))
    holder = claim and Holder.from_claim(claim)
    return str(holder) if holder and holder.is_at_work() is not False else None


def remove_dead_locks(store: Store) -> None:
    """Removes the locks of holders that are known to be over, which nobody may ever want again."""
    files, folder = files_of(store.root), store.path(WORK_FOLDER)
    names = (posixpath.basename(path) for path in files.children(folder))
    for name in (*names, *files.folders(folder)):
        lock = f"{WORK_FOLDER}/{name}"
        if not _LOCK.fullmatch(lock):
            continue
        with contextlib.suppress(JobError):  # It is no lock, and stays.
            claim = files.claimed(store.path(lock))
            if claim is not None and Holder.from_claim(claim).is_at_work() is False:
                files.unclaim(store.own_path(lock), claim, store.temporary())


class Renewal:
    """A thread that renews a lock until it is stopped, or the lock is held no more. It keeps no
    process alive.

    Args:
      store: the dataset folder.
      lock: as for `acquire`.
      token: with which it is held.
    """

    def __init__(self, store: Store, lock: str, token: str) -> None:
        self._files, self._path, self._token = files_of(store.root), store.path(lock), token
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="in9 lock", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(RENEWAL_SECONDS):
            # A storage that does not answer now may do so the next time.
            with contextlib.suppress(OSError, JobError, UsageError):
                if not self._renew():
                    return

    def _renew(self) -> bool:
        """Whether the lock is still held."""
        while (claim := self._files.claimed(self._path)) and claim.token == self._token:
            if self._files.renew(self._path, claim):
                return True
            # Another process of the job has done so, or an answer was lost.
        if claim is not None:
            _LOG.warning("%s was taken over: what needs it will stop", self._path)
        return False

    def stop(self) -> None:
        """Ends the thread, after a renewal that is under way."""
        self._over.set()
        self._thread.join()


@contextlib.contextmanager
def held(store: Store, lock: str, wait: float = 0.0) -> Iterator[Store]:
    """Holds a lock while the block runs; arguments and errors as `acquire`.

    Two threads of a process are two holders. The dataset's lock is held with the token of the
    store's job, if it has one, so that steps of the job can tell (`of_job`).

    Yields:
      The store for as long as the lock is held: see `Store.fenced`.
    """
    token = (lock == DATASET_LOCK and store.job) or uuid.uuid4().hex
    # Before it is taken: an interruption may come in between.
    mine = (store, lock, token)
    _mine.append(mine)
    try:
        acquire(store, lock, token, _job_of_this_worker() or this_process(), wait)
        renewal = Renewal(store, lock, token)
        try:
            yield store.fenced(lock, token)
        finally:
            renewal.stop()
    finally:
        _mine.remove(mine)
        release(store, lock, token)


def of_job(store: Store) -> Store:
    """The dataset folder of a job, for as long as the job holds the dataset's lock: see
    `Store.fenced`. As it is, where there is no job."""
    return store.fenced(DATASET_LOCK, store.job) if store.job else store


def new_job(store: Store) -> Store:
    """The dataset folder for a job that is about to be submitted: its steps are told by a token."""
    return store.for_job(uuid.uuid4().hex)


def job_of_this_process(store: Store) -> Store:
    """The dataset folder for a job that this process may submit again: always the same one."""
    return store.for_job(hashlib.sha256(processes.this_process().name.encode()).hexdigest()[:32])


def _job_of_this_worker() -> dict[str, Any] | None:
    if "apache_beam" not in sys.modules:
        return None  # Workers have it; others, such as `in9 report`, need not wait for it.
    from pipeline.runtime.dataflow_jobs import this_job

    job = this_job()
    return {"dataflow": job} if job else None


def release_all() -> None:
    """Removes the locks that threads of this process hold, before it ends at once."""
    for store, lock, token in tuple(_mine):
        with contextlib.suppress(OSError, JobError):
            release(store, lock, token)
