"""Tar archives, read in place: what they hold, where in the file it lies.

Nothing is unpacked. An archive with a member that could reach out of it (an absolute path, a
path with `..`, a link, a device) is refused whole: it is not what it claims to be.
"""

from __future__ import annotations

import dataclasses
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO, cast

from pipeline.errors import UsageError
from pipeline.inputs.found import is_hidden
from pipeline.inputs.place import part_of
from pipeline.storage.files import files_of

COMPRESSED = (".tar.gz", ".tgz")
ARCHIVES = (".tar", *COMPRESSED)


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive.

    Attributes:
      archive: path of the file that holds it, absolute.
      name: path in the archive.
      offset, length: of its content in that file, in bytes.
    """

    archive: str
    name: str
    offset: int
    length: int

    @property
    def place(self) -> str:
        """Where its content lies."""
        return part_of(self.archive, self.offset, self.length)


class _Window(io.RawIOBase):
    """Some bytes of a file, as a file."""

    def __init__(self, file: BinaryIO, offset: int, length: int) -> None:
        self._file = file
        self._offset = offset
        self._length = length
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._offset + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data


def members(path: str, inside: Member | None = None) -> Iterator[tuple[Member, IO[bytes]]]:
    """The files in an archive that is not compressed, each with a way to read it now.

    Args:
      path: of the archive, absolute.
      inside: an archive in it, whose files to give.

    Raises:
      UsageError: it is no archive, is incomplete, or is refused.
      OSError: it cannot be read.
    """
    name = path if inside is None else f"{path}/{inside.name}"
    if name.lower().endswith(COMPRESSED):
        raise UsageError(
            f"{name} is compressed: images in it have no place to be read from. "
            "Unpack it once to a .tar"
        )
    with files_of(path).open(path) as file:
        window = cast(IO[bytes], file)
        start = 0
        if inside is not None:
            start = inside.offset
            window = cast(IO[bytes], _Window(file, start, inside.length))
        for info, content in _walk(window, name, "r:"):
            offset = start + info.offset_data
            yield Member(path, _name(info), offset, info.size), content


def stream(path: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in an archive, compressed or not; those in archives in
    it, too.

    Raises:
      UsageError, OSError: as `members`.
    """
    with files_of(path).open(path) as file:
        yield from _stream(cast(IO[bytes], file), path)


def _stream(file: IO[bytes], name: str) -> Iterator[tuple[str, bytes]]:
    for info, content in _walk(file, name, "r:*"):
        data = content.read()
        if is_hidden(_name(info)):
            continue
        if info.name.lower().endswith(ARCHIVES):
            yield from _stream(io.BytesIO(data), f"{name}/{info.name}")
        else:
            yield _name(info), data


def _name(info: tarfile.TarInfo) -> str:
    return info.name.removeprefix("./")


def _walk(file: IO[bytes], name: str, mode: str) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The regular files of an archive, in their order."""
    try:
        with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                _check(info, name)
                if info.isfile():
                    content = tar.extractfile(info)
                    assert content is not None
                    yield info, content
                # The library keeps all of them.
                tar.members = []
            # Only a zero block ends an archive; the library takes a damaged header, or the end
            # of the file, for one.
            tar.fileobj.seek(tar.offset)
            end = tar.fileobj.read(tarfile.BLOCKSIZE)
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # Of the disk, and not of a decompressor.
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UsageError(f"{name} is not a whole tar archive: {reason}") from error
    if end.strip(b"\0") or len(end) < tarfile.BLOCKSIZE:
        raise UsageError(f"{name} is damaged or not complete: no end mark after its last member")


def _check(info: tarfile.TarInfo, archive: str) -> None:
    """Refuses what could reach out of an archive."""
    if info.issym() or info.islnk():
        what = "a link"
    elif info.issparse() or not (info.isfile() or info.isdir()):
        what = "neither a plain file nor a folder"
    elif info.name.startswith(("/", "\\")) or info.name[1:2] == ":":
        what = "at an absolute path"
    elif ".." in info.name.replace("\\", "/").split("/"):
        what = "outside it"
    else:
        return
    raise UsageError(f"{archive} is refused: its member {info.name!r} is {what}")
