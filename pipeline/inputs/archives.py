"""Tar archives, read in place: what they hold, where in the file it lies.

Nothing is unpacked. An archive with a member that could reach out of it (an absolute path, a
path with `..`, a link, a device) is refused whole: it is not what it claims to be.
"""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import functools
import gzip
import io
import itertools
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, cast

from pipeline.errors import UsageError
from pipeline.inputs.location import member_location
from pipeline.inputs.source_images import is_hidden
from pipeline.storage.files import files_of
from transforms.limits import MAX_ANNOTATION_BYTES, MAX_PICTURE_BYTES, Unread

COMPRESSED = (".tar.gz", ".tgz")
ARCHIVES = (".tar", *COMPRESSED)

_MAX_HEADER_BYTES = 1 << 20
"""Of what an archive says of a member before its content: mostly 512 bytes, and some thousand for
names that are long. It is held in memory."""
_MAX_UNPACKED_BYTES = 2 << 30
"""Of an archive of annotations with all archives in it: the boxes of ImageNet's train, compressed
to 20 MB, have about 1 GB."""
_FIRST = 50
"""How many members tell what an archive holds."""
_MAX_DEPTH = 3
"""Archives in each other: ImageNet's annotations have one for each class in theirs."""

_COMPRESSIONS: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
"""First bytes of a compressed file, and what reads it."""


def unpacker_of(start: bytes) -> Callable[[Any], Any] | None:
    """What reads a compressed file that begins so, None for one that is not compressed."""
    return next((r for magic, r in _COMPRESSIONS.items() if start.startswith(magic)), None)


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Raises UsageError with an archive's name for what its content provokes in readers."""
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # Of the disk, and not of a decompressor.
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UsageError(f"{name} is not a whole tar archive: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not a whole tar archive: {type(error).__name__}") from error


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
        return member_location(self.archive, self.offset, self.length)


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


class _Guarded:
    """A file that the library reads a tar from, and that ends the reading of a member that claims
    too much.

    Args:
      file: the tar.
      name: of it, for messages.
      allowance: how many bytes may be unpacked in all, of this file and others; None if none are.
    """

    def __init__(self, file: IO[bytes], name: str, allowance: _Allowance | None) -> None:
        self._file = file
        self._name = name
        self._allowance = allowance
        self._furthest = 0
        self.left = 0
        """Bytes that may be read now."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET:
            self._reach(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
            raise UsageError(
                f"{self._name} is refused: it says more of a member than {_MAX_HEADER_BYTES} bytes"
            )
        self._reach(self._file.tell() + size)
        return self._file.read(size)

    def _reach(self, offset: int) -> None:
        if self._allowance is not None and offset > self._furthest:
            self._allowance.left -= offset - self._furthest
            self._furthest = offset
            if self._allowance.left < 0:
                raise UsageError(
                    f"{self._name} is refused: it unpacks to more than the limit of "
                    f"{_MAX_UNPACKED_BYTES} bytes"
                )


@dataclasses.dataclass
class _Allowance:
    """Bytes that may be unpacked of an archive and of those in it."""

    left: int


Reading = Callable[[int], bytes]
"""Reads a member's content where it is met: `Unread` if it has more bytes than the argument."""


def members(path: str, inside: Member | None = None) -> Iterator[tuple[Member, Reading]]:
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
        for info, read in _walk(_Guarded(window, name, None), name):
            offset = start + info.offset_data
            yield Member(path, _name(info), offset, info.size), read


def first_names(path: str) -> list[str]:
    """Returns names of the first files in an archive in lower case. Raises like `members`."""
    return [member.name.lower() for member, _ in itertools.islice(members(path), _FIRST)]


def stream(path: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files in an archive, compressed or not; those in archives in
    it, too. The content of one that is too large for an annotation is `Unread`.

    Raises:
      UsageError, OSError: as `members`; or it unpacks to too much.
    """
    with files_of(path).open(path) as file:
        yield from _stream(cast(IO[bytes], file), path, _Allowance(_MAX_UNPACKED_BYTES), 1)


def _stream(
    file: IO[bytes], name: str, allowance: _Allowance, depth: int
) -> Iterator[tuple[str, bytes]]:
    packed = unpacker_of(file.read(8))
    file.seek(0)
    unpacked = file if packed is None else packed(file)
    for info, read in _walk(_Guarded(unpacked, name, allowance), name):
        if is_hidden(_name(info)):
            continue
        if not info.name.lower().endswith(ARCHIVES):
            yield _name(info), read(MAX_ANNOTATION_BYTES)
            continue
        inner = f"{name}/{info.name}"
        if depth == _MAX_DEPTH or info.size > MAX_PICTURE_BYTES:
            raise UsageError(
                f"{inner} is refused: {info.size} bytes, {depth} archives deep; at most "
                f"{MAX_PICTURE_BYTES} and {_MAX_DEPTH - 1} are read"
            )
        yield from _stream(io.BytesIO(read(MAX_PICTURE_BYTES)), inner, allowance, depth + 1)


def _name(info: tarfile.TarInfo) -> str:
    return info.name.removeprefix("./")


def _walk(file: _Guarded, name: str) -> Iterator[tuple[tarfile.TarInfo, Reading]]:
    """The regular files of an archive, in their order."""
    with naming(name):
        file.left = _MAX_HEADER_BYTES
        with tarfile.open(fileobj=cast(IO[bytes], file), mode="r:") as tar:
            while (info := tar.next()) is not None:
                _check(info, name)
                if info.isfile():
                    yield info, functools.partial(_read, file, name, tar, info)
                # The library keeps all of them.
                tar.members = []  # type: ignore[attr-defined]
                file.left = _MAX_HEADER_BYTES
            # Only a zero block ends an archive; the library takes a damaged header, or the end
            # of the file, for one.
            file.seek(tar.offset)
            end = file.read(tarfile.BLOCKSIZE)
    if end.strip(b"\0") or len(end) < tarfile.BLOCKSIZE:
        raise UsageError(f"{name} is damaged or not complete: no end mark after its last member")


def _read(
    file: _Guarded, name: str, tar: tarfile.TarFile, info: tarfile.TarInfo, limit: int
) -> bytes:
    """See `Reading`."""
    if info.size > limit:
        return Unread.from_size(info.size, limit)
    content = tar.extractfile(info)
    assert content is not None
    file.left = info.size
    with naming(name):
        return content.read()


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
