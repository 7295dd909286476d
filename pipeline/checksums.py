"""Checksums of source files, remembered while size and modification time stay.

The memory lies beside the dataset, not in it: deleting it costs one more read of the
input, and changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import os

from pipeline.storage import WORK_FOLDER, Store


class Checksums:
    """MD5 of files (identity of content, as object stores report it), with a memory.

    Args:
      store: the dataset folder.
      name: of the memory, one for each shard.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._path = f"{WORK_FOLDER}/checksums/{name}.json"
        self._old: dict[str, list[object]] = {}
        if store.exists(self._path):
            self._old = json.loads(store.read(self._path))
        self._new: dict[str, list[object]] = {}

    @classmethod
    def of_shard(cls, store: Store, split: str, shard: int) -> Checksums:
        """The memory of a source shard's files."""
        return cls(store, f"{split}-{shard:05d}")

    def of(self, path: str) -> str:
        """MD5 of a file, hexadecimal. Raises OSError if it cannot be read."""
        identity = _identity(path)
        checksum = self.known(path)
        if checksum is None:
            with open(path, "rb") as file:
                checksum = hashlib.file_digest(file, _md5).hexdigest()
        self._new[path] = [*identity, checksum]
        return checksum

    def known(self, path: str) -> str | None:
        """MD5 of a file if it is remembered; the file's content is not read."""
        known = self._old.get(path)
        return None if known is None or known[:2] != _identity(path) else str(known[2])

    def save(self) -> None:
        """Remembers the files asked for since the start, and only those."""
        if self._new != self._old:
            self._store.write(self._path, json.dumps(self._new, sort_keys=True).encode())


def _identity(path: str) -> list[object]:
    """What changes when a file's content does: size in bytes, time of the last change."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)
