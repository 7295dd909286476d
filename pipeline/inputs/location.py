"""Places: where the bytes of an image or of an annotation lie, as a line of text.

A file by its path; a part of a file, such as a member of a tar; an image in a Parquet file; or
the bytes themselves. Lines, since they travel through Beam, tables and memories of checksums
as paths do. Every absolute path is the place of its file.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import TooLargeError, UsageError, in_short
from pipeline.storage.file_kind import MAX_READ_BYTES
from pipeline.storage.files import arrow_source, files_of, is_remote
from pipeline.storage.parallel import REQUESTS_IN_FLIGHT
from pipeline.storage.state_files import tells_damage
from transforms.limits import MAX_PICTURE_BYTES, Unread

_PART = "part:"
_ROW = "row:"
_TEXT = "text:"

_ROWS_AT_ONCE = 8
"""Images that are decoded at the same time on the way to one."""
_ROWS_IN_FLIGHT = 2
_BUFFER_BYTES = 1 << 20
_ROWS_OF_TEXT, _BYTES_AT_ONCE = 65_536, 256 << 20
MAX_TEXT = 131_072
"""Most characters of a value in a table: that of Python's reader of CSV."""


@dataclasses.dataclass(frozen=True)
class Location:
    """A place, taken apart.

    Attributes:
      path: of the file, absolute; empty if there is none.
      span: (offset, length) in bytes of a part of it.
      row: (row group, row in that, column) of a value in a Parquet file.
      text: the content itself.
    """

    path: str = ""
    span: tuple[int, int] | None = None
    row: tuple[int, int, str] | None = None
    text: str | None = None

    @classmethod
    def parse(cls, place: str) -> Location:
        """Takes a place apart.

        >>> Location.parse("part:1536+240:/data/val.tar").span
        (1536, 240)
        """
        if place.startswith(_TEXT):
            return cls(text=place.removeprefix(_TEXT))
        if place.startswith(_PART):
            span, path = place.removeprefix(_PART).split(":", 1)
            offset, length = span.split("+")
            return cls(path, span=(int(offset), int(length)))
        if place.startswith(_ROW):
            group, row, column, path = place.removeprefix(_ROW).split(":", 3)
            return cls(path, row=(int(group), int(row), column))
        return cls(place)

    @property
    def is_file(self) -> bool:
        """Whether it is a whole file."""
        return self.span is None and self.row is None and self.text is None


def member_location(path: str, offset: int, length: int) -> str:
    """The place of some bytes in a file."""
    return f"{_PART}{offset}+{length}:{path}"


def row_location(path: str, group: int, row: int, column: str) -> str:
    """The place of a binary value in a Parquet file.

    Args:
      path: absolute, of the file.
      group: number of the row group.
      row: number of the row in it.
      column: path of the column, such as `image.bytes`; without a colon.
    """
    return f"{_ROW}{group}:{row}:{column}:{path}"


def text_location(text: str) -> str:
    """The place of a short text, which it holds itself."""
    return _TEXT + text


def shown(place: str) -> str:
    """A place in words."""
    taken = Location.parse(place)
    if taken.span is not None:
        return f"{taken.path}, {taken.span[1]} bytes at {taken.span[0]}"
    if taken.row is not None:
        return f"{taken.path}, row {taken.row[1]} of row group {taken.row[0]}"
    return taken.path or "the list of boxes"


def reads_ahead(place: str) -> int:
    """How many places of a kind to read at the same time: those that wait for a network, and
    few of those that take much memory."""
    taken = Location.parse(place)
    if not is_remote(taken.path):
        return 0
    return REQUESTS_IN_FLIGHT if taken.row is None else _ROWS_IN_FLIGHT


def read_location(place: str) -> bytes:
    """What lies in a place: `Unread` where that is larger than a picture may be. Raises OSError if
    it cannot be read."""
    taken = Location.parse(place)
    if taken.text is not None:
        return taken.text.encode("utf-8", "surrogatepass")
    if taken.row is not None:
        data = _read_row(taken.path, *taken.row)
        return data if len(data) <= MAX_PICTURE_BYTES else _unread(len(data))
    if taken.span is not None:
        if taken.span[1] > MAX_PICTURE_BYTES:
            return _unread(taken.span[1])
        return files_of(taken.path).read_ranges(taken.path, [taken.span])[0]
    try:
        return files_of(taken.path).read(taken.path, MAX_PICTURE_BYTES)
    except TooLargeError as error:
        return _unread(error.size)


def _unread(size: int) -> Unread:
    return Unread.from_size(size, MAX_PICTURE_BYTES)


@contextlib.contextmanager
def open_parquet(path: str, flag: str = "") -> Iterator[pq.ParquetFile]:
    """Opens a Parquet file for reading little of it at a time, while the block runs.

    Args:
      path: absolute.
      flag: that named it, for messages.

    Raises:
      UsageError: it is none, or is damaged where it is read.
      OSError: it cannot be read.
    """
    source = arrow_source(path)
    try:
        with pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        if not tells_damage(error):
            raise
        named = f"{flag} {path}".lstrip()
        raise UsageError(f"{named} is not a whole Parquet file: {in_short(error)}") from error


def rows_of(
    file: pq.ParquetFile, path: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The rows of a Parquet file, read in pieces that fit into memory: (number of the row group, of
    the row in it, values).

    Args:
      file: as opened.
      path: of it, for messages.
      columns: paths of those that are read, all if None.

    Raises:
      UsageError: a row group has more text than is read at a time, or a value has.
    """
    for group in range(file.num_row_groups):
        about = file.metadata.row_group(group)
        chunks = [about.column(number) for number in range(about.num_columns)]
        read = [c for c in chunks if columns is None or c.path_in_schema in columns]
        size = sum(chunk.total_uncompressed_size for chunk in read)
        if size > MAX_READ_BYTES:
            raise UsageError(
                f"{path} has {size} bytes in the columns of row group {group}, more than the "
                f"limit of {MAX_READ_BYTES}; write it with smaller row groups"
            )
        # Many rows may name the same entry of a dictionary, which can be almost all of it.
        shared = any(chunk.has_dictionary_page for chunk in read)
        rows = (
            max(1, min(_ROWS_OF_TEXT, _BYTES_AT_ONCE // max(size, 1))) if shared else _ROWS_OF_TEXT
        )
        batches = file.iter_batches(rows, row_groups=[group], columns=columns)
        for number, row in enumerate(row for batch in batches for row in batch.to_pylist()):
            for name, value in _texts(row):
                if len(value) > MAX_TEXT:
                    raise UsageError(
                        f"{path}, row {number + 1} of row group {group}, column {name}: "
                        f"{len(value)} characters, more than the limit of {MAX_TEXT}"
                    )
            yield group, number, row


def _texts(row: dict[str, Any]) -> Iterator[tuple[str, str | bytes]]:
    for name, value in row.items():
        if isinstance(value, str | bytes):
            yield name, value
        elif isinstance(value, dict):
            yield from _texts(value)


def _read_row(path: str, group: int, row: int, column: str) -> bytes:
    """A value, null as no bytes. Of its row group, what lies before it is decoded, a few
    values at a time."""
    with open_parquet(path) as file:
        before = 0
        for batch in file.iter_batches(
            _ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False
        ):
            if row < before + len(batch):
                values = batch.column(0)
                for name in column.split(".")[1:]:
                    values = values.field(name)
                return values[row - before].as_py() or b""
            before += len(batch)
    raise OSError(f"{path} has no row {row} in row group {group}")
