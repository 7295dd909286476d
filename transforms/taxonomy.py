"""The ImageNet-9 taxonomy: 370 of ImageNet's 1000 classes under nine superclasses.

Source: paper section 2 (WordNet roots), the released class map (`data/classes.csv`).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Mapping
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

IN9_NAMES = (
    "dog",
    "bird",
    "wheeled vehicle",
    "reptile",
    "carnivore",
    "insect",
    "musical instrument",
    "primate",
    "fish",
)
"""Superclass names by label, as in the released folder names without their prefix."""

OUTSIDE = -1
"""Label of a class that belongs to no superclass."""


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """Classes, and the superclass of each.

    Attributes:
      names: superclass names; the position is the label.
      wnids: one WordNet id for each class; the position is the model output index.
      labels: superclass label of each class, `OUTSIDE` for none.
      class_names: human-readable name of each class.
    """

    names: tuple[str, ...]
    wnids: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    @functools.cached_property
    def _index_of_wnid(self) -> dict[str, int]:
        return {wnid: index for index, wnid in enumerate(self.wnids)}

    @property
    def num_labels(self) -> int:
        """Number of superclasses."""
        return len(self.names)

    def index_of(self, wnid: str) -> int:
        """Output index of a class. Raises KeyError for a wnid that is none of the classes."""
        return self._index_of_wnid[wnid]

    def label_of(self, wnid: str) -> int:
        """Superclass label of a class; `OUTSIDE` for classes outside and for unknown wnids."""
        index = self._index_of_wnid.get(wnid)
        return OUTSIDE if index is None else self.labels[index]

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads, of JSON's types."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Taxonomy:
        """The inverse of `to_json`; lists stand for tuples."""
        return cls(**{name: tuple(values) for name, values in fields.items()})

    def label_of_output(self) -> NDArray[np.int64]:
        """(len(wnids),) int64: the superclass label of each output of a model over the classes."""
        return np.asarray(self.labels, np.int64)


@functools.cache
def imagenet9() -> Taxonomy:
    """The ImageNet-9 taxonomy over ImageNet's 1000 classes, from the packaged table."""
    table = resources.files("transforms") / "data" / "classes.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    if [int(row["index"]) for row in rows] != list(range(1000)):
        raise ValueError("data/classes.csv must list the output indices 0 to 999 in order")
    return Taxonomy(
        names=IN9_NAMES,
        wnids=tuple(row["wnid"] for row in rows),
        labels=tuple(int(row["label"]) for row in rows),
        class_names=tuple(row["names"] for row in rows),
    )
