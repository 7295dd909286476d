"""A folder that in9 writes. Its files are whole or absent, and are hashed as they are written."""

import contextlib
import dataclasses
import hashlib
import io
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, BinaryIO, Self, TypeVar, cast

import msgspec

from pipeline.errors import UsageError
from pipeline.storage.files import absolute, arrow_source, files_of, is_remote, join, parent
from pipeline.storage.interface import MAX_READ_BYTES, Fence, Files, in_parallel, read_ahead
from pipeline.storage.processes import has_ended, this_process

WORK_FOLDER = ".in9"
"""Folder inside a store for everything that is not part of the store's content."""

TEMPORARY = f"{WORK_FOLDER}/tmp"
"""Folder for files that are being written."""

TEMPORARY_NAME = re.compile(r"(?P<process>.+)\+[0-9a-f]{32}")
"""A name from `Store.temporary`."""

T = TypeVar("T")
R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class FileDigest:
    """What a manifest records about a file.

    Attributes:
      path: path of the file, relative to the dataset folder, with forward slashes.
      bytes: size in bytes.
      sha256: hexadecimal SHA-256 of the content.
      samples: number of rows or samples in the file; None for files of other kinds.
    """

    path: str
    bytes: int
    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    samples: int | None = None


class HashingFile(io.RawIOBase):
    """A binary file that is being written, with its size and SHA-256 so far.

    Closing it leaves the file below open until the block of `Store.create` ends.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        """Appends bytes; returns their number."""
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        """Returns the number of bytes written so far."""
        return self.size

    def writable(self) -> bool:
        return True

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the bytes so far."""
        return self._hash.hexdigest()


