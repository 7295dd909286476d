"""CSV files that commands write: fixed columns, the same bytes for the same rows.

A text, never a number, that begins with `=`, `+`, `-`, `@`, a tab or a carriage return gets an
apostrophe before it, since spreadsheets take it for a formula, which may start programs. So does
one that begins with such an apostrophe, and `read_csv` takes just that one away.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.storage.store import Store

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_GUARDED = re.compile(r"'+[=+\-@\t\r]")


class _LineFeedRows(io.StringIO):
    """Rows that end with a line feed: told to end them so, the library leaves carriage returns
    without the quotes that its reader needs."""

    def write(self, row: str, /) -> int:
        return super().write(row.removesuffix("\r\n") + "\n")


def csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A CSV file's content.

    Args:
      columns: in order; other entries of the rows are left out, missing ones empty.
      rows: by column.
    """
    text = _LineFeedRows()
    writer = csv.DictWriter(text, columns, extrasaction="ignore")
    writer.writeheader()
    writer.writerows({name: _guarded(value) for name, value in row.items()} for row in rows)
    return text.getvalue().encode()


def read_csv(data: bytes) -> Iterator[dict[str, str]]:
    """The rows of what `csv_bytes` made, with the texts that went in."""
    for row in csv.DictReader(io.StringIO(data.decode(), newline="")):
        yield {name: value[bool(_GUARDED.match(value)) :] for name, value in row.items()}


def _guarded(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def write_csv(
    store: Store, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
) -> bool:
    """Writes results/<name>.csv; returns whether it has changed.

    Args:
      store: the dataset folder.
      name: of the table.
      columns, rows: as for `csv_bytes`.
    """
    return store.update(f"results/{name}.csv", csv_bytes(columns, rows))
