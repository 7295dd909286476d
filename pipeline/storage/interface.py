"""The interface of a kind of storage, and calls in threads, which hide the latency of storage."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from pipeline.errors import JobError, TooLargeError

MAX_READ_BYTES = 512 << 20
"""Size in bytes of the largest file that is read in one piece, unless the caller sets another
limit. COCO's largest annotation file has 450 MB, and parsed JSON takes several times the file's
size in memory."""


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """What a store knows about a file without reading it.

    Attributes:
      path: absolute path of the file.
      identity: text that changes with the content: the time of the last change, or a generation.
      time: time of the last change, in seconds since the epoch.
      md5: hexadecimal MD5 of the content; None where the storage does not keep it.
    """

    path: str
    size: int
    identity: str
    time: float
    md5: str | None = None


@dataclasses.dataclass(frozen=True)
class PathClaim:
    """A claim on a path, which has at most one claim at a time.

    Attributes:
      token: hexadecimal digits that no other claim has.
      metadata: bytes that the claim's maker stored in it.
      state: text that changes with every renewal.
    """

    token: str
    metadata: bytes
    state: str


@dataclasses.dataclass(frozen=True, eq=False)
class Fence:
    """A claim that a writer must hold while it writes; each writer has a claim of its own."""

    path: str
    token: str

    def lost(self) -> JobError:
        """Returns the error of a writer whose claim is gone."""
        return JobError(
            f"{self.path} is held by another job, or was removed, because this job was suspended "
            "or could not reach its storage. It stops without writing. Run the same command again"
        )


class Files(Protocol):
    """One kind of storage, with absolute paths.

    Unless a method says otherwise, a missing file raises FileNotFoundError. Asking about or reading
    a pipe, socket or device raises UsageError.

    Attributes:
      requests_at_once: how many requests to make at the same time; 0 where requests take no time
        that could be hidden.
    """

    requests_at_once: int

    def info(self, path: str) -> FileInfo | None:
        """Returns what is known about a file without reading it; None for a folder or no file.

        Raises OSError if a failing disk or network does not tell.
        """

    def is_folder(self, path: str) -> bool:
        """Returns whether a folder, or any object below that name, exists."""

    def walk(self, folder: str) -> Iterator[FileInfo]:
        """Yields all files below a folder, in order of path, but none behind links to folders.

        Yields nothing if there is no such folder; a missing bucket raises FileNotFoundError.
        """

    def file_paths(self, folder: str) -> list[str]:
        """Lists the sorted paths of the files directly in a folder; empty without such a folder."""

    def folder_names(self, folder: str) -> list[str]:
        """Lists the folders in a folder, except links, in any order; none if it does not exist."""

    def read(self, path: str, limit: int | None = MAX_READ_BYTES) -> bytes:
        """Reads a whole file; raises TooLargeError if it has more than `limit` bytes.

        The limit is None for files that may have any size, such as weights.
        """

    def open(self, path: str) -> BinaryIO:
        """Opens a file for reading at any position."""

    def read_ranges(self, path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Reads parts of a file, (offset, length) in bytes; OSError if it ends before one does."""

    def create(
        self,
        path: str,
        temporary: str,
        deferred: list[Callable[[], object]] | None = None,
        *,
        durable: bool = False,
    ) -> contextlib.AbstractContextManager[BinaryIO]:
        """Writes a file that appears whole when the block ends; a block that raises leaves nothing.

        Args:
          path: final path of the file.
          temporary: path of the unfinished file, for storage that needs one.
          deferred: list to which storage with slow uploads adds the call that makes the file
            appear.
          durable: whether the content must reach the disk before the file gets its final name, and
            that name before the block ends, so that a power cut cannot leave the file truncated.
        """

    def copy(self, source: str, target: str) -> None:
        """Copies a file within the storage, replacing the target in one step."""

    def move(self, source: str, target: str) -> None:
        """Renames a file, replacing the target."""

    def sync_folder(self, folder: str) -> None:
        """Makes the names in a folder reach the disk, unless the storage does so by itself."""

    def make_folder(self, folder: str) -> None:
        """Makes an empty folder, where the storage has folders."""

    def prune(self, folder: str) -> None:
        """Removes empty folders below and including a folder, unless it is a link."""

    def delete(self, path: str) -> None:
        """Removes a file if it exists."""

    def delete_tree(self, folder: str) -> None:
        """Removes a folder and all files below it, or only the link if the folder is one."""

    def claim(self, path: str, token: str, metadata: bytes, temporary: str) -> bool:
        """Claims a path unless it is claimed already; returns whether this call has claimed it.

        `token` is hexadecimal digits that no other claim ever has. The claim is prepared at the
        path `temporary`, where storage needs one.
        """

    def current_claim(self, path: str) -> PathClaim | None:
        """Returns a path's claim, None without one; JobError if something else is at the path."""

    def renew(self, path: str, claim: PathClaim) -> bool:
        """Renews a claim, unless its state has changed; returns whether the claim was renewed."""

    def unclaim(self, path: str, claim: PathClaim, temporary: str) -> bool:
        """Removes a claim, unless its state has changed; returns whether the claim was removed.

        Of several processes, only one succeeds, and a newer claim is never touched.
        """

    def fenced(self, fence: Fence) -> Files:
        """Returns the storage for a claim's holder; changes raise JobError once it is gone."""


def too_large(path: str, size: int, limit: int) -> TooLargeError:
    """Returns the error for a file that is larger than its limit."""
    return TooLargeError(f"{path} has {size} bytes, more than the limit of {limit}", size)


def missing(path: str) -> FileNotFoundError:
    """Returns the error for a file that does not exist."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)


REQUESTS_IN_FLIGHT = 16
"""Largest number of requests that one call makes at the same time."""

T = TypeVar("T")
R = TypeVar("R")

_END = object()


def in_parallel(call: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Calls a function on each item, several at a time; returns the results in order.

    Raises the error of the first item that has one, after the calls that had begun have ended. The
    other calls are not made.
    """
    return [result for _, result in read_ahead(call, items)]


def read_ahead(
    call: Callable[[T], R], items: Iterable[T], ahead: int = REQUESTS_IN_FLIGHT
) -> Generator[tuple[T, R], None, None]:
    """Yields each item with the result of a call on it, in order; calls run ahead in threads.

    At most `ahead` calls run ahead of the consumer; if 0, without threads. Raises the first error,
    after the calls that had begun have ended, but KeyboardInterrupt without waiting, because it
    ends the process.
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
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        while waiting:
            oldest, future = waiting.popleft()
            yield oldest, future.result()
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)


class InBackground(Generic[T]):
    """Items of a generator that runs in a thread, ahead of the consumer; can be iterated once.

    The generator starts at once, is at most `ahead` items ahead, and is closed with this object.
    """

    def __init__(self, items: Generator[T, None, None], ahead: int) -> None:
        self._items = items
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        for _ in range(ahead):
            self._take_one()

    def _take_one(self) -> None:
        self._waiting.append(self._pool.submit(next, self._items, _END))

    def __iter__(self) -> Iterator[T]:
        while (item := self._waiting.popleft().result()) is not _END:
            self._take_one()
            yield item

    def close(self) -> None:
        """Ends the thread after its current item."""
        self._pool.shutdown(cancel_futures=True)
        self._items.close()
