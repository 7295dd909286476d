"""Locks: only one job at a time writes a dataset, or evaluates a model on it.

A lock is a claim on a path (`Files.claim`) with a token of its own. A job takes it over from a
holder that counts as ended:

* a process of this boot and process-id namespace that no longer runs, or a Dataflow job that has
  ended; this is certain;
* an earlier attempt of the same job. The job's steps share a token that travels with the graph, so
  a step that a runner retries, on any machine, does not wait for its lost attempt;
* any other holder that gives no sign of life. Holders renew their claims. A waiting process watches
  for renewals, and counts only the time that it has watched, so that the clocks of two machines are
  never compared.

In the last two cases, the holder may be suspended and wake up later. So a holder's writes are
fenced (`Store.fenced`): they raise JobError once its claim is gone.

The work folder also holds files that killed processes leave. No list names these files, so they are
recognised by their names:

tmp/<process>+<hex>     a file or claim that was being written
progress/<process>      progress notes of a job
<command>-<number>.log  the log of a command that may run beside others

Temporary files and notes of a process that is known to have ended are removed at once; notes by the
next job that shows its progress. Whether a process in another container or on a lost machine has
ended cannot be known, so its temporary files and notes are removed after a week without change. So
are logs, which tell until then why a command failed. Files with any other name stay; so do locks,
which are taken over by whoever needs them.
"""

import contextlib
import dataclasses
import json
import logging
import os
import posixpath
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self, TypedDict

import msgspec

from pipeline.errors import JobError, UsageError, shown_bytes
from pipeline.runtime.progress import Progress
from pipeline.storage import processes
from pipeline.storage.files import files_of
from pipeline.storage.interface import PathClaim
from pipeline.storage.processes import Process
from pipeline.storage.state_files import convert, parse_json, warn_damaged
from pipeline.storage.store import TEMPORARY, TEMPORARY_NAME, WORK_FOLDER, Store
from transforms.hashing import text_digest

DATASET_LOCK = f"{WORK_FOLDER}/lock"
TABLES_LOCK = f"{WORK_FOLDER}/lock-tables"
"""Held while the tables and the page are made from all existing summaries."""
RENEWAL_SECONDS = 10.0
"""Seconds between two renewals. Renewing more often would cost too much, because each renewal takes
three requests, and an object can be written only once a second."""
EXPIRY_SECONDS = 60.0
"""Seconds without a sign of life after which a holder counts as ended. This leaves time for five
failed renewals, because importing torch blocks other threads for some seconds, and requests to
unreachable storage are retried for a while. A longer time would only delay the run after a kill."""
_DAMAGED_SECONDS = 2.0
"""Seconds without a sign of life after which a lock that does not name its holder counts as
abandoned. Usually a power cut has left such a lock, but a network file system may also show the
holder's name late."""
_LOOK_SECONDS = 0.1
"""Seconds between two looks at a lock that another job holds."""
_REMOTE_LOOK_SECONDS = 1.0
"""The same if the lock lies in object storage."""
_LOG = logging.getLogger(__name__)

_acquired: list[tuple[Store, str, str]] = []
"""Store, lock and token of each lock that this process holds, or is about to take."""


def model_lock(folder: str, block: int) -> str:
    """Returns the lock of a model's folder under `results/`, for one block."""
    return f"{WORK_FOLDER}/lock-{folder}-{block}"


Owner = Mapping[str, Any]
"""The holder of a lock as its claim names it: see `Holder.owner`."""


