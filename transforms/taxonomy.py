"""Classes and their superclasses: ImageNet-9's, 370 of ImageNet's 1000 classes under nine
superclasses, or a dataset's own.

Source of ImageNet-9: paper section 2 (WordNet roots), the released class map
(`data/classes.csv`).
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import json
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

MAX_LABELS = 32_767
"""Most superclasses of a taxonomy: labels are int16 where they are stored."""


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """Classes, and the superclass of each.

    Attributes:
      names: superclass names; the position is the label.
      wnids: one id for each class: of WordNet, or of whatever the images' classes are called by.
      labels: superclass label of each class, `OUTSIDE` for none.
      class_names: human-readable name of each class.
      outputs: for each class its place among the outputs of the models that are evaluated; None
        where no file says it.

    Raises:
      ValueError: classes lack a label, a name or an output, or a label is no superclass's.
    """

    names: tuple[str, ...]
    wnids: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    outputs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        of_classes = (self.labels, self.class_names, self.outputs)
        if any(values is not None and len(values) != len(self.wnids) for values in of_classes):
            raise ValueError(
                f"labels, names and outputs must be those of {len(self.wnids)} classes"
            )
        if not all(OUTSIDE <= label < len(self.names) <= MAX_LABELS for label in self.labels):
            raise ValueError(f"labels must be below {len(self.names)}, or {OUTSIDE}")

    @functools.cached_property
    def _index_of_wnid(self) -> dict[str, int]:
        return {wnid: index for index, wnid in enumerate(self.wnids)}

    @property
    def num_labels(self) -> int:
        """Number of superclasses."""
        return len(self.names)

    @property
    def about(self) -> str:
        """How many there are, and a digest of them: what a dataset's configuration says."""
        text = json.dumps(self.to_json(), sort_keys=True)
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        inside = sum(label != OUTSIDE for label in self.labels)
        return f"{self.num_labels} superclasses of {inside} classes, sha256 {digest[:16]}"

    @functools.cached_property
    def is_of_imagenet(self) -> bool:
        """Whether all classes are ImageNet's, by their WordNet ids."""
        return all(imagenet_index(wnid) is not None for wnid in self.wnids)

    def holds(self, wnid: str) -> bool:
        """Whether an id is that of a class, with a superclass or without."""
        return wnid in self._index_of_wnid

    def index_of(self, wnid: str) -> int:
        """Place of a class in `wnids`. Raises KeyError for an id that is none of the classes'."""
        return self._index_of_wnid[wnid]

    def label_of(self, wnid: str) -> int:
        """Superclass label of a class; `OUTSIDE` for classes outside and for unknown ids."""
        index = self._index_of_wnid.get(wnid)
        return OUTSIDE if index is None else self.labels[index]

    def to_json(self) -> dict[str, Any]:
        """Its fields that are not None, of JSON's types."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None}

    def label_of_output(self) -> NDArray[np.int64]:
        """(len(wnids),) int64: the superclass label of each output of a model over the classes."""
        return np.asarray(self.labels, np.int64)


@functools.cache
def imagenet9() -> Taxonomy:
    """The ImageNet-9 taxonomy over ImageNet's 1000 classes, from the packaged table; labels of
    370 are 0 to 8, in order of `IN9_NAMES`."""
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


@functools.cache
def _imagenet_names() -> dict[str, int | None]:
    """Output index by name in small letters, None for a name that several classes have."""
    found: dict[str, int | None] = {}
    for index, names in enumerate(imagenet9().class_names):
        for name in {name.casefold() for name in names.split(", ")}:
            found[name] = None if name in found else index
    return found


def imagenet_output(name: str) -> int | None:
    """Output index that models of ImageNet have for what somebody calls a class.

    Args:
      name: a WordNet id, or one of ImageNet's names, in small letters or large.

    Returns:
      None for what is neither, and for a name that several classes have, such as crane.
    """
    index = imagenet_index(name)
    return _imagenet_names().get(name.casefold()) if index is None else index


def imagenet_index(wnid: str) -> int | None:
    """Output index that models of ImageNet have for a class, None for any other class."""
    taxonomy = imagenet9()
    return taxonomy.index_of(wnid) if taxonomy.holds(wnid) else None