@dataclasses.dataclass(frozen=True)
class Store:
    """A folder that in9 writes: a dataset, a training, an export or a folder of weights.

    Methods take paths relative to the folder, with forward slashes. They raise OSError if reading
    or writing fails, and UsageError if anything would be written or removed behind a link.

    Attributes:
      root: absolute path of the folder, on this machine or in object storage.
      output: absolute path of the folder that the user named, if this folder lies below it; else
        empty. The named folder may be a link, but no folder below it may be one, because a link
        could lead a job elsewhere.
      job: token by which a job's steps hold locks together (`for_job`); empty outside of a job.
      fence: the claim that must be held to write or remove files; None if no claim is needed.
      deferred: list in which `create` leaves uploads for later (`together`); None to upload at
        once.
      elsewhere: folders of the form `A/B` that are read from another place in the same kind of
        storage, and never written there: path in this store -> absolute path.
      labs: by these folders, the name of whoever they are from, if results are shown with it.
    """

    root: str
    output: str = dataclasses.field(default="", compare=False)
    job: str = dataclasses.field(default="", compare=False)
    fence: Fence | None = dataclasses.field(default=None, compare=False)
    deferred: list[Callable[[], object]] | None = dataclasses.field(default=None, compare=False)
    elsewhere: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)
    labs: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def at(cls, path: str) -> Self:
        """Returns the store of a folder that a user named."""
        return cls(absolute(path))

    @property
    def is_remote(self) -> bool:
        """Whether the folder lies in object storage."""
        return is_remote(self.root)

    @property
    def files(self) -> Files:
        """The storage that holds the folder, fenced if this store is."""
        files = files_of(self.root)
        return files if self.fence is None else files.fenced(self.fence)

    def path(self, relative: str) -> str:
        """Returns the absolute path of a file; UsageError if it would lie outside the folder.

        Names in files are checked where they are parsed; this is the last line of defence.
        """
        if relative.startswith("/") or ".." in relative.split("/"):
            raise UsageError(f"{relative!r} leads out of {self.root}")
        folder = "/".join(relative.split("/")[:2])
        if folder in self.elsewhere:
            return self.elsewhere[folder] + relative.removeprefix(folder)
        return join(self.root, relative) if relative else self.root

    def writable_path(self, relative: str) -> str:
        """Returns the absolute path of a file or folder that is to be written or removed.

        Raises UsageError if a folder on the way is a link, as its target is not part of the
        dataset.
        """
        path = dataclasses.replace(self, elsewhere={}).path(relative)
        if self.is_remote:
            return path
        folder = os.path.dirname(path)
        output = self.output or self.root
        while len(folder) > len(output):
            if os.path.islink(folder):
                raise UsageError(
                    f"{folder} is a link to {os.readlink(folder)}: nothing is written or removed "
                    "behind it. Put a folder in its place"
                )
            folder = os.path.dirname(folder)
        return path

    def log(self, name: str) -> str:
        """Returns the local path of the log of a job that is launched here.

        For object storage, it is in the system's temporary folder, under an unpredictable name,
        because other users can write to that folder, too.
        """
        if self.is_remote:
            file, path = tempfile.mkstemp(prefix=f"in9-{name}-", suffix=".log")
            os.close(file)
            return path
        return self.writable_path(f"{WORK_FOLDER}/{name}.log")

    def below(self, relative: str) -> Self:
        """Returns a folder below this one as a store of its own."""
        return dataclasses.replace(self, root=self.path(relative), output=self.output or self.root)

    def for_job(self, job: str) -> Self:
        """Returns the same folder for the steps of a job."""
        return dataclasses.replace(self, job=job)

    def fenced(self, lock: str, token: str) -> Self:
        """Returns the folder for a lock's holder; changes raise JobError once the lock is lost."""
        return dataclasses.replace(self, fence=Fence(self.path(lock), token))

    def exists(self, relative: str) -> bool:
        """Returns whether a file exists. A folder does not count."""
        return self.files.info(self.path(relative)) is not None

    def refuse_file(self, flag: str) -> None:
        """Raises UsageError if the folder, which a flag names, is a file."""
        if self.exists(""):
            raise UsageError(f"{flag} {self.root} is not a folder")

    def has_folder(self, relative: str) -> bool:
        return self.files.is_folder(self.path(relative))

    def is_empty(self) -> bool:
        """Returns whether the folder is empty; looks no deeper, as it may be the root of a disk."""
        return not (self.files.file_paths(self.root) or self.files.folder_names(self.root))

    def size(self, relative: str) -> int | None:
        """Returns the size of a file in bytes; None if the file is missing."""
        info = self.files.info(self.path(relative))
        return None if info is None else info.size

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns each file's size in bytes below a folder, by relative path, from one listing."""
        return {
            info.path[len(self.root) :].lstrip(os.sep).replace(os.sep, "/"): info.size
            for info in self.files.walk(self.path(folder))
        }

    def sizes_of(self, paths: Iterable[str]) -> list[int | None]:
        """Returns the size of each file in bytes, None for a missing file."""
        return self._for_each(self.size, paths)

    def read(self, relative: str, limit: int | None = MAX_READ_BYTES) -> bytes:
        """Reads a whole file; see `Files.read` for `limit` and for the errors."""
        return self.files.read(self.path(relative), limit)

    def read_ranges(self, relative: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Reads parts of a file, (offset, length) in bytes; OSError if it ends before one does."""
        return self.files.read_ranges(self.path(relative), ranges)

    def open(self, relative: str) -> BinaryIO:
        """Opens a file for reading at any position. Raises OSError if it cannot be read."""
        return self.files.open(self.path(relative))

    def arrow_source(self, relative: str) -> str | BinaryIO:
        """Returns what pyarrow can read a file from."""
        return arrow_source(self.path(relative))

    @contextlib.contextmanager
    def create(self, relative: str, *, durable: bool = False) -> Iterator[HashingFile]:
        """Writes a new file that appears, whole, when the block ends, unless the block raises.

        A file whose presence says that other files are complete is `durable`: even after a power
        cut it is whole or absent.
        """
        path, temporary = self.writable_path(relative), self.temporary()
        with self.files.create(path, temporary, self.deferred, durable=durable) as file:
            yield HashingFile(file)

    @contextlib.contextmanager
    def together(self) -> Iterator[Self]:
        """Yields a view of the store that uploads objects several at a time when the block ends.

        They are missing if the block raises. On this machine, the view makes no difference.
        """
        uploads: list[Callable[[], object]] = []
        yield dataclasses.replace(self, deferred=uploads)
        in_parallel(lambda upload: upload(), uploads)

    def write(
        self, relative: str, data: bytes, samples: int | None = None, *, durable: bool = False
    ) -> FileDigest:
        """Writes a whole file at once; see `create` for `durable`."""
        with self.create(relative, durable=durable) as file:
            file.write(data)
        return FileDigest(relative, file.size, file.sha256, samples)

    def update(self, relative: str, data: bytes, *, durable: bool = False) -> bool:
        """Writes a whole file unless it already holds these bytes; returns whether it did so."""
        if self.size(relative) == len(data) and self.read(relative, None) == data:
            return False
        self.write(relative, data, durable=durable)
        return True

    def temporary(self) -> str:
        """Returns a unique absolute path for a file that is being written.

        The process is part of the name, so that leftovers of a killed process can be recognised.
        """
        return self.writable_path(f"{TEMPORARY}/{this_process().name}+{uuid.uuid4().hex}")

    def digest(self, relative: str) -> str:
        """Returns the hexadecimal SHA-256 of a file's content."""
        with self.open(relative) as file:
            return hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()

    def move(self, source: str, target: str) -> None:
        """Renames a file, replacing the target."""
        self.files.move(self.writable_path(source), self.writable_path(target))

    def move_all(self, moves: Iterable[tuple[str, str]]) -> None:
        """Renames files, (source, target), except missing ones; the new names reach the disk."""
        moves = list(moves)

        def move(paths: tuple[str, str]) -> None:
            with contextlib.suppress(FileNotFoundError):
                self.move(*paths)

        self._for_each(move, moves)
        for folder in sorted({parent(self.path(target)) for _, target in moves}):
            self.files.sync_folder(folder)

    def copy_into(self, other: Self, copies: Iterable[tuple[str, str]]) -> None:
        """Copies files, each given as (source, target in the other store).

        The storage itself makes the copies within one kind of it; else this process reads them.
        """

        def copy(paths: tuple[str, str]) -> None:
            source, target = paths
            if self.is_remote == other.is_remote:
                other.files.copy(self.path(source), other.writable_path(target))
            else:
                with self.open(source) as file, other.create(target) as copied:
                    shutil.copyfileobj(file, copied)

        self._for_each(copy, copies)

    def delete(self, relative: str) -> None:
        """Removes a file if it exists."""
        self.files.delete(self.writable_path(relative))

    def delete_all(self, paths: Iterable[str]) -> None:
        """Removes files; a missing file is not an error."""
        self._for_each(self.delete, paths)

    def delete_tree(self, relative: str) -> None:
        """Removes a folder and everything below it, if it exists."""
        self.files.delete_tree(self.writable_path(relative))

    def walk(self, relative: str) -> Iterator[str]:
        """Yields the relative paths of all files below a folder, sorted, those elsewhere last."""
        below = {f: p for f, p in self.elsewhere.items() if f.startswith(f"{relative}/")}
        return (
            f"{folder}{info.path.removeprefix(place)}".replace(os.sep, "/").lstrip("/")
            for folder, place in {relative: self.path(relative), **below}.items()
            for info in self.files.walk(place)
        )

    def remove_temporary(self) -> None:
        """Removes the half-written files of processes that are known to have ended."""
        if not self.is_remote:  # Object storage holds no half-written files.
            self.remove_each(TEMPORARY, _is_leftover)

    def remove_each(self, folder: str, is_obsolete: Callable[[str], bool]) -> None:
        """Removes the files and folders directly in a folder that are obsolete by their name."""
        path = self.path(folder)
        for name in filter(is_obsolete, map(posixpath.basename, self.files.file_paths(path))):
            self.delete(f"{folder}/{name}")
        for name in filter(is_obsolete, self.files.folder_names(path)):
            self.delete_tree(f"{folder}/{name}")

    def make_folder(self, relative: str) -> None:
        """Makes an empty folder, except in object storage, which has no folders."""
        self.files.make_folder(self.writable_path(relative))

    def prune(self, relative: str) -> None:
        """Removes empty folders below and including a folder, unless it is a link or in `gs://`."""
        self.files.prune(self.writable_path(relative))

    def _for_each(self, call: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Returns a call's results for items, in order; several at a time in object storage."""
        return [result for _, result in read_ahead(call, items, self.files.requests_at_once)]


@contextlib.contextmanager
def single_file(path: str) -> Iterator[tuple[Store, str]]:
    """Yields a file's folder, without an empty work folder in it, and the file's name."""
    folder, name = os.path.split(path)
    target = Store.at(folder or ".")
    target.remove_temporary()
    try:
        yield target, name
    finally:
        target.prune(WORK_FOLDER)


def _is_leftover(name: str) -> bool:
    """Returns whether a name in `TEMPORARY` is that of a process that is known to have ended."""
    match = TEMPORARY_NAME.fullmatch(name)
    return match is not None and has_ended(match["process"])
