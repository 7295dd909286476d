"""Source images: one form for the images of every input format, with their files and classes.

A memory is a JSON file with the MD5 of content. An entry is valid while the source file keeps its
size and modification time. Memories are not part of the dataset: deleting them costs one more read
of the input, and changes no result.

In object storage, a listing tells the MD5 of an object, so its image needs no request of its own,
except where the object has no MD5, because it was composed of parts. A file of many images, such as
a tar, has a stamp that changes when any of the images changes.
"""

import array
import contextlib
import dataclasses
import hashlib
import json
import pickle
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar, cast

import numpy as np
from typing_extensions import override

from pipeline.errors import UsageError, shown_bytes
from pipeline.inputs.location import Location, changed, read_location, shown
from pipeline.storage.files import files_of, is_remote, never_read
from pipeline.storage.interface import FileInfo, missing
from pipeline.storage.state_files import read_json
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.limits import Unread
from transforms.taxonomy import OUTSIDE, Taxonomy

T = TypeVar("T")

CHECKSUMS = f"{WORK_FOLDER}/checksums"
"""Folder of the memories, in the dataset folder."""
_MEMORY = re.compile(rf"{re.escape(CHECKSUMS)}/(?P<split>[^/]+)-(?P<shard>[0-9]{{5}})\.json")


class Content(NamedTuple):
    """Content to identify.

    Attributes:
      describe: function that returns a text about the bytes, which is stored, too; None for no
        text.
      md5: hexadecimal MD5 of the content, if a listing gives it.
      stamp: text that changes when the content does, if a listing gives it.
    """

    location: Location
    describe: Callable[[bytes], str] | None = None
    md5: str | None = None
    stamp: str | None = None


class KnownContent(NamedTuple):
    """The MD5 of content, hexadecimal, and what `Content.describe` returned for it."""

    md5: str
    description: str = ""


class _StoredFile(NamedTuple):
    """Size and stamp of a file when content was read, and MD5 and description of the content."""

    size: int
    stamp: str
    md5: str
    description: str


class Checksums:
    """Identifies content, with a memory of its own for each source shard of a split."""

    def __init__(self, store: Store, split: str, shard: int) -> None:
        self._store = store
        self._path = f"{CHECKSUMS}/{split}-{shard:05d}.json"
        self._old = read_json(store, self._path, dict[str, _StoredFile]) or {}
        self._new: dict[str, _StoredFile] = {}

    @staticmethod
    def forget_others(store: Store, shards: Mapping[str, int]) -> None:
        """Removes the memories of shards that a dataset does not have."""
        for path in list(store.walk(CHECKSUMS)):
            match = _MEMORY.fullmatch(path)
            if match and int(match["shard"]) >= shards.get(match["split"], 0):
                store.delete(path)

    def identify(self, content: Content) -> KnownContent:
        """Returns what is known of the content; reads it if necessary, which may raise OSError."""
        return self.known(content) or self.read(content)[1]

    def known(self, content: Content) -> KnownContent | None:
        """Returns what is known of the content without reading it, None if nothing is known."""
        line, path = content.location.line, content.location.path
        if content.location.text is not None:
            return self.read(content)[1]
        if content.md5 is not None and content.describe is None:
            return KnownContent(content.md5)
        if line in self._new:
            return KnownContent(*self._new[line][2:])
        stored = self._old.get(line)
        if content.stamp is None and content.md5 is None:
            info = _info(path)
            if info is None:
                # That nothing can be read there is known without reading.
                return self.read(content)[1] if never_read(path) else None
            if path == line and info.md5 is not None:
                return self.known(content._replace(md5=info.md5))
            is_same = stored is not None and stored[:2] == (info.size, info.identity)
        else:
            told = (content.stamp, content.md5)
            is_same = stored is not None and told in (
                (stored.stamp, None),
                (None, stored.md5),
            )
        if stored is None or not is_same:
            return None
        self._new[line] = stored
        return KnownContent(stored.md5, stored.description)

    def read(self, content: Content) -> tuple[bytes, KnownContent]:
        """Reads the content, which is `known` from then on; returns it and what is known of it.

        Raises OSError if it cannot be read, or changes meanwhile.
        """
        line, path = content.location.line, content.location.path
        files, told = files_of(path), content.stamp or content.md5
        before = _info(path) if path and not told else None
        data = read_location(content.location)
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        known = KnownContent(md5, content.describe(data) if content.describe else "")
        if not path or (isinstance(data, Unread) and never_read(path)):
            return data, known
        info = files.info(path)
        # If a file changed meanwhile, the bytes belong to no state that is known: once the file is
        # restored with its old time, they would be taken for its content.
        if info is None or (_stamp(info) != told if told else info != before):
            raise changed(shown(content.location))
        is_part = path == line and not isinstance(data, Unread) and len(data) != info.size
        if is_part or self._new.get(line, known).md5 != known.md5:
            raise changed(shown(content.location))
        stamp = content.stamp or info.identity
        self._new[line] = _StoredFile(info.size, stamp, *known)
        return data, known

    def must_have_changed(self, content: Content) -> bool:
        """Returns whether a file that is not `known` must have changed, going by size and time.

        If the file has moved to another folder, only its size is compared; if it was never read,
        the answer is False.
        """
        line, path = content.location.line, content.location.path
        info = files_of(path).info(path)
        if info is None or line in self._old:
            return True
        sizes = {_without_folder(Location.parse(old)): f.size for old, f in self._old.items()}
        return sizes.get(_without_folder(content.location), info.size) != info.size

    def save(self) -> None:
        """Writes the memory, with only the content asked for since this object was made."""
        if self._new != self._old:
            self._store.write(self._path, shown_bytes(json.dumps(self._new, sort_keys=True)))


