"""What is known of the content of source files and of parts of such, without reading it again.

It is remembered while size and modification time of the file stay; of an object, while its MD5 or
generation does, which a listing tells. The memory lies beside the dataset, not in it: deleting it
costs one more read of the input, and changes nothing.

Stamps of files whose parts are images: a stamp changes when one of those does.

In object storage a listing tells them, so that nobody has to ask for each image. On this machine
size and time of the file serve (`pipeline.inputs.checksums`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from pipeline.inputs.location import Location, read_location
from pipeline.storage.file_kind import missing
from pipeline.storage.files import files_of, is_remote
from pipeline.storage.state_files import read_json
from pipeline.storage.store import WORK_FOLDER, Store

_FOLDER = f"{WORK_FOLDER}/checksums"
_MEMORY = re.compile(rf"{re.escape(_FOLDER)}/(?P<split>[^/]+)-(?P<shard>[0-9]{{5}})\.json")


class Content(NamedTuple):
    """Content whose identity is asked for.

    Attributes:
      place: where it lies.
      tell: what else is remembered of it, made of the bytes; None for nothing.
      md5: hexadecimal, where a listing has told it.
      stamp: what changes when the content does, where a listing has told that.
    """

    place: str
    tell: Callable[[bytes], str] | None = None
    md5: str | None = None
    stamp: str | None = None


class KnownContent(NamedTuple):
    """What is known of content: its MD5, hexadecimal, and what `Content.tell` said of it."""

    md5: str
    about: str = ""


class _RememberedFile(NamedTuple):
    """Size and stamp of a file when its content, or that of a part, was read."""

    size: int
    stamp: str
    md5: str
    about: str


class Checksums:
    """Knows content, with a memory.

    Args:
      store: the dataset folder.
      name: of the memory, one for each shard.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._path = f"{_FOLDER}/{name}.json"
        self._old = read_json(store, self._path, dict[str, _RememberedFile]) or {}
        self._new: dict[str, _RememberedFile] = {}

    @classmethod
    def for_shard(cls, store: Store, split: str, shard: int) -> Checksums:
        """The memory of a source shard's files."""
        return cls(store, f"{split}-{shard:05d}")

    @staticmethod
    def forget_others(store: Store, shards: Mapping[str, int]) -> None:
        """Removes the memories of shards that are none of a dataset's.

        Args:
          store: the dataset folder.
          shards: how many source shards each of its splits has.
        """
        for path in list(store.walk(_FOLDER)):
            found = _MEMORY.fullmatch(path)
            if found and int(found["shard"]) >= shards.get(found["split"], 0):
                store.delete(path)

    def identify(self, content: Content) -> KnownContent:
        """What is known of content, which is read if it must be. Raises OSError if it cannot be."""
        known = self.known(content)
        return known or _look(content, self.read(content))

    def known(self, content: Content) -> KnownContent | None:
        """What is known of content that is not read."""
        taken = Location.parse(content.place)
        if taken.text is not None:
            return _look(content, read_location(content.place))
        if content.md5 is not None and content.tell is None:
            return KnownContent(content.md5)
        if content.place in self._new:
            return KnownContent(*self._new[content.place][2:])
        remembered = self._old.get(content.place)
        if content.stamp is None and content.md5 is None:
            info = files_of(taken.path).info(taken.path)
            if info is None:
                return None
            if taken.is_file and info.md5 is not None:
                return self.known(content._replace(md5=info.md5))
            is_same = remembered is not None and remembered[:2] == (info.size, info.identity)
        else:
            wanted = (content.stamp, content.md5)
            is_same = remembered is not None and wanted in (
                (remembered.stamp, None),
                (None, remembered.md5),
            )
        if remembered is None or not is_same:
            return None
        self._new[content.place] = remembered
        return KnownContent(remembered.md5, remembered.about)

    def read(self, content: Content) -> bytes:
        """The bytes, of which all is known from then on. Raises OSError."""
        taken = Location.parse(content.place)
        # Looked at first: what changes meanwhile is read again the next time.
        info = None if taken.text is not None else files_of(taken.path).info(taken.path)
        data = read_location(content.place)
        if info is not None:
            stamp = content.stamp or info.identity
            self._new[content.place] = _RememberedFile(info.size, stamp, *_look(content, data))
        return data

    def is_unlike(self, content: Content) -> bool:
        """Whether size and time of a file that is not `known` say that it has changed. Of one that
        lay in another folder, its size has to tell; of one that was never read, nothing does."""
        path = Location.parse(content.place).path
        info = files_of(path).info(path)
        if info is None or content.place in self._old:
            return True
        sizes = {_without_folder(old): about.size for old, about in self._old.items()}
        return sizes.get(_without_folder(content.place), info.size) != info.size

    def save(self) -> None:
        """Remembers the files asked for since the start, and only those."""
        if self._new != self._old:
            self._store.write(self._path, json.dumps(self._new, sort_keys=True).encode())


def _look(content: Content, data: bytes) -> KnownContent:
    md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return KnownContent(md5, content.tell(data) if content.tell else "")


def _without_folder(place: str) -> str:
    path = Location.parse(place).path
    return place.removesuffix(path) + path.rpartition("/")[2]


def stamp_of(path: str) -> str | None:
    """Stamp of a file, None on this machine. Raises OSError."""
    if not is_remote(path):
        return None
    info = files_of(path).info(path)
    if info is None:
        raise missing(path)
    return info.md5 or f"{info.size}:{info.identity}"
