"""Files by absolute path: of this machine, or of Google Cloud Storage (`gs://bucket/name`).

The little that a dataset needs, the same for both: whole files that appear at once, parts of
files, and listings.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import os
import posixpath
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import BinaryIO, Protocol, TypeVar

from pipeline.errors import UsageError

_REMOTE = "gs://"
_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
REQUESTS_IN_FLIGHT = 16
"""How many requests one call makes at the same time, at most."""

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """What a store knows of a file without reading it.

    Attributes:
      path: absolute.
      size: in bytes.
      identity: changes when the content does: time of the last change, or generation.
      time: of the last change, in seconds of the epoch.
      md5: hexadecimal, None where the store does not keep it.
    """

    path: str
    size: int
    identity: str
    time: float
    md5: str | None = None


class Files(Protocol):
    """One kind of storage. All paths are absolute; missing files raise FileNotFoundError."""

    def info(self, path: str) -> FileInfo | None:
        """What is known of a file, None if there is none."""

    def is_folder(self, path: str) -> bool:
        """Whether there is a folder, or anything below that name."""

    def walk(self, folder: str) -> Iterator[FileInfo]:
        """All files below a folder, in order of their path; none if there is no folder."""

    def children(self, folder: str) -> list[str]:
        """Paths of the files in a folder itself, sorted; none if there is no folder."""

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in a folder, links to others left out; none if there is none."""

    def read(self, path: str) -> bytes:
        """A whole file."""

    def open(self, path: str) -> BinaryIO:
        """Opens a file for reading at any place."""

    def read_ranges(self, path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Parts of a file, each given as (offset, length). Raises OSError if it is shorter."""

    def create(
        self,
        path: str,
        temporary: str,
        later: list[Callable[[], object]] | None = None,
        *,
        durable: bool = False,
    ) -> contextlib.AbstractContextManager[BinaryIO]:
        """Writes a file that appears, whole, when the block ends; a block that raises leaves
        nothing.

        Args:
          path: of the file.
          temporary: for the time being, where there is need of one.
          later: takes a call that makes the file appear, where that takes long.
          durable: whether the content is to reach the disk before it gets its name, and the
            name before this ends, so that a power cut leaves the file whole.
        """

    def create_once(self, path: str, data: bytes, temporary: str) -> str:
        """Writes a file that must not exist; returns its identity. Raises FileExistsError.

        Args:
          path: of the file.
          data: its content.
          temporary: for the time being, where there is need of one.
        """

    def copy(self, source: str, target: str) -> None:
        """Copies a file within the storage, replacing the target at once."""

    def move(self, source: str, target: str) -> None:
        """Renames a file, replacing the target."""

    def sync_folder(self, folder: str) -> None:
        """Has the names in a folder reach the disk, where that is not so at once."""

    def delete(self, path: str, identity: str | None = None) -> bool:
        """Removes a file if it is there (and, if given, still has that identity); returns
        whether it did."""

    def delete_tree(self, folder: str) -> None:
        """Removes all files below a folder, and what is left of it; of a link, itself alone."""


def missing(path: str) -> FileNotFoundError:
    """The error for a file that is not there."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


def is_remote(path: str) -> bool:
    """Whether a path is of Google Cloud Storage."""
    return path.startswith(_REMOTE)


def is_for_arrow(path: str) -> bool:
    """Whether pyarrow opens a path itself: it is of this machine, and in UTF-8. A folder's name
    may be in another encoding, and in the C locale no letter beyond ASCII is decoded."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return not is_remote(path)


def absolute(path: str) -> str:
    """What a user typed, as an absolute path without a slash at its end.

    Raises:
      UsageError: it is an address of a storage that there is no way to.
    """
    if not is_remote(path):
        scheme = _SCHEME.match(path)
        if scheme:
            raise UsageError(f"{path}: {scheme[0]} is not supported; give a local path, or gs://")
        # Shells leave the ~ of --output=~/out to us.
        return os.path.abspath(os.path.expanduser(path))
    bucket, _, name = path.removeprefix(_REMOTE).partition("/")
    return _REMOTE + posixpath.join(bucket, posixpath.normpath(name) if name.strip("/") else "")


def join(folder: str, *names: str) -> str:
    """Path of something below a folder."""
    return posixpath.join(folder, *names) if is_remote(folder) else os.path.join(folder, *names)


def parent(path: str) -> str:
    """The folder that something lies in; a bucket is its own."""
    if not is_remote(path):
        return os.path.dirname(path)
    folder = posixpath.dirname(path)
    return folder if len(folder) > len(_REMOTE) else path


def relative(path: str, folder: str) -> str:
    """Path of something below a folder as seen from there, with forward slashes."""
    if is_remote(folder):
        return posixpath.relpath(path.removeprefix(_REMOTE), folder.removeprefix(_REMOTE))
    return os.path.relpath(path, folder).replace(os.sep, "/")


def is_below(path: str, folder: str) -> bool:
    """Whether a path is a folder itself, or lies in it."""
    if is_remote(path) != is_remote(folder):
        return False
    if not is_remote(path):
        path, folder = os.path.realpath(path), os.path.realpath(folder)
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def files_of(path: str) -> Files:
    """The storage that a path belongs to."""
    return _remote_files() if is_remote(path) else _local_files()


@functools.cache
def _local_files() -> Files:
    from pipeline.storage.local_files import LocalFiles

    return LocalFiles()


@functools.cache
def _remote_files() -> Files:
    from pipeline.storage.gcs_files import GcsFiles  # Takes a second to import.

    return GcsFiles()


def in_parallel(call: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Results of a call on each item, in order; several at a time, for storage that lets wait.

    Raises:
      Exception: the first error, after the others have ended.
    """
    with concurrent.futures.ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
        return list(pool.map(call, items))


def read_ahead(
    call: Callable[[T], R], items: Iterable[T], ahead: int = REQUESTS_IN_FLIGHT
) -> Generator[tuple[T, R], None, None]:
    """Each item with the result of a call on it, in order; calls run ahead in threads.

    Args:
      call: reads what an item needs.
      items: any number.
      ahead: how many calls may be ahead of what has been taken; none at 0.

    Raises:
      Exception: the first error, after the other calls that had begun have ended; they are not
        waited for after an interruption, which ends the process.
    """
    if not ahead:
        for item in items:
            yield item, call(item)
        return
    pool = concurrent.futures.ThreadPoolExecutor(ahead)
    waiting: collections.deque[tuple[T, concurrent.futures.Future[R]]] = collections.deque()
    wait = True
    try:
        for item in items:
            waiting.append((item, pool.submit(call, item)))
            if len(waiting) > ahead:
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)