class _Content(TypedDict, total=False):
    """What a claim stores."""

    job: str
    owner: dict[str, Any]


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
    """The holder of a lock.

    A Dataflow job is identified by project, region and name, which are known before it is
    submitted, as its id is not. Names of running jobs in a region differ.

    Attributes:
      job: token of the job that the holder is a step of; empty if it is not a step of a job.
      owner: the holder's `this_process()`, or `{"dataflow": {"project", "region", "job_name"}}`;
        empty if the lock is damaged and does not name its holder.
    """

    job: str
    owner: Owner

    @classmethod
    def from_claim(cls, claim: PathClaim) -> Self:
        with contextlib.suppress(ValueError):
            content = parse_json(claim.metadata, _Content)
            owner = content.get("owner", {})
            if "dataflow" in owner:
                convert(owner["dataflow"], _OwnerJob)
            else:
                convert(owner, _OwnerProcess)
            return cls(content.get("job", ""), owner)
        return cls("", {})

    def __str__(self) -> str:
        if "dataflow" in self.owner:
            job = self.owner["dataflow"]
            return f"Dataflow job {job.get('job_id') or job['job_name']} in {job['region']}"
        if self.owner:
            return f"process {self.owner['pid']} on {self.owner['host']}"
        return "an unnamed holder"

    def is_at_work(self) -> bool | None:
        """Returns whether the holder is running; None if that cannot be known from here."""
        if "dataflow" in self.owner:
            return not is_over(self.owner["dataflow"])
        process = self._process()
        return None if process is None else process.is_alive()

    def is_attempt_of(self, job: str) -> bool:
        """Returns whether the holder is an earlier attempt of a job's step.

        Another step of the job that is running on this machine is not one.
        """
        process = self._process()
        return bool(job) and self.job == job and not (process and process.is_alive())

    def _process(self) -> Process | None:
        if not self.owner or "dataflow" in self.owner:
            return None
        return Process(self.owner["place"], self.owner["pid"], self.owner["started"])


_FINAL_STATES = ("DONE", "FAILED", "CANCELLED", "UPDATED", "DRAINED")
"""States in which Dataflow calls a job that has ended."""
_RESPONSE_SECONDS = 60.0
"""How long Dataflow may take to respond."""


def is_over(job: Mapping[str, Any]) -> bool:
    """Returns whether a Dataflow job is known to have ended, successfully or not.

    If `job_id` has been added to the identity, only that job is checked, otherwise all jobs of that
    name. False also if the service does not respond, or has forgotten the job, as it does after a
    while.
    """
    try:
        # These take seconds to import.
        from apache_beam.options.pipeline_options import GoogleCloudOptions
        from google.cloud import dataflow_v1beta3 as dataflow

        client = dataflow.JobsV1Beta3Client(
            # REST is the only transport that accepts an address with http.
            transport="rest",
            client_options={
                "api_endpoint": job.get("endpoint", GoogleCloudOptions.DATAFLOW_ENDPOINT)
            },
        )
        scope = {"project_id": job["project"], "location": job["region"]}
        if "job_id" in job:
            get_request = dataflow.GetJobRequest(**scope, job_id=job["job_id"])
            jobs = [client.get_job(get_request, timeout=_RESPONSE_SECONDS)]
        else:
            list_request = dataflow.ListJobsRequest(**scope, name=job["job_name"])
            listed = client.list_jobs(list_request, timeout=_RESPONSE_SECONDS)
            jobs = [each for each in listed if each.name == job["job_name"]]
        final = [getattr(dataflow.JobState, f"JOB_STATE_{state}") for state in _FINAL_STATES]
        return bool(jobs) and all(each.current_state in final for each in jobs)
    except Exception as error:  # Libraries raise many errors for an unreachable service.
        _LOG.warning("%s: %s", type(error).__name__, error)
        return False


def this_process() -> Owner:
    """Returns this process as the owner of a lock."""
    return {"host": socket.gethostname(), **dataclasses.asdict(processes.this_process())}


@dataclasses.dataclass
class _Watch:
    """Observations of a lock's holder by a process that waits for it."""

    has_renewed: bool = False
    _last_claim: PathClaim | None = None
    _last_look: float = 0.0
    _silent_seconds: float = 0.0

    def look(self, claim: PathClaim) -> None:
        """Compares the claim with its state at the last look."""
        now = time.monotonic()
        if self._last_claim is None or self._last_claim.token != claim.token:
            self._silent_seconds, self.has_renewed = 0.0, False
        elif self._last_claim.state != claim.state:
            self._silent_seconds, self.has_renewed = 0.0, True
        else:
            # This process, or the whole machine, may have been suspended as well.
            self._silent_seconds += min(now - self._last_look, RENEWAL_SECONDS)
        self._last_claim, self._last_look = claim, now

    def has_expired(self, holder: Holder) -> bool:
        """Returns whether the holder has been silent for longer than a running holder ever is."""
        return self._silent_seconds >= (EXPIRY_SECONDS if holder.owner else _DAMAGED_SECONDS)


