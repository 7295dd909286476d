"""WordNet's hierarchy above ImageNet's classes, and taxonomies with synsets as superclasses.

Source: WordNet 3.0, `data/hypernyms.csv` (made by `scripts/make_hypernyms.py`; licence beside it).
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import NamedTuple

from transforms.taxonomy import OUTSIDE, Taxonomy, imagenet9


class Synset(NamedTuple):
    """A noun synset of WordNet: the ids of its direct hypernyms, and its first word."""

    parents: tuple[str, ...]
    name: str


@functools.cache
def synsets() -> Mapping[str, Synset]:
    """Reads the synsets of ImageNet's classes and of all their ancestors, by WordNet id."""
    table = resources.files("transforms") / "data" / "hypernyms.csv"
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return {row["wnid"]: Synset(tuple(row["parents"].split()), row["name"]) for row in rows}


@functools.cache
def above(wnid: str) -> frozenset[str]:
    """Returns a synset together with all of its ancestors.

    >>> {"n02084071", "n00001740"} <= above("n02085620")
    True

    Raises:
      KeyError: the id is neither one of ImageNet's classes nor an ancestor of one.
    """
    return frozenset({wnid}.union(*(above(parent) for parent in synsets()[wnid].parents)))


def classes_below(root: str) -> tuple[str, ...]:
    """Returns ImageNet's classes below a synset, and the synset if it is such a class, in order of
    their output index."""
    return tuple(wnid for wnid in imagenet9().wnids if root in above(wnid))


def wordnet_taxonomy(roots: Sequence[tuple[str, str]]) -> Taxonomy:
    """Builds a taxonomy over ImageNet's 1000 classes.

    Args:
      roots: (WordNet id, name) of each superclass, in order of the labels; an empty name stands
        for WordNet's name. A class belongs to the first root that is above it, or is the class.

    Raises:
      ValueError: no class belongs to some root, or two superclasses have the same name.
    """
    labels = {}
    names = []
    for label, (root, name) in enumerate(roots):
        below = classes_below(root)
        if not below:
            raise ValueError(f"{root} is above none of ImageNet's 1000 classes")
        unlabelled = [wnid for wnid in below if wnid not in labels]
        if not unlabelled:
            raise ValueError(f"all classes below {root} already belong to the roots before it")
        labels.update(dict.fromkeys(unlabelled, label))
        names.append(name or synsets()[root].name)
    duplicates = sorted({name for name in names if names.count(name) > 1})
    if duplicates:
        raise ValueError(f"two roots are called {duplicates[0]!r}; name them: WNID=NAME")
    classes = imagenet9()
    return Taxonomy(
        names=tuple(names),
        wnids=classes.wnids,
        labels=tuple(labels.get(wnid, OUTSIDE) for wnid in classes.wnids),
        class_names=classes.class_names,
    )
