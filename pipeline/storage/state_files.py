"""Files that one job leaves for the next, JSON and Parquet, and CSV files for people.

JSON and Parquet files may be damaged or forged; after a power cut, the newest may be empty or
truncated under their final names. A file that cannot be parsed, or whose content has other types,
counts as missing: a warning names the file, and the job that needs it makes it again. `read_commit`
and `read_table` are stricter, and raise errors.

CSV files have fixed columns, and the same bytes for the same rows. Spreadsheets take text that
begins with `=`, `+`, `-`, `@`, a tab or a carriage return for a formula, and a formula may start
programs. Such text gets an apostrophe in front; numbers do not. If apostrophes already stand before
such a character, the text gets one more, so that `read_csv` always removes exactly one.
"""

import csv
import functools
import io
import json
import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import JobError, TooLargeError, UsageError, one_line, shown_bytes
from pipeline.storage.store import Store
from transforms import limits

_LOG = logging.getLogger(__name__)
_warned: set[str] = set()
"""Paths of the files that a warning has named."""

_learning = threading.Lock()
_known: set[object] = set()
"""Types of `convert` that msgspec has learned."""

T = TypeVar("T")

Name = Annotated[str, msgspec.Meta(pattern=r"\A(?!\.)[^/\\\x00-\x1f]{1,255}\Z")]
"""Name of a file or folder, which is not a path and does not begin with a dot."""
RelativePath = Annotated[
    str, msgspec.Meta(pattern=r"\A(?:(?!\.)[^/\\\x00-\x1f]+/)*(?!\.)[^/\\\x00-\x1f]+\Z")
]
"""Normalised path below a folder, without names that begin with a dot."""


parquet_writer = functools.partial(pq.ParquetWriter, write_page_checksum=True)  # noqa: TID251
"""Makes pyarrow's writer of a Parquet file, whose pages have checksums (CRC-32)."""
parquet_reader = functools.partial(pq.ParquetFile, page_checksum_verification=True)  # noqa: TID251
"""Makes pyarrow's reader of a Parquet file, which compares pages with the checksums they have."""


class DamagedError(JobError):
    """A file cannot be parsed. The message names it."""


class NotJsonError(ValueError):
    """Bytes are not JSON, as is usual for a file that was not written whole."""


def convert(content: object, kind: type[T], *, strict: bool = True) -> T:
    """Converts parsed JSON as `msgspec.convert` does, which must not be called directly.

    If not `strict`, text may stand for a number. Raises ValueError, which says where, if the
    content has another structure.

    msgspec keeps what it learns about a type in the type, where other threads find it before it is
    complete. If the first two conversions to a type run at once, this can end the process with
    signal 11 (msgspec 0.22.0), so only one thread at a time lets msgspec learn.
    """
    if kind not in _known:
        with _learning:
            msgspec.json.Decoder(kind)  # noqa: TID251
        _known.add(kind)
    return msgspec.convert(content, kind, strict=strict)  # noqa: TID251


def parse_json(data: bytes, kind: type[T]) -> T:
    """Parses JSON into a type, which may turn objects into dataclasses and lists into tuples.

    Raises NotJsonError if the bytes are not JSON; ValueError, which says where, if the content has
    another structure.
    """
    try:
        # Not msgspec's own parser, because it refuses file names that are not valid UTF-8.
        content = limits.load_json(data)
    except ValueError as error:
        raise NotJsonError(str(error) if data.strip(b"\0") else "it is empty") from error
    return convert(content, kind)


def json_bytes(content: object) -> bytes:
    """Encodes JSON for a file: equal content gives equal bytes, which are ASCII."""
    return shown_bytes(json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_json(store: Store, path: str, kind: type[T]) -> T | None:
    """Reads a JSON file; returns None if it is missing or damaged."""
    return read_intact(store, path, lambda: parse_json(store.read(path), kind))


def read_commit(store: Store, path: str, parse: Callable[[bytes], T]) -> T | None:
    """Reads a JSON file of content stored nowhere else, which must not be overwritten unasked.

    `parse` raises the errors of `parse_json`. Returns None if the file is missing, too large, or
    not JSON (`NotJsonError`). Raises UsageError if the content has another structure.
    """

    def read() -> T:
        data = store.read(path)
        try:
            return parse(data)
        except NotJsonError:
            raise
        except ValueError as error:
            raise UsageError(
                f"{store.path(path)} cannot be used: {one_line(error)}. If it is damaged, remove "
                "it, and run the command that made it again"
            ) from error

    return read_intact(store, path, read)


def read_table(
    store: Store, path: str, columns: list[str] | None = None, **options: Any
) -> pa.Table:
    """Reads a Parquet file, with options of pyarrow's `read_table`.

    Raises DamagedError if it is not a Parquet file, or lacks a column.
    """
    return parse_parquet(
        store,
        path,
        lambda source: pq.read_table(  # noqa: TID251
            source, columns=columns, page_checksum_verification=True, **options
        ),
    )


def parse_parquet(store: Store, path: str, parse: Callable[[Any], T]) -> T:
    """Calls a pyarrow function on a file; raises the errors of `read_table`."""
    source = store.arrow_source(path)
    try:
        return parse(source)
    except (pa.ArrowException, ValueError, OSError) as error:
        if not tells_damage(error):
            raise
        raise DamagedError(
            f"{store.path(path)} is damaged ({one_line(error)}); remove it, and run the command "
            "that made it again"
        ) from error


def tells_damage(error: Exception) -> bool:
    """Returns whether an Arrow error means damaged content, not a failed read or lack of memory."""
    if isinstance(error, OSError):
        # The system's errors have a number, and object stores raise subclasses of OSError. Arrow's
        # errors about broken content are plain OSErrors without a number.
        return error.errno is None and type(error) is OSError
    return not isinstance(error, MemoryError)


def read_intact(store: Store, path: str, read: Callable[[], T]) -> T | None:
    """Calls a function that reads a file; returns None if the file is missing or damaged.

    It raises FileNotFoundError or NotADirectoryError for a missing file, ValueError, DamagedError
    or TooLargeError for a damaged one.
    """
    try:
        return read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, DamagedError, TooLargeError) as error:
        warn_damaged(store.path(path), one_line(error))
        return None


def warn_damaged(path: str, cause: str) -> None:
    """Warns once per process that a file counts as missing."""
    if path in _warned:
        return
    _warned.add(path)
    # Errors for users already name the file, and say after a semicolon what to do.
    damage = cause.partition(";")[0] if path in cause else f"{path} is damaged ({cause})"
    _LOG.warning("%s: it counts as missing", damage)


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


class _LineFeedRows(io.StringIO):
    """A text buffer whose rows end with a line feed.

    The csv module's `lineterminator` would leave values with carriage returns without the quotes
    that the module's reader needs.
    """

    def write(self, row: str, /) -> int:
        return super().write(row.removesuffix("\r\n") + "\n")


def csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    """Returns a CSV file with these columns; further entries are left out, missing ones empty."""
    text = _LineFeedRows()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: guarded(value) for name, value in row.items()} for row in rows)
    return shown_bytes(text.getvalue())


def read_csv(data: bytes) -> Iterator[dict[str, str]]:
    """Yields the rows of a file that `csv_bytes` made, without the added apostrophes."""
    for row in csv.DictReader(io.StringIO(data.decode(), newline="")):
        yield {name: unguarded(value) for name, value in row.items()}


def guarded(value: Any) -> Any:
    """Returns a value for a CSV file: text that spreadsheets would run gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def unguarded(text: str) -> str:
    """Returns the text that `guarded` has made safe."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