def acquire(store: Store, lock: str, token: str, owner: Owner, wait: float = 0.0) -> None:
    """Takes a lock. Taking it again with the same token changes nothing.

    Args:
      lock: `DATASET_LOCK`, `TABLES_LOCK`, or a lock from `model_lock`.
      token: hexadecimal digits that no other holder has.
      owner: the new holder, as in `Holder.owner`.
      wait: seconds to wait for another holder. If it is not known whether that holder is running,
        the call also waits until the holder gives a sign of life or counts as ended.

    Raises:
      JobError: another job holds it.
    """
    files, path = files_of(store.root), store.writable_path(lock)
    metadata = shown_bytes(json.dumps({"job": store.job, "owner": owner}, sort_keys=True))
    deadline, watch, reported_token = time.monotonic() + wait, _Watch(), ""
    while True:
        claim = files.current_claim(path)
        if claim is None:
            if files.claim(path, token, metadata, store.temporary()):
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
        if (at_work or watch.has_renewed) and time.monotonic() >= deadline:
            hint = f". If that job is gone, remove {path}" if "dataflow" in holder.owner else ""
            raise JobError(f"{holder} is at work on it; wait until it is done{hint}")
        if at_work is None and reported_token != claim.token:
            reported_token = claim.token
            if holder.owner:
                message = "%s holds %s; waiting up to %.0f s for a sign of life"
                _LOG.warning(message, holder, path, EXPIRY_SECONDS)
            else:
                warn_damaged(path, "it does not say who holds it")
        time.sleep(_REMOTE_LOOK_SECONDS if store.is_remote else _LOOK_SECONDS)


def release(store: Store, lock: str, token: str) -> None:
    """Releases a lock if it is still held with this token."""
    files, path = files_of(store.root), store.writable_path(lock)
    while (claim := files.current_claim(path)) is not None and claim.token == token:
        # Fails if the lock is renewed meanwhile.
        if files.unclaim(path, claim, store.temporary()):
            return


def release_if_owned(store: Store, lock: str, owner: Owner) -> None:
    """Releases a lock on behalf of an owner that is known to have ended, if that owner holds it."""
    claim = files_of(store.root).current_claim(store.path(lock))
    if claim is not None and Holder.from_claim(claim).owner == owner:
        release(store, lock, claim.token)


def is_held(store: Store, lock: str, token: str | None = None) -> bool:
    """Returns whether a lock is held; if a token is given, whether it is held with that token."""
    claim = files_of(store.root).current_claim(store.path(lock))
    return claim is not None and token in (None, claim.token)


def current_holder(store: Store, lock: str) -> str | None:
    """Returns a lock's holder in words; None if it is free or its holder is known to have ended."""
    claim = files_of(store.root).current_claim(store.path(lock))
    holder = claim and Holder.from_claim(claim)
    return str(holder) if holder and holder.is_at_work() is not False else None


class Renewal:
    """A daemon thread that renews a lock until it is stopped or the lock is lost."""

    def __init__(self, store: Store, lock: str, token: str) -> None:
        self._files, self._path, self._token = files_of(store.root), store.path(lock), token
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="in9 lock", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(RENEWAL_SECONDS):
            # A storage that does not respond now may respond next time.
            with contextlib.suppress(OSError, JobError, UsageError):
                if not self._renew():
                    return

    def _renew(self) -> bool:
        """Renews the lock; returns whether it is still held."""
        while (claim := self._files.current_claim(self._path)) and claim.token == self._token:
            if self._files.renew(self._path, claim):
                return True
            # Another process of the job has renewed it, or a response was lost.
        if claim is not None:
            _LOG.warning("%s was taken over by another job; work that needs it stops", self._path)
        return False

    def stop(self) -> None:
        """Ends the thread after its current renewal."""
        self._stopped.set()
        self._thread.join()


