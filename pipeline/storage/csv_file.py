"""CSV files that commands write: fixed columns, and the same bytes for the same rows.

Spreadsheets take text that begins with `=`, `+`, `-`, `@`, a tab or a carriage return for a
formula, and a formula may start programs. Such text gets an apostrophe in front; numbers do not. If
apostrophes already stand before such a character, the text gets one more, so that `read_csv` always
removes exactly one.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pipeline.errors import shown_bytes

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")


class _LineFeedRows(io.StringIO):
    """A text buffer whose rows end with a line feed. Setting the csv module's `lineterminator`
    would not work, because values with carriage returns would lose the quotes that the module's
    reader needs."""

    def write(self, row: str, /) -> int:
        return super().write(row.removesuffix("\r\n") + "\n")


def csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> bytes:
    """Returns the content of a CSV file.

    Args:
      columns: names of the columns, in order. Other entries of a row are left out, and missing
        entries become empty.
      rows: the values of each row, by column.
    """
    text = _LineFeedRows()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: _guarded(value) for name, value in row.items()} for row in rows)
    return shown_bytes(text.getvalue())


def read_csv(data: bytes) -> Iterator[dict[str, str]]:
    """Yields the rows of a file that `csv_bytes` made, without the added apostrophes."""
    for row in csv.DictReader(io.StringIO(data.decode(), newline="")):
        yield {name: value[bool(_GUARDED.match(value)) :] for name, value in row.items()}


def _guarded(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value
