"""Classes and their superclasses.

ImageNet-9 groups 370 of ImageNet's 1000 classes into nine superclasses; a dataset may define its
own. Source of ImageNet-9: paper section 2, and the released class map (`data/classes.csv`).
"""

import csv
import dataclasses
import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from transforms.hashing import text_digest

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
"""Names of the superclasses in order of their labels. They are the names of the released dataset's
folders, without the folders' numeric prefix."""

OUTSIDE = -1
"""Label of a class that belongs to no superclass."""

MAX_LABELS = 32_767
"""Maximum number of superclasses, because predicted labels are kept as int16."""


@dataclasses.dataclass(frozen=True)
class Taxonomy:
    """A set of classes, each with its superclass.

    Attributes:
      names: superclass names; the position of a name is the superclass's label.
      wnids: id of each class: its WordNet id, or any other id that the dataset uses.
      labels: superclass label of each class, `OUTSIDE` if the class has no superclass.
      class_names: human-readable name of each class.
      outputs: the index of each class among the outputs of the evaluated models; None if the
        taxonomy file does not give it.

    Raises:
      ValueError: the columns of the classes differ in length, a label has no superclass, there are
        more than `MAX_LABELS` superclasses, or a text is not printable.
    """

    names: tuple[str, ...]
    wnids: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]
    outputs: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        columns = (self.labels, self.class_names, self.outputs)
        if any(column is not None and len(column) != len(self.wnids) for column in columns):
            raise ValueError(
                "labels, names and outputs must have one entry for each of the "
                f"{len(self.wnids)} classes"
            )
        if not all(OUTSIDE <= label < len(self.names) <= MAX_LABELS for label in self.labels):
            raise ValueError(f"labels must be below {len(self.names)}, or {OUTSIDE}")
        for text in (*self.names, *self.wnids, *self.class_names):
            if not text.isprintable():
                raise ValueError(f"the name of a class is not printable: {text!r}")

    @functools.cached_property
    def index_of(self) -> Mapping[str, int]:
        """The position in `wnids` of each class, which may lack a superclass."""
        return {wnid: index for index, wnid in enumerate(self.wnids)}

    @property
    def num_labels(self) -> int:
        return len(self.names)

    @functools.cached_property
    def description(self) -> str:
        """Text by which a dataset's configuration identifies the taxonomy: counts and a digest."""
        digest = text_digest(json.dumps(self.to_json(), sort_keys=True))
        inside = sum(label != OUTSIDE for label in self.labels)
        return f"{self.num_labels} superclasses of {inside} classes, sha256 {digest[:16]}"

    @functools.cached_property
    def is_of_imagenet(self) -> bool:
        """Whether all ids are WordNet ids of ImageNet's classes."""
        return all(imagenet_index(wnid) is not None for wnid in self.wnids)

    def label_of(self, wnid: str) -> int:
        """Returns a class's superclass label; `OUTSIDE` if the class has none or is unknown."""
        index = self.index_of.get(wnid)
        return OUTSIDE if index is None else self.labels[index]

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that are not None, ready to be encoded as JSON."""
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if value is not None}


@functools.cache
def imagenet9() -> Taxonomy:
    """Reads the ImageNet-9 taxonomy over ImageNet's 1000 classes from the packaged table.

    The labels of 370 classes are 0 to 8, which are positions in `IN9_NAMES`; the label of the other
    classes is `OUTSIDE`.
    """
    table = resources.files("transforms") / "data" / "classes.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    return Taxonomy(
        names=IN9_NAMES,
        wnids=tuple(row["wnid"] for row in rows),
        labels=tuple(int(row["label"]) for row in rows),
        class_names=tuple(row["names"] for row in rows),
    )


@functools.cache
def _imagenet_names() -> dict[str, int | None]:
    """Maps lowercase names to output indices; names that several classes share map to None."""
    outputs: dict[str, int | None] = {}
    for index, names in enumerate(imagenet9().class_names):
        for name in {name.casefold() for name in names.split(", ")}:
            outputs[name] = None if name in outputs else index
    return outputs


def imagenet_output(name: str) -> int | None:
    """Finds the output of ImageNet models for a WordNet id or a class name, in any letter case.

    Returns None if the name is unknown, or if several classes share it, such as crane.
    """
    index = imagenet_index(name)
    return _imagenet_names().get(name.casefold()) if index is None else index


def imagenet_index(wnid: str) -> int | None:
    """Returns the output index of ImageNet models for a WordNet id; None for any other id."""
    return imagenet9().index_of.get(wnid)
