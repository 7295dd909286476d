"""CSV files of results: fixed columns, the same bytes for the same rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.storage.store import Store


def csv_bytes(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A CSV file's content.

    Args:
      columns: in order; other entries of the rows are left out, missing ones empty.
      rows: by column.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


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
