"""Text files that a user wrote, read line by line: however large one is, a line is not."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import IO, cast

from pipeline.errors import UsageError
from pipeline.storage.files import files_of

MAX_ROW = 16 << 20
"""Most characters of a line, or of a CSV's row over several lines: boxes and outlines of a picture
with thousands of objects take a few million."""


class TextLines(Iterator[str]):
    """The lines of a text in UTF-8, each with its end.

    Args:
      path: absolute, of the file.
      flag: that named it, for messages.
      newline: as of `open`: what ends a line.
      errors: as of `open`: what becomes of bytes that are none.

    Raises:
      UsageError: a line is too long, or no text.
      OSError: the file cannot be read.
    """

    def __init__(
        self, path: str, flag: str, *, newline: str = "\n", errors: str = "strict"
    ) -> None:
        self._named = f"{flag} {path}".lstrip()
        file = cast(IO[bytes], files_of(path).open(path))
        self._file = io.TextIOWrapper(file, "utf-8-sig", errors, newline)
        self._number = 0
        self._row = 0

    def begin_row(self) -> None:
        """Says that the next line begins another row."""
        self._row = 0

    def __next__(self) -> str:
        if self._file.closed:
            raise StopIteration
        try:
            line = self._file.readline(MAX_ROW + 1)
        except UnicodeDecodeError as error:
            raise UsageError(f"{self._named} is no text in UTF-8") from error
        if not line:
            self._file.close()
            raise StopIteration
        self._number += 1
        self._row += len(line)
        if self._row > MAX_ROW:
            raise UsageError(
                f"{self._named}, line {self._number}: a row of more than {MAX_ROW} characters"
            )
        return line
