"""The first step of a job that its launcher does not stay with: taking the dataset's lock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam

from pipeline.dataset.manifest import MANIFEST, PREVIOUS_MANIFEST
from pipeline.errors import JobError
from pipeline.runtime.lock import DATASET_LOCK, Renewal, acquire, is_held, release
from pipeline.storage.store import Store


def manifest_state(store: Store) -> list[str | None]:
    """Tells one state of a dataset from another: identities of its manifests."""
    infos = [store.files.info(store.path(name)) for name in (MANIFEST, PREVIOUS_MANIFEST)]
    return [None if info is None else info.identity for info in infos]


def check_unchanged(store: Store, seen: list[str | None]) -> None:
    """Raises JobError if a dataset is in another state than the one that a job was made for."""
    if manifest_state(store) != seen:
        raise JobError(f"{store.root} has changed meanwhile. Run the same command again")


class TakeLock(beam.DoFn):
    """Anything -> the same, once the job holds the dataset's lock.

    Args:
      store: the dataset folder, for a job.
      owner: the job, or the process that has built it.
      seen: the `manifest_state` that the graph was built for.
    """

    def __init__(self, store: Store, owner: Mapping[str, Any], seen: list[str | None]) -> None:
        self._store = store
        self._owner = owner
        self._seen = seen

    def process(self, element: Any) -> Iterator[Any]:
        # A runner that repeats this step may have changed the manifest in a later one.
        store, job = self._store, self._store.job
        if not is_held(store, DATASET_LOCK, job):
            acquire(store, DATASET_LOCK, job, self._owner)
            try:
                check_unchanged(store, self._seen)
            except JobError:
                release(store, DATASET_LOCK, job)
                raise
        if "dataflow" not in self._owner:
            # Of others, nobody can be asked whether they are over.
            Renewal(store, DATASET_LOCK, job)
        yield element
