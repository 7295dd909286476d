"""Texts and tables that a user wrote, read by line or by row, so that they may be of any size.

A table is CSV, Parquet, JSON (a list of objects) or JSON lines.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

from pipeline.errors import UsageError
from pipeline.inputs.location import open_parquet, rows_of
from pipeline.storage.files import files_of
from transforms.limits import load_json

MAX_ROW = 16 << 20
"""Largest number of characters in a line, or in a CSV row of several lines. The boxes and outlines
of a picture with thousands of objects take a few million characters."""


class TextLines(Iterator[str]):
    """Iterator over the lines of a text in UTF-8, each with its line end.

    Args:
      path: absolute path of the file.
      flag: the flag that named the file, for messages.
      newline: which line ends count, as in `open`.
      errors: how to treat bytes that are not UTF-8, as in `open`.

    Raises:
      UsageError: a line is too long, or is not UTF-8.
      OSError: the file cannot be read.
    """

    def __init__(
        self, path: str, flag: str, *, newline: str = "\n", errors: str = "strict"
    ) -> None:
        self._name = f"{flag} {path}".lstrip()
        file = cast(IO[bytes], files_of(path).open(path))
        self._file = io.TextIOWrapper(file, "utf-8-sig", errors, newline)
        self._number = 0
        self._row = 0

    def begin_row(self) -> None:
        """Starts a new row with the next line, so that the limit counts from there."""
        self._row = 0

    def __next__(self) -> str:
        if self._file.closed:
            raise StopIteration
        try:
            line = self._file.readline(MAX_ROW + 1)
        except UnicodeDecodeError as error:
            raise UsageError(f"{self._name} is not text in UTF-8") from error
        if not line:
            self._file.close()
            raise StopIteration
        self._number += 1
        self._row += len(line)
        if self._row > MAX_ROW:
            raise UsageError(
                f"{self._name}, line {self._number}: a row of more than {MAX_ROW} characters"
            )
        return line


@dataclasses.dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Attributes:
      path: path of the file.
      number: number of the line in a text file, or of the row in another table, counted from 1.
      values: values by column; in a CSV, all values are texts.
      unit: what the number counts, such as `line`.
    """

    path: str
    number: int
    values: Mapping[str, Any]
    unit: str = "row"

    def __str__(self) -> str:
        return f"{self.unit} {self.number}"

    def text(self, column: str) -> str:
        """Returns a value as text without blanks around it, "" for a missing value."""
        value = self.values.get(column)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        return str(value).strip()

    def integer(self, column: str) -> int:
        """Returns a value as a whole number. Raises UsageError for anything else."""
        text = self.text(column)
        try:
            value = float(text)
            if value != int(value):
                raise ValueError
            return int(value)
        except (ValueError, OverflowError):
            raise self.error(column, f"{text[:40]!r} is not a whole number") from None

    def error(self, column: str, problem: str) -> UsageError:
        """Returns the error for a value that is wrong."""
        return UsageError(f"{self.path}, {self}, column {column}: {problem}")


def read_rows(path: str, flag: str) -> Iterator[TableRow]:
    """Yields the rows of a table; the suffix of the file tells the format.

    Args:
      path: absolute path of the table.
      flag: the flag that named the table, for messages.

    Raises:
      UsageError: the file does not have the format that its suffix tells, or has no rows.
      OSError: the file cannot be read.
    """
    suffix = os.path.splitext(path)[1].lower()
    read = {".parquet": _parquet, ".json": _json, ".jsonl": _json_lines}.get(suffix, _csv)
    is_empty = True
    for row in read(path, flag):
        is_empty = False
        yield row
    if is_empty:
        raise UsageError(f"{flag} {path} has no rows")


def column_names(path: str, flag: str) -> tuple[str, ...]:
    """Returns the names of the columns, from the schema or else from the first row. Arguments and
    errors are those of `read_rows`."""
    if path.lower().endswith(".parquet"):
        with open_parquet(path, flag) as file:
            return tuple(file.schema_arrow.names)
    for row in read_rows(path, flag):
        return tuple(row.values)
    return ()


def _csv(path: str, flag: str) -> Iterator[TableRow]:
    text = TextLines(path, flag, newline="")
    lines = csv.reader(text, strict=True)
    try:
        header = [name.strip() for name in next(lines, [])]
        if len(set(header)) < len(header):
            repeated = next(name for name in header if header.count(name) > 1)
            raise UsageError(f"{flag} {path} has two columns {repeated!r}")
        for cells in lines:
            text.begin_row()
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(header):
                raise UsageError(
                    f"{path}, line {lines.line_num}: {len(cells)} values for {len(header)} columns"
                )
            yield TableRow(path, lines.line_num, dict(zip(header, cells, strict=True)), "line")
    except csv.Error as error:
        raise UsageError(f"{path}, line {lines.line_num}: {error}") from error


def _parquet(path: str, flag: str) -> Iterator[TableRow]:
    with open_parquet(path, flag) as file:
        for number, (_, _, values) in enumerate(rows_of(file, path), 1):
            yield TableRow(path, number, values)


def read_json(path: str, flag: str) -> Any:
    """Reads a JSON file. Raises UsageError if it is not JSON, OSError if it cannot be read."""
    try:
        return load_json(files_of(path).read(path).decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{flag} {path} is not text in UTF-8") from error
    except ValueError as error:
        raise UsageError(f"{flag} {path} is not JSON: {error}") from error


def _json(path: str, flag: str) -> Iterator[TableRow]:
    content = read_json(path, flag)
    if not isinstance(content, list):
        raise UsageError(f"{flag} {path} is not a list of objects")
    for number, values in enumerate(content, 1):
        yield _object(path, number, values)


def _json_lines(path: str, flag: str) -> Iterator[TableRow]:
    text = TextLines(path, flag)
    for number, line in enumerate(text, 1):
        text.begin_row()
        if line.strip():
            try:
                values = load_json(line)
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: not JSON: {error}") from error
            yield _object(path, number, values, "line")


def _object(path: str, number: int, values: Any, unit: str = "row") -> TableRow:
    if not isinstance(values, dict):
        raise UsageError(f"{path}, {unit} {number}: not an object of column names and values")
    return TableRow(path, number, {str(name): value for name, value in values.items()}, unit)
