"""Text files that a user wrote, read line by line, so that a file may be of any size."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, cast

from pipeline.errors import UsageError
from pipeline.storage.files import files_of

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
