"""Tar archives, read in place: the names of their members, and each member's offset in the file.

An archive is refused as a whole if a member could point outside it (an absolute path, a path with
`..`, a link, a device), because an archive of images has no such members.
"""

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
from typing import IO, Any, cast

from pipeline.errors import UsageError
from pipeline.inputs.location import Location
from pipeline.inputs.source_images import HIDDEN
from pipeline.storage.files import files_of
from transforms.limits import MAX_ANNOTATION_BYTES, MAX_PICTURE_BYTES, Unread

COMPRESSED = (".tar.gz", ".tgz")
ARCHIVES = (".tar", *COMPRESSED)

_MAX_HEADER_BYTES = 1 << 20
"""Largest size of one member's headers, which are held in memory. Most have 512 bytes, and a long
name takes a few thousand."""
_MAX_UNPACKED_BYTES = 2 << 30
"""Largest size to which an archive of annotations may unpack, including all archives inside it. The
boxes of ImageNet's train split have 20 MB compressed, and about 1 GB unpacked."""
_FIRST = 50
"""Number of members that are looked at to find out what an archive holds."""
_MAX_DEPTH = 3
"""Largest number of archives inside each other, counting the outermost. ImageNet's annotations have
two levels: an archive with one archive for each class."""

Unpacker = Callable[[Any], Any]
"""A function that opens a compressed file."""
_COMPRESSIONS: dict[bytes, Unpacker] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
"""Functions that open a compressed file, by the first bytes of the file."""


