"""Reads the files of a released archive, which is a folder, a tar or a compressed tar."""

from __future__ import annotations

import dataclasses
import posixpath
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.dataset.fingerprints import fingerprint
from pipeline.errors import UsageError
from pipeline.inputs.archives import members, naming, unpacker_of
from pipeline.storage.file_kind import FileInfo
from pipeline.storage.files import files_of, is_remote, relative
from pipeline.storage.parallel import in_parallel
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.limits import MAX_PICTURE_BYTES, Unread

IMPORT_FOLDER = f"{WORK_FOLDER}/import"

_MAX_RATIO, _MAX_MORE = 20, 1 << 30
"""A compressed archive may unpack to this many times its size, plus this many bytes. That is ample:
pictures hardly compress, and masks compress well but are few."""


@dataclasses.dataclass(frozen=True)
class ArchiveLocation:
    """Location of a file's content.

    Attributes:
      name: path inside the archive, with forward slashes.
      path: absolute path of the file that holds the content: the file itself, or the tar.
      offset, length: position and size of the content in that file, in bytes.
      identity: identity of the file, the tar or the compressed tar, which changes with its content.
    """

    name: str
    path: str
    offset: int
    length: int
    identity: str


def is_packed(source: str) -> bool:
    """Returns whether a source is a compressed file, which `list_files` unpacks.

    Raises:
      OSError: the source cannot be read.
    """
    return files_of(source).info(source) is not None and _unpacker(source) is not None


def _unpacker(source: str) -> Callable[[Any], Any] | None:
    with files_of(source).open(source) as file:
        return unpacker_of(file.read(8))


def list_files(source: str, store: Store) -> list[ArchiveLocation]:
    """Lists the files of a folder or a tar.

    Args:
      source: absolute path of the folder or tar.
      store: folder of the dataset to make; a compressed tar is unpacked into its work folder.

    Raises:
      UsageError: the source is neither a folder nor a tar, or the tar is damaged or refused (a
        member could point outside it, or it unpacks to too many bytes).
      OSError: reading failed.
    """
    files = files_of(source)
    info = files.info(source)
    if info is None:
        if not files.is_folder(source):
            raise UsageError(f"--from {source} is neither a folder nor a file that can be read")
        return [_location(source, info) for info in files.walk(source)]
    unpacker = _unpacker(source)
    path = source if unpacker is None else _unpack(source, info, unpacker, store)
    with naming(f"--from {source}"):
        return [
            ArchiveLocation(
                name=posixpath.normpath(member.name),
                path=path,
                offset=member.offset,
                length=member.length,
                identity=info.identity,
            )
            for member, _ in members(path)
        ]


def _location(folder: str, info: FileInfo) -> ArchiveLocation:
    name = relative(info.path, folder)
    return ArchiveLocation(name, info.path, 0, info.size, info.identity)


def _unpack(source: str, info: FileInfo, unpacker: Callable[[Any], Any], store: Store) -> str:
    """Unpacks a compressed tar, unless an earlier run has done so; returns the path of the tar."""
    target = f"{IMPORT_FOLDER}/{fingerprint(source, info.size, info.identity)}.tar"
    if not store.exists(target):
        limit = _MAX_RATIO * info.size + _MAX_MORE
        with (
            naming(f"--from {source}"),
            files_of(source).open(source) as file,
            unpacker(file) as content,
            store.create(target) as unpacked,
        ):
            while data := content.read(1 << 20):
                unpacked.write(data)
                if unpacked.size > limit:
                    raise UsageError(
                        f"--from {source} is refused: it unpacks to more than {limit} bytes, "
                        f"{_MAX_RATIO} times its size and a gigabyte. Unpack it yourself"
                    )
    return store.path(target)


def read_contents(locations: Sequence[ArchiveLocation]) -> list[bytes]:
    """Reads the contents of files, in order. A file that is too large for a picture is `Unread`.

    Raises:
      OSError: a file cannot be read.
    """
    by_path: dict[str, list[int]] = {}
    for index, location in enumerate(locations):
        by_path.setdefault(location.path, []).append(index)

    def read(path: str) -> list[bytes]:
        lengths = [locations[i].length for i in by_path[path]]
        # If a file is too large, none of its bytes are read.
        ranges = [
            (locations[i].offset, length if length <= MAX_PICTURE_BYTES else 0)
            for i, length in zip(by_path[path], lengths, strict=True)
        ]
        parts = files_of(path).read_ranges(path, ranges)
        return [
            part if length <= MAX_PICTURE_BYTES else Unread.from_size(length, MAX_PICTURE_BYTES)
            for part, length in zip(parts, lengths, strict=True)
        ]

    contents = [b""] * len(locations)
    remote = any(is_remote(path) for path in by_path)
    per_path = in_parallel(read, by_path) if remote else [read(path) for path in by_path]
    for indices, parts in zip(by_path.values(), per_path, strict=True):
        for index, part in zip(indices, parts, strict=True):
            contents[index] = part
    return contents