def _info(path: str) -> FileInfo | None:
    """Returns what is known about a file; None if there is none that may be read."""
    with contextlib.suppress(UsageError):
        return files_of(path).info(path)
    return None


def _without_folder(location: Location) -> str:
    return location.line.removesuffix(location.path) + location.path.rpartition("/")[2]


def stamp_of(path: str) -> str | None:
    """Returns the stamp of an object; None on this machine, where size and time serve instead."""
    if not is_remote(path):
        return None
    info = files_of(path).info(path)
    if info is None:
        raise missing(path)
    return _stamp(info)


def _stamp(info: FileInfo) -> str:
    return info.md5 or f"{info.size}:{info.identity}"


IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")

_WNID = re.compile(r"n[0-9]{8}")
HIDDEN = re.compile(r"(?:^|/)\.[^./]")
"""Finds, in a path, a name that begins with a single dot: what is hidden is not listed."""


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image of the input, from its listing until it is cut.

    An input format fills in what its files tell; `list_images` completes class, label and
    annotation.

    Attributes:
      key: file name without its suffix, or the key that a table gives.
      name: path relative to the input, as shown in records, with forward slashes and archives as
        folders.
      wnid: class of the image; empty if neither folder, table, label nor annotation tells it.
      label: superclass label, `OUTSIDE` if `wnid` is empty.
      annotation, mask: their locations; None if the image has none.
      md5, annotation_md5, mask_md5: hexadecimal, if the listing tells them.
      stamp: text that changes with the content of a picture inside a larger file, if the listing
        tells it.
      is_excluded: whether `--exclude` or `--include` leaves the image out.
      fault: why the class is unknown, if it should be known; else "".
      group: name of a group of images that share a scene, so that no image of the group becomes the
        background of another; "" for no group.
      status: `accepted`, or the `Reason` of the rejection, if a recipe tells it; else "".
      digest: identifies what its row and layer depend on, if a recipe tells it; else "".
    """

    key: str
    location: Location
    name: str
    wnid: str
    label: int = OUTSIDE
    annotation: Location | None = None
    md5: str | None = None
    stamp: str | None = None
    annotation_md5: str | None = None
    is_excluded: bool = False
    mask: Location | None = None
    mask_md5: str | None = None
    group: str = ""
    fault: str = ""
    status: str = ""
    digest: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class KeyedFile:
    """An image, an annotation or a mask, found by its key.

    Attributes:
      folder: name of the folder that holds the file, "" if there is none.
      key: file name without the suffix; "" if it has another suffix than the search asked for.
      md5: hexadecimal MD5 of the content, if the listing tells it.
      size: size in bytes, if the listing tells it.
    """

    folder: str
    key: str
    location: Location
    md5: str | None = None
    size: int | None = None


class Packed(Sequence[T]):
    """Objects that are pickled and compressed, and made again when they are asked for.

    Each is compressed alone, with the first as the dictionary, so it takes no more than what tells
    it from the first, and can be read without the others.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._first, self._data, self._ends = b"", bytearray(), array.array("Q", [0])
        for pickled in map(pickle.dumps, items):
            self._first = self._first or pickled
            # Negative: without a header and a checksum, which would take ten bytes.
            packer = zlib.compressobj(wbits=-zlib.MAX_WBITS, zdict=self._first)
            self._data += packer.compress(pickled) + packer.flush()
            self._ends.append(len(self._data))

    @override
    def __len__(self) -> int:
        return len(self._ends) - 1

    # Neither slices nor negative numbers are supported; mypy refuses slices.
    @override
    def __getitem__(self, index: int) -> T:  # type: ignore[override]
        packed = self._data[self._ends[index] : self._ends[index + 1]]
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS, self._first).decompress(packed)
        return cast(T, pickle.loads(unpacked))


