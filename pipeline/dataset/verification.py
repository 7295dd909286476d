"""Verification of a dataset's files against its manifest."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from pipeline.dataset.folder import Dataset
from pipeline.dataset.shards import DATA_FOLDERS
from pipeline.storage.parallel import read_ahead
from pipeline.storage.store import FileDigest, Store


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
