"""Locations: where the bytes of an image or of an annotation lie.

A location names a file, a part of a file such as a member of a tar, or a value in a Parquet file;
or it holds a short text itself. A listing makes it. In tables and memories of checksums it is one
line of text, as a path is; every absolute path is the line of its file.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import pyarrow as pa

from pipeline.errors import TooLargeError, UsageError, one_line
from pipeline.storage.files import arrow_source, files_of, is_remote, never_read
from pipeline.storage.interface import MAX_READ_BYTES, REQUESTS_IN_FLIGHT
from pipeline.storage.state_files import parquet_reader, tells_damage
from transforms.hashing import text_bytes
from transforms.limits import MAX_PICTURE_BYTES, Unread

_PART = "part:"
_ROW = "row:"
_TEXT = "text:"

_ROWS_AT_ONCE = 8
"""Number of images that are decoded at a time on the way to the wanted image."""
_ROWS_IN_FLIGHT = 2
_BUFFER_BYTES = 1 << 20
_UNPACKED = 20
"""Largest number of bytes of a row group for each byte of its file, where files may be large."""
_ROWS_OF_TEXT, _BYTES_AT_ONCE = 65_536, 256 << 20
"""Largest number of rows, and of bytes, in a batch of a table."""
MAX_TEXT = 131_072
"""Largest number of characters of a value in a table; also the limit of Python's CSV reader."""


class Location(NamedTuple):
    """Where some content lies.

    >>> Location.parse("part:1536+240:/data/val.tar")
    Location(path='/data/val.tar', span=(1536, 240), row=None, text=None)

    Attributes:
      path: absolute path of the file; empty for a text.
      span: (offset, length) in bytes of a part of the file; None for the whole file.
      row: (row group, row in the group, column) of a binary value in a Parquet file. The column is
        a path such as `image.bytes`, without a colon.
      text: the content itself, if it is short.
    """

    path: str = ""
    span: tuple[int, int] | None = None
    row: tuple[int, int, str] | None = None
    text: str | None = None

    @classmethod
    def parse(cls, line: str) -> Self:
        """Makes a location from its `line`."""
        if line.startswith(_TEXT):
            return cls(text=line.removeprefix(_TEXT))
        if line.startswith(_PART):
            span, path = line.removeprefix(_PART).split(":", 1)
            offset, length = span.split("+")
            return cls(path, span=(int(offset), int(length)))
        if line.startswith(_ROW):
            group, row, column, path = line.removeprefix(_ROW).split(":", 3)
            return cls(path, row=(int(group), int(row), column))
        return cls(line)

    @property
    def line(self) -> str:
        """The location as a line of text, which for a whole file is its path."""
        if self.span is not None:
            return f"{_PART}{self.span[0]}+{self.span[1]}:{self.path}"
        if self.row is not None:
            return f"{_ROW}{self.row[0]}:{self.row[1]}:{self.row[2]}:{self.path}"
        return self.path if self.text is None else _TEXT + self.text


NOWHERE = Location()
"""The location of what is not there."""


def shown(location: Location) -> str:
    """Describes a location for messages."""
    if location.span is not None:
        return f"{location.path}, {location.span[1]} bytes at {location.span[0]}"
    if location.row is not None:
        return f"{location.path}, row {location.row[1]} of row group {location.row[0]}"
    return location.path or "the list of boxes"


def reads_ahead(locations: Iterable[Location]) -> int:
    """Returns how many locations to read at once: 0 if all are here, few if a read takes memory."""
    remote = (location for location in locations if is_remote(location.path))
    return max((_ROWS_IN_FLIGHT if each.row else REQUESTS_IN_FLIGHT for each in remote), default=0)


def read_location(location: Location) -> bytes:
    """Reads the bytes of a location.

    Returns `Unread` if there are more than a picture may have, or if no machine can read the file.
    Raises OSError if the bytes cannot be read, UsageError if a Parquet file is damaged.
    """
    path, span, row, text = location
    if text is not None:
        return text_bytes(text)
    if row is not None:
        data = _read_row(path, *row)
        is_large = len(data) > MAX_PICTURE_BYTES
        return Unread.from_size(len(data), MAX_PICTURE_BYTES) if is_large else data
    if span is not None and span[1] > MAX_PICTURE_BYTES:
        return Unread.from_size(span[1], MAX_PICTURE_BYTES)
    try:
        if span is not None:
            return files_of(path).read_ranges(path, [span])[0]
        return files_of(path).read(path, MAX_PICTURE_BYTES)
    except TooLargeError as error:
        return Unread.from_size(error.size, MAX_PICTURE_BYTES)
    except (UsageError, OSError):
        if reason := never_read(path):
            return Unread(text_bytes(reason))
        raise


def changed(place: str) -> OSError:
    """Returns the error for content that differs from its listing or from an earlier read.

    The place is the path of its file, or its location as `shown`.
    """
    return OSError(f"{place} has changed while it was read. Run the same command again")


