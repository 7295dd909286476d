"""`in9 verify`: checks a dataset's files against its manifest, and prints the faults."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Iterator

from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import PUBLISH_LOCK, reading_store
from pipeline.dataset.manifest import MANIFEST, read_manifest
from pipeline.dataset.shards import DATA_FOLDERS
from pipeline.errors import JobError, UsageError, counted
from pipeline.runtime.lock import DATASET_LOCK, current_holder
from pipeline.storage.parallel import read_ahead
from pipeline.storage.store import FileDigest, Store


def run_verify(arguments: argparse.Namespace) -> int:
    """Runs `in9 verify`; returns the exit code, 1 if there are faults.

    Raises:
      UsageError: there is no finished dataset.
      JobError: the dataset is not finished, because a job is working on it.
    """
    store = reading_store(arguments.dataset)
    try:
        dataset = Dataset.open(store)
    except UsageError as error:
        job = _job_at_work(arguments.dataset, store)
        if job is None:
            raise
        raise JobError(f"{job} on {store.root}; verify it when the job is done") from error
    faults = 0
    for fault in verify(dataset):
        print(fault)
        faults += 1
    if faults:
        job = _job_at_work(arguments.dataset, store)
        if job is None and read_manifest(store) != dataset.manifest:
            job = "a job has been at work"
        advice = (
            "remove the files concerned and run the command that made the dataset again"
            if job is None
            else f"{job} on it, so these may not be faults; verify it again when the job is done"
        )
        print(f"in9 verify: {counted(faults, 'fault')}; {advice}", file=sys.stderr)
        return 1
    print(f"{len(dataset.manifest.files)} files agree with {MANIFEST}")
    return 0


def _job_at_work(folder: str, store: Store) -> str | None:
    """Describes the job that makes or publishes the dataset now; None if no job is at work.

    Args:
      folder: the folder that the user named: the dataset, or the folder where its versions are
        published.
      store: the dataset that was opened from this folder.
    """
    holders = (current_holder(store, DATASET_LOCK), current_holder(Store.at(folder), PUBLISH_LOCK))
    return next((f"{holder} is at work" for holder in holders if holder), None)


def verify(dataset: Dataset) -> Iterator[str]:
    """Checks that every file of the manifest exists with its size and SHA-256, and that the folders
    of its data hold no other files.

    The number of samples per file is not checked; it was counted before the manifest was written.

    Yields:
      A line for each fault; none for a sound dataset.
    """
    store, files = dataset.store, dataset.manifest.files
    for _, fault in read_ahead(functools.partial(_fault_of, store), files):
        if fault is not None:
            yield fault
    known = {file.path for file in files}
    for folder in DATA_FOLDERS:
        yield from (f"{p}: not in the manifest" for p in store.walk(folder) if p not in known)


def _fault_of(store: Store, file: FileDigest) -> str | None:
    size = store.size(file.path)
    if size is None:
        return f"{file.path}: missing"
    if size != file.bytes:
        return f"{file.path}: {size} bytes, the manifest says {file.bytes}"
    try:
        if store.digest(file.path) != file.sha256:
            return f"{file.path}: the content has changed (sha256 differs)"
    except OSError as error:
        return f"{file.path}: cannot be read: {error.strerror or error}"
    return None
