"""Tables of results: CSV files whose columns are the fields of types.

A field's `msgspec.Meta(description=...)` is the meaning of its column, unless that is the same in
all tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import get_args, get_type_hints

import msgspec

from pipeline.storage.csv_file import write_csv
from pipeline.storage.store import Store


class OfModel(msgspec.Struct, frozen=True):
    """The first column of tables with rows of all models."""

    model: str


class RunColumns(msgspec.Struct, frozen=True):
    """The last columns of tables, which say how a model was run."""

    split: str
    eval_input: str
    precision: str
    weights_sha256: str
    dataset: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file in `results/`.

    Attributes:
      name: name of the file without `.csv`.
      parts: the types whose fields are the columns, in order.
      description: what a row holds, for the reference.
    """

    name: str
    parts: tuple[type[msgspec.Struct], ...]
    description: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(name for part in self.parts for name in part.__struct_fields__)

    @property
    def meanings(self) -> Mapping[str, str]:
        """Meanings of columns that the types give, by column."""
        hints = [get_type_hints(part, include_extras=True) for part in self.parts]
        return {
            name: extra.description
            for of_part in hints
            for name, hint in of_part.items()
            for extra in get_args(hint)
            if isinstance(extra, msgspec.Meta) and extra.description
        }

    def write(self, store: Store, rows: Iterable[Iterable[msgspec.Struct]]) -> None:
        """Writes the table.

        Args:
          store: the dataset folder.
          rows: for each row, values that have its columns as fields; a column that none of them has
            is empty, and further fields are left out.
        """
        lines = (
            {
                name: value
                for part in row
                for name, value in msgspec.structs.asdict(part).items()
                if value is not msgspec.UNSET
            }
            for row in rows
        )
        write_csv(store, self.name, self.columns, lines)
