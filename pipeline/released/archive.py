"""The files of a released archive, as a folder, a tar or a compressed tar: read in place."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import lzma
import posixpath
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from pipeline.dataset.fingerprints import fingerprint
from pipeline.errors import UsageError
from pipeline.storage.file_kind import FileInfo
from pipeline.storage.files import files_of, is_remote, relative
from pipeline.storage.parallel import in_parallel
from pipeline.storage.store import WORK_FOLDER, Store

IMPORT_FOLDER = f"{WORK_FOLDER}/import"

_COMPRESSED: dict[bytes, Callable[[BinaryIO], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
"""First bytes of a compressed file, and what reads it."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a file's content lies.

    Attributes:
      name: path inside the archive, with forward slashes.
      path: absolute path of the file that holds it.
      offset, length: in bytes.
      identity: of that file: changes when its content does.
    """

    name: str
    path: str
    offset: int
    length: int
    identity: str


def is_packed(source: str) -> bool:
    """Whether it is a compressed file, which `list_files` unpacks. Raises OSError if it cannot
    be read."""
    return files_of(source).info(source) is not None and _packing(source) is not None


def _packing(source: str) -> Callable[[BinaryIO], Any] | None:
    with files_of(source).open(source) as file:
        start = file.read(8)
    return next((r for magic, r in _COMPRESSED.items() if start.startswith(magic)), None)


def list_files(source: str, store: Store) -> list[Place]:
    """Lists what a folder or a tar holds.

    Args:
      source: absolute path.
      store: of the dataset that is made; a compressed tar is unpacked into its work folder.

    Raises:
      UsageError: there is neither, or the tar cannot be read or holds what is not a file.
      OSError: reading failed.
    """
    files = files_of(source)
    info = files.info(source)
    if info is None:
        if not files.is_folder(source):
            raise UsageError(f"--from {source} is neither a folder nor a file that can be read")
        return [_place(source, info) for info in files.walk(source)]
    try:
        packed = _packing(source)
        if packed is None:
            return list(_members(source, info))
        unpacked = _unpack(source, info, packed, store)
        return list(_members(unpacked, info))
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"--from {source} is no whole tar: {error}") from error


def _place(folder: str, info: FileInfo) -> Place:
    name = relative(info.path, folder)
    return Place(name, info.path, 0, info.size, info.identity)


def _unpack(source: str, info: FileInfo, packed: Callable[[BinaryIO], Any], store: Store) -> str:
    """Unpacks a compressed file; returns where it lies. A killed run's is used again."""
    target = f"{IMPORT_FOLDER}/{fingerprint(source, info.size, info.identity)}.tar"
    if not store.exists(target):
        with (
            files_of(source).open(source) as file,
            packed(file) as content,
            store.create(target) as unpacked,
        ):
            shutil.copyfileobj(content, unpacked, 1 << 20)
    return store.path(target)


def _members(path: str, info: FileInfo) -> Iterator[Place]:
    with files_of(path).open(path) as file, _open_tar(file, is_remote(path)) as tar:
        for member in tar:
            parts = member.name.split("/")
            if (
                member.name.startswith("/")
                or ".." in parts
                or not (member.isreg() or member.isdir())
            ):
                raise UsageError(
                    f"--from {path} holds {member.name!r}, which is no plain file below it"
                )
            if member.isreg():
                name = posixpath.normpath(member.name)
                yield Place(name, path, member.offset_data, member.size, info.identity)


def _open_tar(file: BinaryIO, remote: bool) -> tarfile.TarFile:
    if remote:
        # Reading on is faster than a request for each header.
        return tarfile.open(fileobj=file, mode="r|")
    return tarfile.open(fileobj=file, mode="r:")


def read_places(places: Sequence[Place]) -> list[bytes]:
    """Contents of files, in order. Raises OSError if one cannot be read."""
    by_path: dict[str, list[int]] = {}
    for position, place in enumerate(places):
        by_path.setdefault(place.path, []).append(position)

    def read(path: str) -> list[bytes]:
        ranges = [(places[i].offset, places[i].length) for i in by_path[path]]
        return files_of(path).read_ranges(path, ranges)

    found = [b""] * len(places)
    remote = any(is_remote(path) for path in by_path)
    contents = in_parallel(read, by_path) if remote else [read(path) for path in by_path]
    for positions, parts in zip(by_path.values(), contents, strict=True):
        for position, part in zip(positions, parts, strict=True):
            found[position] = part
    return found
