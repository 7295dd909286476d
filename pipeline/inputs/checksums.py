"""Checksums of source files and of parts of such, remembered while size and modification time
of the file stay; object stores know those of files themselves.

The memory lies beside the dataset, not in it: deleting it costs one more read of the
input, and changes nothing.
"""

from __future__ import annotations

import hashlib
import json

from pipeline.inputs.place import Place, read_place
from pipeline.storage.files import files_of
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
        return self.known(place) or _md5(self.read(place))

    def known(self, place: str) -> str | None:
        """MD5 of what lies in a place if it is remembered; the content is not read."""
        taken = Place.of(place)
        if taken.text is not None:
            return _md5(read_place(place))
        if place in self._new:
            return self._new[place][2]
        info = files_of(taken.path).info(taken.path)
        if info is None:
            return None
        if taken.is_file and info.md5 is not None:
            return info.md5
        remembered = self._old.get(place)
        if remembered is None or remembered[:2] != (info.size, info.identity):
            return None
        self._new[place] = remembered
        return remembered[2]

    def read(self, place: str) -> bytes:
        """What lies in a place, whose MD5 is known from then on. Raises OSError."""
        taken = Place.of(place)
        # Looked at first: what changes meanwhile is read again the next time.
        info = None if taken.text is not None else files_of(taken.path).info(taken.path)
        data = read_place(place)
        if info is not None:
            self._new[place] = (info.size, info.identity, _md5(data))
        return data

    def is_unlike(self, place: str) -> bool:
        """Whether size and time of a file that is not `known` say that it has changed. Of one that
        lay in another folder, its size has to tell; of one that was never read, nothing does."""
        path = Place.of(place).path
        info = files_of(path).info(path)
        if info is None or place in self._old:
            return True
        sizes = {_without_folder(old): about[0] for old, about in self._old.items()}
        return sizes.get(_without_folder(place), info.size) != info.size

    def save(self) -> None:
        """Remembers the files asked for since the start, and only those."""
        if self._new != self._old:
            self._store.write(self._path, json.dumps(self._new, sort_keys=True).encode())


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _without_folder(place: str) -> str:
    path = Place.of(place).path
    return place.removesuffix(path) + path.rpartition("/")[2]
