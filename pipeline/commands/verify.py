"""`in9 verify`: says what is wrong with a dataset."""

from __future__ import annotations

import argparse
import sys

from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import PUBLISH_LOCK, reading_store
from pipeline.dataset.manifest import MANIFEST, read_manifest
from pipeline.dataset.verification import verify
from pipeline.errors import JobError, UsageError
from pipeline.runtime.lock import DATASET_LOCK, current_holder
from pipeline.storage.store import Store


def run_verify(arguments: argparse.Namespace) -> int:
    """The command `verify`; returns the exit code, 1 if there are faults.

    Raises:
      UsageError: there is no finished dataset.
      JobError: nor can there be one, since a job is at work on it.
    """
    store = reading_store(arguments.dataset)
    try:
        dataset = Dataset.open(store)
    except UsageError as error:
        job = _job_at_work(arguments.dataset, store)
        if job is None:
            raise
        raise JobError(f"{job} on {store.root}; verify it when that is done") from error
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
            else f"{job} on it, so these may be none: verify it again when that is done"
        )
        counted = f"{faults} {'fault' if faults == 1 else 'faults'}"
        print(f"in9 verify: {counted}; {advice}", file=sys.stderr)
        return 1
    print(f"{len(dataset.manifest.files)} files agree with {MANIFEST}")
    return 0


def _job_at_work(named: str, store: Store) -> str | None:
    """Which job changes a dataset now, in words: one that makes it, or that publishes.

    Args:
      named: the folder that the user named.
      store: the dataset in it.
    """
    holders = (current_holder(store, DATASET_LOCK), current_holder(Store.at(named), PUBLISH_LOCK))
    return next((f"{holder} is at work" for holder in holders if holder), None)
