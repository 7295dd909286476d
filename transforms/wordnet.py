"""What WordNet has above ImageNet's classes, and taxonomies made of roots in it.

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
    """A noun of WordNet: the ids of what it is a kind of, and its first word."""

    parents: tuple[str, ...]
    name: str


@functools.cache
def synsets() -> Mapping[str, Synset]:
    """ImageNet's classes and all that is above them, by WordNet id."""
    table = resources.files("transforms") / "data" / "hypernyms.csv"
    rows = csv.DictReader(table.read_text(encoding="utf-8").splitlines())
    return {row["wnid"]: Synset(tuple(row["parents"].split()), row["name"]) for row in rows}


@functools.cache
def above(wnid: str) -> frozenset[str]:
    """A synset itself and all that it is a kind of, directly or not.

    >>> {"n02084071", "n00001740"} <= above("n02085620")
    True

    Raises:
      KeyError: neither one of ImageNet's classes nor above one.
    """
    return frozenset({wnid}.union(*(above(parent) for parent in synsets()[wnid].parents)))


def classes_below(root: str) -> tuple[str, ...]:
    """ImageNet's classes that are a kind of a synset, in order of their output index."""
    return tuple(wnid for wnid in imagenet9().wnids if root in above(wnid))


def wordnet_taxonomy(roots: Sequence[tuple[str, str]]) -> Taxonomy:
    """A taxonomy over ImageNet's 1000 classes.

    Args:
      roots: (WordNet id, name, empty for WordNet's) of each superclass, in order of the label.
        A class belongs to the first root that holds it.

    Raises:
      ValueError: a root holds no class, or two superclasses have one name.
    """
    labels = {}
    names = []
    for label, (root, name) in enumerate(roots):
        below = classes_below(root)
        if not below:
            raise ValueError(f"{root} is above none of ImageNet's 1000 classes")
        taken = [wnid for wnid in below if wnid not in labels]
        if not taken:
            raise ValueError(f"{root} holds no class that the roots before it do not hold")
        labels.update(dict.fromkeys(taken, label))
        names.append(name or synsets()[root].name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two roots are called {twice[0]!r}; name them: WNID=NAME")
    classes = imagenet9()
    return Taxonomy(
        names=tuple(names),
        wnids=classes.wnids,
        labels=tuple(labels.get(wnid, OUTSIDE) for wnid in classes.wnids),
        class_names=classes.class_names,
    )
