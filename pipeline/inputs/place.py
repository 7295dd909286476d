"""Places: where the bytes of an image or of an annotation lie, as a line of text.

A file by its path; a part of a file, such as a member of a tar; an image in a Parquet file; or
the bytes themselves. Lines, since they travel through Beam, tables and memories of checksums
as paths do. Every absolute path is the place of its file.
"""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.files import files_of, is_for_arrow, is_remote
from pipeline.storage.parallel import REQUESTS_IN_FLIGHT

_PART = "part:"
_ROW = "row:"
_TEXT = "text:"

_ROWS_AT_ONCE = 8
"""Images that are decoded at the same time on the way to one."""
_ROWS_IN_FLIGHT = 2
_BUFFER_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Place:
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
    def of(cls, place: str) -> Place:
        """Takes a place apart.

        >>> Place.of("part:1536+240:/data/val.tar").span
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


def part_of(path: str, offset: int, length: int) -> str:
    """The place of some bytes in a file."""
    return f"{_PART}{offset}+{length}:{path}"


def row_of(path: str, group: int, row: int, column: str) -> str:
    """The place of a binary value in a Parquet file.

    Args:
      path: absolute, of the file.
      group: number of the row group.
      row: number of the row in it.
      column: path of the column, such as `image.bytes`; without a colon.
    """
    return f"{_ROW}{group}:{row}:{column}:{path}"


def text_place(text: str) -> str:
    """The place of a short text, which it holds itself."""
    return _TEXT + text


def shown(place: str) -> str:
    """A place in words."""
    taken = Place.of(place)
    if taken.span is not None:
        return f"{taken.path}, {taken.span[1]} bytes at {taken.span[0]}"
    if taken.row is not None:
        return f"{taken.path}, row {taken.row[1]} of row group {taken.row[0]}"
    return taken.path or "the list of boxes"


def reads_ahead(place: str) -> int:
    """How many places of a kind to read at the same time: those that wait for a network, and
    few of those that take much memory."""
    taken = Place.of(place)
    if not is_remote(taken.path):
        return 0
    return REQUESTS_IN_FLIGHT if taken.row is None else _ROWS_IN_FLIGHT


def read_place(place: str) -> bytes:
    """What lies in a place. Raises OSError if that cannot be read."""
    taken = Place.of(place)
    if taken.text is not None:
        return taken.text.encode("utf-8", "surrogatepass")
    if taken.span is not None:
        ((data),) = files_of(taken.path).read_ranges(taken.path, [taken.span])
        return data
    if taken.row is not None:
        return _read_row(taken.path, *taken.row)
    return files_of(taken.path).read(taken.path)


def open_parquet(path: str) -> pq.ParquetFile:
    """Opens a Parquet file for reading little of it at a time. Raises OSError if it cannot be read,
    pyarrow's ArrowException if it is none."""
    source = path if is_for_arrow(path) else files_of(path).open(path)
    return pq.ParquetFile(source, buffer_size=_BUFFER_BYTES, pre_buffer=False)


def _read_row(path: str, group: int, row: int, column: str) -> bytes:
    """A value, null as no bytes. Of its row group, what lies before it is decoded, a few
    values at a time."""
    try:
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
    except pa.ArrowException as error:
        raise OSError(f"{path} could not be read: {error}") from error
    raise OSError(f"{path} has no row {row} in row group {group}")