@contextlib.contextmanager
def locked(store: Store, lock: str, wait: float = 0.0) -> Iterator[Store]:
    """Yields the store, which can be written to while the lock is held: see `Store.fenced`.

    Arguments and errors are those of `acquire`. Two threads of a process are two holders. The
    dataset's lock is held with the token of the store's job, if it has one, so that the job's steps
    recognise it (`fenced_for_job`).
    """
    token = (lock == DATASET_LOCK and store.job) or uuid.uuid4().hex
    # Registered before the lock is taken, because an interruption may come in between.
    entry = (store, lock, token)
    _acquired.append(entry)
    try:
        acquire(store, lock, token, this_process(), wait)
        # Whoever takes a lock writes, so every writer removes what killed ones have left.
        store.remove_temporary()
        renewal = Renewal(store, lock, token)
        try:
            yield store.fenced(lock, token)
        finally:
            renewal.stop()
    finally:
        _acquired.remove(entry)
        release(store, lock, token)


def fenced_for_job(store: Store) -> Store:
    """Returns the folder `Store.fenced` by its job's lock of the dataset; itself without a job."""
    return store.fenced(DATASET_LOCK, store.job) if store.job else store


def with_new_job(store: Store, *, may_repeat: bool) -> Store:
    """Returns the folder for a job to be submitted, with a new token that its steps recognise.

    It is the same token again if this process may repeat the job.
    """
    name = processes.this_process().name
    return store.for_job(text_digest(name)[:32] if may_repeat else uuid.uuid4().hex)


def release_all() -> None:
    """Releases all locks of this process, before it exits without unwinding its threads."""
    for store, lock, token in tuple(_acquired):
        with contextlib.suppress(OSError, JobError):
            release(store, lock, token)


WEEK_SECONDS = 7 * 24 * 3600.0
_LOG_NAME = re.compile(r"[a-z]+-[0-9]+\.log")
_NOTES = re.compile(r".+\+[0-9]+(\+[0-9]*)?")


@contextlib.contextmanager
def removed_if_refused(store: Store, *notes: str) -> Iterator[None]:
    """Removes a new folder again if the block fails before it has written a file.

    Later commands take a work folder for a sign that the folder is ours. Files in folders `notes`
    do not count as written, and are removed as well.
    """
    topmost = store.root
    while not store.is_remote and not os.path.exists(os.path.dirname(topmost)):
        topmost = os.path.dirname(topmost)
    is_new, was_used = not store.has_folder(""), store.has_folder(WORK_FOLDER)
    try:
        yield
    except Exception:
        # A folder that cannot even be listed, such as one in no bucket, has nothing to remove.
        with contextlib.suppress(OSError):
            files = [] if was_used else list(store.walk(""))
            if not was_used and all(path.startswith(tuple(notes)) for path in files):
                store.delete_all(files)
                store.prune(WORK_FOLDER)
            if is_new:
                Store.at(topmost).prune("")
        raise


def remove_leftovers(store: Store) -> None:
    """Removes killed processes' leftovers in a folder of a dataset or of versions; jobs may run."""
    store.remove_temporary()
    notes = posixpath.dirname(Progress.for_store(store).folder)
    cutoff = time.time() - WEEK_SECONDS
    for folder, pattern in ((WORK_FOLDER, _LOG_NAME), (TEMPORARY, TEMPORARY_NAME), (notes, _NOTES)):

        def is_old(name: str, folder: str = folder, pattern: re.Pattern[str] = pattern) -> bool:
            path = store.path(f"{folder}/{name}")
            return pattern.fullmatch(name) is not None and _last_change(store, path) < cutoff

        store.remove_each(folder, is_old)
    store.prune(notes)


def _last_change(store: Store, path: str) -> float:
    """Returns when a file, or anything in a folder, last changed, in seconds since the epoch."""
    times = [info.time for info in store.files.walk(path)]
    if store.is_remote:
        info = store.files.info(path)
        times += [info.time] if info else []
    else:
        # Renaming a file changes only this time, and not the time of its content.
        with contextlib.suppress(FileNotFoundError):
            times.append(os.lstat(path).st_ctime)
    return max(times, default=time.time())
