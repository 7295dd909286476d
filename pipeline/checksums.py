"""Checksums of source files, remembered while size and modification time stay;
object stores know them themselves.

The memory lies beside the dataset, not in it: deleting it costs one more read of the
input, and changes nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import cast

from pipeline.files import FileInfo, files_of, missing
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
        files = files_of(path)
        info = files.info(path)
        if info is None:
            raise missing(path)
        if info.md5 is not None:
            return info.md5
        checksum = self._remembered(path, info)
        if checksum is None:
            with files.open(path) as file:
                checksum = hashlib.file_digest(cast(io.BufferedReader, file), _md5).hexdigest()
        self._new[path] = [info.size, info.identity, checksum]
        return checksum

    def known(self, path: str) -> str | None:
        """MD5 of a file if it is remembered; the file's content is not read."""
        info = files_of(path).info(path)
        return None if info is None else info.md5 or self._remembered(path, info)

    def _remembered(self, path: str, info: FileInfo) -> str | None:
        size, identity, checksum = self._old.get(path, (None, None, None))
        return str(checksum) if [size, identity] == [info.size, info.identity] else None

    def save(self) -> None:
        """Remembers the files asked for since the start, and only those."""
        if self._new != self._old:
            self._store.write(self._path, json.dumps(self._new, sort_keys=True).encode())


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)
