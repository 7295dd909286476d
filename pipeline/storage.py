"""Files of a dataset folder: whole or absent, hashed while they are written."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from typing import BinaryIO, cast

WORK_FOLDER = ".in9"
"""Folder of a dataset for everything that is not part of it."""

TEMPORARY = f"{WORK_FOLDER}/tmp"
"""Folder of files that are being written."""


@dataclasses.dataclass(frozen=True)
class FileDigest:
    """What a manifest says of a file.

    Attributes:
      path: relative to the dataset folder, with forward slashes.
      bytes: size.
      sha256: hexadecimal.
      samples: rows or samples inside, None for a file that holds none.
    """

    path: str
    bytes: int
    sha256: str
    samples: int | None = None


class HashingFile:
    """A binary file being written, with its size and SHA-256 so far."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0
        self.closed = False

    def write(self, data: bytes) -> int:
        """Appends bytes; returns their number."""
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def flush(self) -> None:
        """Hands buffered bytes to the system."""
        self._file.flush()

    def close(self) -> None:
        """Nothing: `Store.create` closes the file, after its writers."""

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    @property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the bytes so far."""
        return self._hash.hexdigest()


@dataclasses.dataclass(frozen=True)
class Store:
    """A dataset folder. All paths are relative to it, with forward slashes.

    Attributes:
      root: absolute path of the folder.
    """

    root: str

    def path(self, relative: str) -> str:
        """Absolute path of a file."""
        return os.path.join(self.root, relative)

    def exists(self, relative: str) -> bool:
        """Whether the file is there."""
        return os.path.isfile(self.path(relative))

    def size(self, relative: str) -> int | None:
        """Size in bytes, None if the file is not there."""
        try:
            return os.stat(self.path(relative)).st_size
        except FileNotFoundError:
            return None

    def read(self, relative: str) -> bytes:
        """The whole file. Raises OSError if it cannot be read."""
        with open(self.path(relative), "rb") as file:
            return file.read()

    def read_ranges(self, relative: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Parts of a file, each given as (offset, length) in bytes.

        Raises:
          OSError: the file cannot be read, or ends before a part does.
        """
        parts = []
        with open(self.path(relative), "rb", buffering=0) as file:
            for offset, length in ranges:
                part = os.pread(file.fileno(), length, offset)
                if len(part) != length:
                    raise OSError(f"{file.name} ends before byte {offset + length}")
                parts.append(part)
        return parts

    @contextlib.contextmanager
    def create(self, relative: str) -> Iterator[HashingFile]:
        """Writes a new file under a temporary name, and renames it when the block ends.

        A block that raises leaves nothing behind.
        """
        final = self.path(relative)
        # Host and process, to know what a killed process has left; the rest makes it unique.
        name = f"{socket.gethostname()}+{os.getpid()}+{uuid.uuid4().hex}"
        temporary = self.path(f"{TEMPORARY}/{name}")
        os.makedirs(os.path.dirname(temporary), exist_ok=True)
        os.makedirs(os.path.dirname(final), exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield HashingFile(cast(BinaryIO, file))
            os.replace(temporary, final)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.remove(temporary)
            raise

    def write(self, relative: str, data: bytes, samples: int | None = None) -> FileDigest:
        """Writes a whole file at once."""
        with self.create(relative) as file:
            file.write(data)
        return FileDigest(relative, file.size, file.sha256, samples)

    def update(self, relative: str, data: bytes) -> bool:
        """Writes a whole file unless it holds these bytes already; returns whether it did."""
        if self.exists(relative) and self.read(relative) == data:
            return False
        self.write(relative, data)
        return True

    def digest(self, relative: str) -> str:
        """Hexadecimal SHA-256 of a file's content."""
        with open(self.path(relative), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def move(self, source: str, target: str) -> None:
        """Renames a file, replacing the target."""
        os.makedirs(os.path.dirname(self.path(target)), exist_ok=True)
        os.replace(self.path(source), self.path(target))

    def delete(self, relative: str) -> None:
        """Removes a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.path(relative))

    def delete_tree(self, relative: str) -> None:
        """Removes a folder and all below it, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.path(relative))

    def walk(self, relative: str) -> Iterator[str]:
        """Relative paths of all files below a folder, sorted within each folder."""
        for folder, folders, files in os.walk(self.path(relative)):
            folders.sort()
            for name in sorted(files):
                path = os.path.relpath(os.path.join(folder, name), self.root)
                yield path.replace(os.sep, "/")

    def remove_temporary(self) -> None:
        """Removes what killed processes of this host left half-written."""
        for path in list(self.walk(TEMPORARY)):
            host, pid, _ = os.path.basename(path).rsplit("+", 2)
            if host == socket.gethostname() and not is_alive(int(pid)):
                self.delete(path)

    def prune(self, relative: str) -> None:
        """Removes the empty folders below a folder, and the folder itself if it is empty."""
        for folder, _, _ in os.walk(self.path(relative), topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def is_alive(pid: int) -> bool:
    """Whether a process of this host is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