class FileIndex:
    """An index of annotations or masks, by the folder and the key of their image."""

    def __init__(self, entries: Iterable[KeyedFile]) -> None:
        self._entries = Packed(entries)
        hashes = np.fromiter((hash(entry.key) for entry in self._entries), np.int64)
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]

    def __len__(self) -> int:
        return len({(entry.folder, entry.key) for entry in self._entries})

    def find(self, folder: str, key: str) -> KeyedFile | None:
        """Finds the file of an image by key and folder; the folder is "" if the image is in none.

        A file in no folder, or the only file of a key, belongs to images in any folder.
        """
        start, end = (np.searchsorted(self._hashes, hash(key), side) for side in ("left", "right"))
        entries = map(self._entries.__getitem__, self._order[start:end])
        by_folder = {entry.folder: entry for entry in entries if entry.key == key}
        only = next(iter(by_folder.values())) if len(by_folder) == 1 else None
        return by_folder.get(folder, by_folder.get("", only))


def wnid_of_folder(name: str, taxonomy: Taxonomy | None = None) -> str:
    """Returns the WordNet id, or the taxonomy's class, of the folder in a path; else ""."""
    folder = name.rpartition("/")[0].rpartition("/")[2]
    return folder if is_wnid(folder) or (taxonomy and folder in taxonomy.index_of) else ""


def is_wnid(text: str) -> bool:
    """Returns whether a text is a WordNet id.

    >>> is_wnid("n02085620"), is_wnid("val")
    (True, False)
    """
    return _WNID.fullmatch(text) is not None


def wnid_of_label(label: object, taxonomy: Taxonomy, name: str) -> str:
    """Returns the class that a label means; "" for a negative number, None or an empty text.

    A label is the number or id of a class; for any other, UsageError is raised.
    """
    text = "" if label is None else str(label).strip()
    if not text or is_wnid(text) or text in taxonomy.index_of:
        return text
    try:
        index = int(text)
    except ValueError:
        index = len(taxonomy.wnids)
    if index >= len(taxonomy.wnids):
        raise UsageError(
            f"{name} is of class {text[:40]!r}: expected "
            + (
                f"a WordNet id, or the index of one of ImageNet's {len(taxonomy.wnids)} classes"
                if taxonomy.is_of_imagenet
                else f"one of the {len(taxonomy.wnids)} classes of --taxonomy"
            )
        )
    return taxonomy.wnids[index] if index >= 0 else ""
