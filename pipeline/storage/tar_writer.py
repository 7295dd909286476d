"""Tar shards with reproducible bytes and known offsets."""

from __future__ import annotations

import tarfile
from typing import Protocol

_BLOCK = 512


class Writable(Protocol):
    """A file to which bytes can be written."""

    def write(self, data: bytes, /) -> int: ...


class TarWriter:
    """A tar file whose members have a fixed owner, mode and time, and known offsets."""

    def __init__(self, file: Writable) -> None:
        self._file = file
        self._offset = 0

    def add(self, name: str, data: bytes) -> int:
        """Appends a file; returns the offset of its content in the tar, in bytes."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.mode = 0o644
        header = info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        offset = self._offset + len(header)
        padding = -len(data) % _BLOCK
        self._file.write(header)
        self._file.write(data)
        self._file.write(bytes(padding))
        self._offset = offset + len(data) + padding
        return offset

    def close(self) -> None:
        """Writes the end-of-archive mark."""
        self._file.write(bytes(2 * _BLOCK))
