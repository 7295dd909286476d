"""What a kind of storage does with files: of this machine, and of Google Cloud Storage.

The little that a dataset needs, the same for both: whole files that appear at once, parts of
files, and listings.
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
"""Of a file that is read whole, unless its kind has a limit of its own: the largest list of COCO's
that people have has 450 MB. In memory, JSON takes some times that."""


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


@dataclasses.dataclass(frozen=True)
class PathClaim:
    """What holds a path that only one can claim.

    Attributes:
      token: what the claim was made with; no two are made with the same.
      about: whatever else its maker said.
      state: differs after every renewal.
    """

    token: str
    about: bytes
    state: str


@dataclasses.dataclass(frozen=True, eq=False)
class Fence:
    """What a writer has to hold for its files to be written; each writer has one of its own.

    Attributes:
      path: absolute, of a claim.
      token: of the claim.
    """

    path: str
    token: str

    def lost(self) -> JobError:
        """The error of a writer whose claim has gone."""
        return JobError(
            f"{self.path} is held by another job, or has been removed: this one was suspended, "
            "or could not reach its storage. It stops without writing. Run the same command again"
        )


class Files(Protocol):
    """One kind of storage. All paths are absolute; missing files raise FileNotFoundError, pipes,
    sockets and devices UsageError."""

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

    def read(self, path: str, limit: int | None = MAX_READ_BYTES) -> bytes:
        """A whole file, or TooLargeError where it has more bytes than the limit; None for files
        that are as large as what they hold, such as weights."""

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

    def create_once(self, path: str, data: bytes) -> None:
        """Writes a small file that must not exist. Raises FileExistsError."""

    def copy(self, source: str, target: str) -> None:
        """Copies a file within the storage, replacing the target at once."""

    def move(self, source: str, target: str) -> None:
        """Renames a file, replacing the target."""

    def sync_folder(self, folder: str) -> None:
        """Has the names in a folder reach the disk, where that is not so at once."""

    def delete(self, path: str) -> None:
        """Removes a file if it is there."""

    def delete_tree(self, folder: str) -> None:
        """Removes all files below a folder, and what is left of it; of a link, itself alone."""

    def claim(self, path: str, token: str, about: bytes, temporary: str) -> bool:
        """Claims a path, unless it is claimed; returns whether it did.

        Args:
          path: what to claim; nothing else lies there.
          token: of hexadecimal digits, tells this claim from any other, ever.
          about: what others are told.
          temporary: for the time being, where there is need of one.

        Raises:
          JobError: something else lies there.
        """

    def claimed(self, path: str) -> PathClaim | None:
        """Who claims a path, None if nobody does. Raises JobError if something else lies there."""

    def renew(self, path: str, claim: PathClaim) -> bool:
        """Gives a claim another state, if it is as it was; returns whether it did."""

    def unclaim(self, path: str, claim: PathClaim, temporary: str) -> bool:
        """Removes a claim, if it is as it was; returns whether it did. Of several calls one does,
        and a claim that was made meanwhile is not touched."""

    def fenced(self, fence: Fence) -> Files:
        """The same storage for the holder of a claim: what writes or removes raises JobError once
        that has gone."""


def too_large(path: str, size: int, limit: int) -> TooLargeError:
    """The error for a file of more bytes than are read."""
    return TooLargeError(f"{path} has {size} bytes, more than the limit of {limit}", size)


def missing(path: str) -> FileNotFoundError:
    """The error for a file that is not there."""
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
