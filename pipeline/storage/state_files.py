"""Files that one job leaves for the next: JSON and Parquet, which may be damaged or made up.

After a power cut the newest files may stand under their final names empty or in part. What
cannot be parsed counts as not there: whoever needs it makes it again, and a warning names the
file. Forms are checked by type, so that a file of another form is damaged, too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import JobError, TooLargeError, UsageError, in_short
from pipeline.storage.store import Store

_LOG = logging.getLogger(__name__)
_warned: set[str] = set()
"""Paths of the files that were warned of."""

T = TypeVar("T")

Name = Annotated[str, msgspec.Meta(pattern=r"\A(?!\.)[^/\\\x00-\x1f]{1,255}\Z")]
"""Name of a file or folder: no path, and none that begins with a dot."""
RelativePath = Annotated[
    str, msgspec.Meta(pattern=r"\A(?:(?!\.)[^/\\\x00-\x1f]+/)*(?!\.)[^/\\\x00-\x1f]+\Z")
]
"""Path below a folder, normalised, without names that begin with a dot."""


class DamagedError(JobError):
    """A file that cannot be parsed. The message names it."""


class NotJsonError(ValueError):
    """Bytes that are no JSON, since they were not written whole."""


def parse_json(data: bytes, kind: type[T]) -> T:
    """Parses JSON by a type: dataclasses are made of objects, tuples of lists.

    Raises:
      NotJsonError: it is no JSON.
      ValueError: it is of another form; the message says where.
    """
    try:
        # Not msgspec's own parser, which refuses names of files that are not in UTF-8.
        content = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotJsonError(str(error) if data.strip(b"\0") else "it is empty") from error
    return msgspec.convert(content, kind)


def read_json(store: Store, path: str, kind: type[T]) -> T | None:
    """What a JSON file says; None if it is not there, or damaged.

    Raises:
      OSError: it cannot be read.
    """
    return read_intact(store, path, lambda: parse_json(store.read(path), kind))


def read_commit(store: Store, path: str, parse: Callable[[bytes], T]) -> T | None:
    """What a JSON file says that nothing else tells, and that is not made again unasked.

    Args:
      store: the folder that it lies in.
      path: of the file.
      parse: of `parse_json`'s kind.

    Returns:
      None if it is not there, or no JSON, since it was not written whole.

    Raises:
      UsageError: it is of another form.
      OSError: it cannot be read.
    """

    def read() -> T:
        data = store.read(path)
        try:
            return parse(data)
        except ValueError as error:
            if isinstance(error, NotJsonError):
                raise
            raise UsageError(
                f"{store.path(path)} cannot be used: {in_short(error)}. If it is damaged, remove "
                "it, and run the command that made it again"
            ) from error

    return read_intact(store, path, read)


def read_table(store: Store, path: str, columns: list[str] | None = None, **how: Any) -> pa.Table:
    """A Parquet file's table; arguments as `pyarrow.parquet.read_table`.

    Raises:
      DamagedError: it is no Parquet file, or lacks a column.
      OSError: it cannot be read.
    """
    return parse_parquet(store, path, lambda source: pq.read_table(source, columns=columns, **how))


def parse_parquet(store: Store, path: str, parse: Callable[[Any], T]) -> T:
    """What a function of pyarrow makes of a file; errors as `read_table`."""
    source = store.arrow_source(path)
    try:
        return parse(source)
    except (pa.ArrowException, ValueError, OSError) as error:
        if not tells_damage(error):
            raise
        raise DamagedError(
            f"{store.path(path)} is damaged ({in_short(error)}); remove it, and run the command "
            "that made it again"
        ) from error


def tells_damage(error: Exception) -> bool:
    """Whether an error of pyarrow's says that content is broken, and not that it cannot be read or
    does not fit into memory."""
    if isinstance(error, OSError):
        # Those of the system have a number, those of object stores a type of their own; what
        # Arrow says of broken content has neither.
        return error.errno is None and type(error) is OSError
    return not isinstance(error, MemoryError)


def read_intact(store: Store, path: str, read: Callable[[], T]) -> T | None:
    """What reading a file gives; None if it is not there, or damaged.

    Args:
      store: the folder that it lies in.
      path: of the file.
      read: raises FileNotFoundError, and what damage provokes: ValueError or DamagedError.
    """
    try:
        return read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, DamagedError, TooLargeError) as error:
        warn_damaged(store.path(path), in_short(error))
        return None


def warn_damaged(path: str, cause: str) -> None:
    """Says, once a process, that a file counts as not there."""
    if path in _warned:
        return
    _warned.add(path)
    # A cause that names the file already, as errors for people do, is enough.
    what = cause.partition(";")[0] if path in cause else f"{path} is damaged ({cause})"
    _LOG.warning("%s: it counts as not there", what)