@contextlib.contextmanager
def open_parquet(path: str, flag: str = "") -> Iterator[Any]:
    """Opens a Parquet file (`ParquetFile`), so that only little of it is read at a time.

    Raises UsageError if the file is not Parquet, has two columns of one name, or is damaged where
    it is read.
    """
    source, name = arrow_source(path), f"{flag} {path}".lstrip()
    try:
        with parquet_reader(source, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            refuse_twins(file.schema_arrow.names, path, flag)
            yield file
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} has columns whose names or texts are not UTF-8") from error
    except (pa.ArrowException, OSError) as error:
        if not tells_damage(error):
            raise
        raise UsageError(f"{name} is not a whole Parquet file: {one_line(error)}") from error


def refuse_twins(columns: Sequence[str], path: str, flag: str) -> None:
    """Raises UsageError if two columns of a table have one name, because rows would keep one."""
    if len(set(columns)) < len(columns):
        raise UsageError(
            f"{flag} {path} has two columns {Counter(columns).most_common(1)[0][0]!r}".lstrip()
        )


def rows_of(
    file: Any, path: str, columns: Sequence[str] | None = None
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yields (number of the row group, number of the row in it, values) for each row.

    The Parquet file is read in pieces that fit into memory, and only its `columns`, unless None.
    Raises UsageError if a row group or a value is larger than the limit.
    """
    for group in range(file.num_row_groups):
        chunks = column_chunks(file, path, group, columns)
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        _refuse_large(path, group, size, MAX_READ_BYTES)
        # One dictionary entry may hold almost all of the bytes, and every row may refer to it.
        batch_rows = _ROWS_OF_TEXT
        if any(chunk.has_dictionary_page for chunk in chunks):
            batch_rows = max(1, min(_ROWS_OF_TEXT, _BYTES_AT_ONCE // max(size, 1)))
        batches = file.iter_batches(batch_rows, row_groups=[group], columns=columns)
        for number, row in enumerate(_values(batches, f"{path}, row group {group}")):
            for name, value in _texts(row):
                if len(value) > MAX_TEXT:
                    raise UsageError(
                        f"{path}, row {number + 1} of row group {group}, column {name}: "
                        f"{len(value)} characters, more than the limit of {MAX_TEXT}"
                    )
            yield group, number, row


def column_chunks(
    file: Any, path: str, group: int, columns: Sequence[str] | None = None
) -> list[Any]:
    """Returns pyarrow's metadata of some columns of a row group; none if the group has no rows.

    The first row is read before: an error in the metadata of a column is an exception then, and
    would end the process here, because pyarrow 25 does not pass on that exception of C++.

    Raises UsageError if the row group is too large to read a row. If only some columns are read
    (all if None), others may hold pictures, which can hardly be compressed.
    """
    metadata, schema, limit = file.metadata.row_group(group), file.schema, MAX_READ_BYTES
    if columns is not None and (info := files_of(path).info(path)) is not None:
        limit = max(limit, _UNPACKED * info.size)
    _refuse_large(path, group, metadata.total_byte_size, limit)
    if next(file.iter_batches(1, row_groups=[group], columns=columns), None) is None:
        return []
    return [
        metadata.column(number)
        for number in range(len(schema))
        if columns is None or schema.column(number).path in columns
    ]


def _refuse_large(path: str, group: int, size: int, limit: int) -> None:
    if size > limit:
        raise UsageError(
            f"{path} has {size} bytes in the columns of row group {group}, more than the limit of "
            f"{limit}; write it with smaller row groups"
        )


def _values(batches: Iterable[pa.RecordBatch], name: str) -> Iterator[dict[str, Any]]:
    """Yields the values of each row. Raises UsageError for text that is not UTF-8."""
    first = 1
    for batch in batches:
        try:
            yield from batch.to_pylist()
        except UnicodeDecodeError as error:
            for column, values in zip(batch.schema.names, batch.columns, strict=True):
                for number, value in enumerate(values, first):
                    try:
                        value.as_py()
                    except UnicodeDecodeError:
                        raise UsageError(
                            f"{name}, row {number}, column {column}: not text in UTF-8"
                        ) from error
        first += len(batch)


def _texts(row: dict[str, Any]) -> Iterator[tuple[str, str | bytes]]:
    for name, value in row.items():
        if isinstance(value, str | bytes):
            yield name, value
        elif isinstance(value, dict):
            yield from _texts(value)


def _read_row(path: str, group: int, row: int, column: str) -> bytes:
    """Reads a value, b"" for null; decodes those before it in its row group, a few at a time."""
    with open_parquet(path) as file:
        first = 0
        for batch in file.iter_batches(
            _ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False
        ):
            if row < first + len(batch):
                values = batch.column(0)
                for name in column.split(".")[1:]:
                    values = values.field(name)
                return values[row - first].as_py() or b""
            first += len(batch)
    raise OSError(f"{path} has no row {row} in row group {group}")
