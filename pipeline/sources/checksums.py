"""Checksums of source files and of parts of such, remembered while size and modification time
of the file stay; object stores know those of files themselves.

The memory lies beside the dataset, not in it: deleting it costs one more read of the
input, and changes nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
from typing import cast

from pipeline.sources.place import Place, read_place
from pipeline.storage.files import FileInfo, files_of, missing
from pipeline.storage.state_files import read_json
from pipeline.storage.store import WORK_FOLDER, Store


class Checksums:
    """MD5 of content (its identity, as object stores report it), with a memory.

    Args:
      store: the dataset folder.
      name: of the memory, one for each shard.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._path = f"{WORK_FOLDER}/checksums/{name}.json"
        self._old = read_json(store, self._path, dict[str, tuple[int, str, str]]) or {}
        self._new: dict[str, tuple[int, str, str]] = {}

    @classmethod
    def of_shard(cls, store: Store, split: str, shard: int) -> Checksums:
        """The memory of a source shard's files."""
        return cls(store, f"{split}-{shard:05d}")

    def of(self, place: str) -> str:
        """MD5 of what lies in a place, hexadecimal. Raises OSError if it cannot be read."""
        taken = Place.of(place)
        if taken.text is not None:
            return _md5_of(place)
        files = files_of(taken.path)
        info = files.info(taken.path)
        if info is None:
            raise missing(taken.path)
        if taken.is_file and info.md5 is not None:
            return info.md5
        checksum = self._remembered(place, info)
        if checksum is None and taken.is_file:
            with files.open(place) as file:
                checksum = hashlib.file_digest(cast(io.BufferedReader, file), _md5).hexdigest()
        elif checksum is None:
            checksum = _md5_of(place)
        self._new[place] = (info.size, info.identity, checksum)
        return checksum

    def known(self, place: str) -> str | None:
        """MD5 of what lies in a place if it is remembered; the content is not read."""
        taken = Place.of(place)
        if taken.text is not None:
            return _md5_of(place)
        info = files_of(taken.path).info(taken.path)
        if info is None:
            return None
        return (info.md5 if taken.is_file else None) or self._remembered(place, info)

    def _remembered(self, place: str, info: FileInfo) -> str | None:
        *seen, checksum = self._old.get(place, (None, None, ""))
        return checksum if seen == [info.size, info.identity] else None

    def save(self) -> None:
        """Remembers the files asked for since the start, and only those."""
        if self._new != self._old:
            self._store.write(self._path, json.dumps(self._new, sort_keys=True).encode())


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


def _md5_of(place: str) -> str:
    return hashlib.md5(read_place(place), usedforsecurity=False).hexdigest()
