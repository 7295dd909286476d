"""Tables of results as CSV files, whose columns are the fields of types.

A field's `msgspec.Meta(description=...)` is the meaning of its column, unless that is the same in
all tables.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import get_args, get_type_hints

import msgspec

from pipeline.storage.state_files import csv_bytes
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
      structs: the types whose fields are the columns, in order.
      description: what a row holds, for the reference.
    """

    name: str
    structs: tuple[type[msgspec.Struct], ...]
    description: str

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(name for struct in self.structs for name in struct.__struct_fields__)

    @property
    def meanings(self) -> Mapping[str, str]:
        """Meanings of columns that the types give, by column."""
        return {
            name: extra.description
            for struct in self.structs
            for name, hint in get_type_hints(struct, include_extras=True).items()
            for extra in get_args(hint)
            if isinstance(extra, msgspec.Meta) and extra.description
        }

    def write(self, store: Store, rows: Iterable[Iterable[msgspec.Struct]]) -> None:
        """Writes the table.

        Args:
          rows: for each row, values that have its columns as fields; a column that none of them has
            is empty, and further fields are left out.
        """
        store.update(f"results/{self.name}.csv", csv_bytes(self.columns, self.lines(rows)))

    def lines(self, rows: Iterable[Iterable[msgspec.Struct]]) -> list[dict[str, object]]:
        """Returns the columns of each row, by name; the argument is that of `write`."""
        columns = self.columns
        return [
            {
                name: value
                for struct in row
                for name, value in msgspec.structs.asdict(struct).items()
                if name in columns and value is not msgspec.UNSET
            }
            for row in rows
        ]
