"""The interface of a kind of storage: this machine's files, or Google Cloud Storage.

It has only what a dataset needs: whole files that appear at once, parts of files, and listings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from collections.abc import Callable, Iterator
from typing import BinaryIO, Protocol

from pipeline.errors import JobError, TooLargeError

MAX_READ_BYTES = 512 << 20
"""Largest file that is read whole, unless its kind has a limit of its own. The largest annotation
file of COCO has 450 MB; JSON takes several times its size in memory."""


@dataclasses.dataclass(frozen=True)
class FileInfo:
    """What a store knows about a file without reading it.

    Attributes:
      path: absolute.
      size: in bytes.
      identity: changes with the content: the time of the last change, or the generation.
      time: of the last change, in seconds since the epoch.
      md5: hexadecimal; None where the store does not keep it.
    """

    path: str
    size: int
    identity: str
    time: float
    md5: str | None = None


@dataclasses.dataclass(frozen=True)
class PathClaim:
    """A claim on a path; a path has at most one.

    Attributes:
      token: unique to the claim.
      metadata: bytes that the claim's maker stored in it.
      state: changes with every renewal.
    """

    token: str
    metadata: bytes
    state: str


@dataclasses.dataclass(frozen=True, eq=False)
class Fence:
    """The claim that a writer must hold for its files to be written; each writer has its own.

    Attributes:
      path: absolute path of the claim.
      token: of the claim.
    """

    path: str
    token: str

    def lost(self) -> JobError:
        """Returns the error of a writer whose claim is gone."""
        return JobError(
            f"{self.path} is held by another job, or was removed, because this job was suspended "
            "or could not reach its storage. It stops without writing. Run the same command again"
        )


class Files(Protocol):
    """One kind of storage. All paths are absolute. A missing file raises FileNotFoundError; a pipe,
    socket or device raises UsageError."""

    def info(self, path: str) -> FileInfo | None:
        """Returns what is known about a file, None if there is none."""

    def is_folder(self, path: str) -> bool:
        """Returns whether there is a folder, or any object below that name."""

    def walk(self, folder: str) -> Iterator[FileInfo]:
        """Yields all files below a folder, in order of path; none if there is no folder."""

    def children(self, folder: str) -> list[str]:
        """Lists the paths of the files directly in a folder, sorted; none if there is no folder."""

    def folders(self, folder: str) -> list[str]:
        """Lists the names of the folders in a folder, except links; none if there is no folder."""

    def read(self, path: str, limit: int | None = MAX_READ_BYTES) -> bytes:
        """Reads a whole file. Raises TooLargeError if it has more bytes than the limit, which is
        None for files that may have any size, such as weights."""

    def open(self, path: str) -> BinaryIO:
        """Opens a file for reading at any position."""

    def read_ranges(self, path: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Reads parts of a file, each given as (offset, length). Raises OSError if the file ends
        before a part does."""

    def create(
        self,
        path: str,
        temporary: str,
        deferred: list[Callable[[], object]] | None = None,
        *,
        durable: bool = False,
    ) -> contextlib.AbstractContextManager[BinaryIO]:
        """Writes a file that appears, whole, when the block ends; a block that raises leaves
        nothing.

        Args:
          path: of the file.
          temporary: path to write to until then, where the storage needs one.
          deferred: receives the call that makes the file appear, where that call is slow.
          durable: whether the content reaches the disk before the file gets its name, and the
            name before the block is left, so that a power cut leaves the file whole.
        """

    def create_once(self, path: str, data: bytes) -> None:
        """Writes a small file that must not exist yet. Raises FileExistsError if it does."""

    def copy(self, source: str, target: str) -> None:
        """Copies a file within the storage, replacing the target in one step."""

    def move(self, source: str, target: str) -> None:
        """Renames a file, replacing the target."""

    def sync_folder(self, folder: str) -> None:
        """Makes the names in a folder reach the disk, where they do not by themselves."""

    def delete(self, path: str) -> None:
        """Removes a file if it exists."""

    def delete_tree(self, folder: str) -> None:
        """Removes a folder and all files below it; removes only the link if it is one."""

    def claim(self, path: str, token: str, metadata: bytes, temporary: str) -> bool:
        """Claims a path unless it is claimed already; returns whether it did.

        Args:
          path: what to claim; it is used for nothing else.
          token: hexadecimal digits that no other claim ever has.
          metadata: what to store with the claim.
          temporary: path to build the claim at, where the storage needs one.

        Raises:
          JobError: the path holds something else.
        """

    def current_claim(self, path: str) -> PathClaim | None:
        """Returns the claim on a path, None if there is none. Raises JobError if the path holds
        something else."""

    def renew(self, path: str, claim: PathClaim) -> bool:
        """Renews a claim, unless its state has changed; returns whether it did."""

    def unclaim(self, path: str, claim: PathClaim, temporary: str) -> bool:
        """Removes a claim, unless its state has changed; returns whether it did. Only one of
        several calls succeeds, and a claim that was made in the meantime is not touched."""

    def fenced(self, fence: Fence) -> Files:
        """Returns the same storage for the holder of a claim: writing and removing raise JobError
        once the claim is gone."""


def too_large(path: str, size: int, limit: int) -> TooLargeError:
    """Returns the error for a file that is larger than its limit."""
    return TooLargeError(f"{path} has {size} bytes, more than the limit of {limit}", size)


def missing(path: str) -> FileNotFoundError:
    """Returns the error for a file that does not exist."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