def unpacker_of(start: bytes) -> Unpacker | None:
    """Returns what opens a compressed file, given its first bytes; None if it is not compressed."""
    return next((each for magic, each in _COMPRESSIONS.items() if start.startswith(magic)), None)


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Turns any error from an archive's content into a UsageError that names the archive."""
    try:
        yield
    except (OSError, EOFError, tarfile.TarError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The error comes from the disk, and not from a decompressor.
        reason = str(error).partition("\n")[0].rstrip(":")
        raise UsageError(f"{name} is not a whole tar archive: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not a whole tar archive: {type(error).__name__}") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A file in an archive, by its path there; offset and length are bytes in `archive`."""

    archive: str
    name: str
    offset: int
    length: int

    @property
    def location(self) -> Location:
        return Location(self.archive, (self.offset, self.length))


@dataclasses.dataclass
class _Allowance:
    """Bytes that may still be unpacked from an archive and the archives inside it."""

    remaining: int


@dataclasses.dataclass(eq=False)
class _Guarded:
    """A tar file for `tarfile` to read; raises UsageError where headers or content exceed a limit.

    Attributes:
      name: name of the tar, for messages.
      allowance: number of bytes that may still be unpacked, which all nested archives share; None
        without a limit.
      start, length: position and size of the tar in the file, in bytes; the length is None if the
        tar ends with the file.
      furthest: largest position in the tar that was reached.
      readable_bytes: number of bytes that may still be read, until this attribute is set again.
    """

    file: IO[bytes]
    name: str
    allowance: _Allowance | None
    start: int = 0
    length: int | None = None
    furthest: int = 0
    readable_bytes: int = 0

    def seek(self, offset: int) -> int:
        self._reach(offset)
        return self.file.seek(self.start + offset) - self.start

    def tell(self) -> int:
        return self.file.tell() - self.start

    def read(self, size: int) -> bytes:
        self.readable_bytes -= size
        if self.readable_bytes < 0:
            raise UsageError(
                f"{self.name} is refused: the headers of a member have more than "
                f"{_MAX_HEADER_BYTES} bytes"
            )
        position = self.tell()
        self._reach(position + size)
        if self.length is not None:
            size = max(0, min(size, self.length - position))
        return self.file.read(size)

    def _reach(self, offset: int) -> None:
        if self.allowance is not None and offset > self.furthest:
            self.allowance.remaining -= offset - self.furthest
            self.furthest = offset
            if self.allowance.remaining < 0:
                raise UsageError(
                    f"{self.name} is refused: it unpacks to more than the limit of "
                    f"{_MAX_UNPACKED_BYTES} bytes"
                )


Reading = Callable[[int], bytes]
"""A function that reads the content of a member, while the iteration is at that member. It returns
`Unread` if the content has more bytes than the argument."""


def members(path: str, inside: Member | None = None) -> Iterator[tuple[Member, Reading]]:
    """Yields the files in an uncompressed archive, each with a function that reads its content.

    If the member `inside` is given, which is an archive itself, its files are yielded instead.
    Raises UsageError if the file is not an archive, is incomplete, or is refused.
    """
    name = path if inside is None else f"{path}/{inside.name}"
    start, length = (0, None) if inside is None else (inside.offset, inside.length)
    with files_of(path).open(path) as file:
        file.seek(start)
        if name.lower().endswith(COMPRESSED):
            beginning = file.read(16)[:length].partition(b"\0")[0]
            raise UsageError(
                f"{name} is compressed, so that images cannot be read from it in place. "
                "Unpack it once to a .tar"
                if unpacker_of(beginning)
                else f"{name} is not a gzip archive (it begins with "
                f"{beginning.decode(errors='replace')!r}); download it again, or call it .tar if "
                "it is one"
            )
        for info, read in _walk(_Guarded(file, name, None, start, length)):
            yield Member(path, _name(info), start + info.offset_data, info.size), read


def first_names(path: str) -> list[str]:
    """Returns the first file names of an archive, in lower case. Raises the errors of `members`."""
    return [member.name.lower() for member, _ in itertools.islice(members(path), _FIRST)]


def stream(path: str) -> Iterator[tuple[str, bytes]]:
    """Yields the name and content of each file in an archive and in the archives inside it.

    The archives may be compressed. The content is `Unread` if it has more bytes than an annotation
    may have. Raises the errors of `members`, and UsageError if the archive unpacks to too many
    bytes.
    """
    with files_of(path).open(path) as file:
        yield from _stream(cast(IO[bytes], file), path, _Allowance(_MAX_UNPACKED_BYTES), 1)


def _stream(
    file: IO[bytes], name: str, allowance: _Allowance, depth: int
) -> Iterator[tuple[str, bytes]]:
    unpack = unpacker_of(file.read(8))
    file.seek(0)
    unpacked = file if unpack is None else unpack(file)
    for info, read in _walk(_Guarded(unpacked, name, allowance)):
        if HIDDEN.search(_name(info)):
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


def _walk(file: _Guarded) -> Iterator[tuple[tarfile.TarInfo, Reading]]:
    """Yields the regular files of an archive, in their order."""
    with naming(file.name):
        file.readable_bytes = _MAX_HEADER_BYTES
        with tarfile.open(fileobj=cast(IO[bytes], file), mode="r:") as tar:
            while (info := tar.next()) is not None:
                _check(info, file.name)
                if info.isfile():
                    yield info, functools.partial(_read, file, tar, info)
                # The library would keep all members in memory.
                tar.members = []  # type: ignore[attr-defined]
                file.readable_bytes = _MAX_HEADER_BYTES
            # Only a zero block ends an archive, but the library also stops at a damaged header and
            # at the end of the file.
            file.seek(tar.offset)
            end = file.read(tarfile.BLOCKSIZE)
    if end.strip(b"\0") or len(end) < tarfile.BLOCKSIZE:
        raise UsageError(
            f"{file.name} is damaged or not complete: no end mark after its last member"
        )


def _read(file: _Guarded, tar: tarfile.TarFile, info: tarfile.TarInfo, limit: int) -> bytes:
    """Reads the content of a member, as `Reading` describes."""
    if info.size > limit:
        return Unread.from_size(info.size, limit)
    content = tar.extractfile(info)
    assert content is not None
    file.readable_bytes = info.size
    with naming(file.name):
        return content.read()


def _check(info: tarfile.TarInfo, archive: str) -> None:
    """Raises UsageError for a member that could point outside its archive."""
    if info.issym() or info.islnk():
        problem = "a link"
    elif info.issparse() or not (info.isfile() or info.isdir()):
        problem = "neither a plain file nor a folder"
    elif info.name.startswith(("/", "\\")) or info.name[1:3] in (":/", ":\\"):
        problem = "at an absolute path"
    elif ".." in info.name.replace("\\", "/").split("/"):
        problem = "outside it"
    else:
        return
    raise UsageError(f"{archive} is refused: its member {info.name!r} is {problem}")
