"""Selects images: those of a dataset among the accepted images, and those of a split to test on.

The classes of a dataset are balanced and limited, and every image has backgrounds to be mixed with.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import are_below, keyed_hashes
from transforms.variants import VariantName

Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]


def lowest_hashes(
    keys: Sequence[str], labels: Labels, count: int, *, seed: int, purpose: str
) -> Flags:
    """Chooses `count` images of each class at random, so that an added image changes little.

    Returns (n,) bool for (n,) keys and int64 labels: True for the images of each class with the
    lowest hashes; of equal hashes, for the lowest keys. Adding an image displaces at most one other
    image.
    """
    chosen = np.zeros(len(keys), np.bool_)
    chosen[[i for i, rank in _ranks(keys, labels, seed, purpose) if rank < count]] = True
    return chosen


def sample_evenly(
    keys: Sequence[str], labels: Labels, count: int, *, seed: int, purpose: str
) -> Flags:
    """Chooses `count` images in all, or all if there are fewer, at random from each class alike.

    Returns (n,) bool for (n,) keys and int64 labels. The numbers of images of the classes differ by
    at most one, unless a class has too few. A smaller sample is part of every larger sample.
    """
    by_rank = sorted(_ranks(keys, labels, seed, purpose), key=lambda ranked: ranked[1])
    chosen = np.zeros(len(keys), np.bool_)
    chosen[[i for i, _ in by_rank[:count]]] = True
    return chosen


def _ranks(
    keys: Sequence[str], labels: Labels, seed: int, purpose: str
) -> Iterator[tuple[int, int]]:
    """Yields (position, number of images of its class before it), by hash, then by key."""
    hashes = keyed_hashes(seed, purpose, keys).tolist()
    before: collections.Counter[int] = collections.Counter()
    for i in sorted(range(len(keys)), key=lambda i: (hashes[i], keys[i])):
        yield i, before[int(labels[i])]
        before[int(labels[i])] += 1


def has_partners(
    labels: Labels,
    *,
    mixed: Iterable[str],
    own_background: bool,
    mixed_rand: str,
    groups: Labels | None = None,
) -> Flags:
    """Finds the images for which every mixed variant has a background: (n,) bool, True to keep.

    A removed image may have been the only background of others, so images are removed until every
    remaining image has backgrounds among the remaining images.

    Args:
      labels: (n,) int64, class of each candidate image of one split.
      mixed: names of the mixed variants to compose.
      own_background, mixed_rand: see `pair`.
      groups: (n,) int64, number of each image's group; None if there are no groups.
    """
    # Every strength of a dial needs both of its kinds, so that it selects the same images.
    kinds = {
        kind
        for name in mixed
        for kind in ((name,) if VariantName(name).strength is None else ("mixed_same", "other"))
    }
    if mixed_rand == "other" and "mixed_rand" in kinds:
        kinds = kinds - {"mixed_rand"} | {"other"}
    keep = np.ones(len(labels), np.bool_)
    while keep.any():
        kept = np.flatnonzero(keep)
        _, cell, class_sizes = np.unique(labels[kept], return_inverse=True, return_counts=True)
        # A cell is a set of images that have the same number of partners: the images of one class
        # and group or, without groups, the images of one class, each of which is its own group.
        classes = group = np.arange(len(class_sizes))
        own = np.ones_like(classes)
        if groups is not None:
            numbers = np.unique(groups[kept], return_inverse=True)[1]
            cells, cell, own = np.unique(
                cell * len(kept) + numbers, return_inverse=True, return_counts=True
            )
            classes, group = np.divmod(cells, len(kept))
        partners = _count_partners(class_sizes, classes, group, own, own_background)
        has_all = np.ones(len(classes), np.bool_)
        for kind in kinds:
            has_all &= partners[kind] > 0
        if has_all.all():
            break
        keep[kept[~has_all[cell]]] = False
    return keep


def _count_partners(
    class_sizes: Labels,
    classes: Labels,
    groups: Labels,
    own: Labels,
    own_background: bool,
) -> dict[str, Labels]:
    """Counts the backgrounds, (cells,), that can be drawn for an image of each cell, by kind.

    The kinds are the mixed variants, and `other`, a background of another class.

    Args:
      class_sizes: (classes,) number of images of each class.
      classes: (cells,) class of each cell, numbered from 0. Cells are in order of class and group.
      groups: (cells,) group of each cell, numbered from 0; without groups, a number of its own.
      own: (cells,) number of images of its class that are in the group of an image of the cell,
        including the image itself.
    """
    following = (classes + 1) % len(class_sizes)
    same, after, anyone = class_sizes[classes], class_sizes[following], class_sizes.sum()
    if not own_background:
        codes, wanted = (each * (groups.max() + 1) + groups for each in (classes, following))
        position = np.searchsorted(codes, wanted) % len(codes)
        same = same - own
        after = after - np.where(codes[position] == wanted, own[position], 0)
        anyone = anyone - np.bincount(groups, own).astype(np.int64)[groups]
    return {
        "mixed_same": same,
        "mixed_next": np.where(following == classes, 0, after),
        "mixed_rand": anyone,
        "other": anyone - same,
    }


def select(keys: Sequence[str], labels: Labels, *, per_class: str, seed: int) -> Flags:
    """Balances the classes (paper section 2): (n,) bool for (n,) keys and int64 labels.

    It is True for as many images of each class as `per_class` says: `all`, `min` (as many as the
    smallest class has), or a number. Raises ValueError if it is something else.
    """
    if per_class == "all" or not len(keys):
        return np.ones(len(keys), np.bool_)
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    count = smallest if per_class == "min" else int(per_class)
    return lowest_hashes(keys, labels, count, seed=seed, purpose="select")


def held_out(units: Sequence[str], share: float, seed: int = 0) -> NDArray[np.bool_]:
    """Chooses the images that are held out for the test: (n,) bool.

    Whether an image is held out depends on its unit, the share and the seed alone. So images that
    are added later change nothing for the others, and a larger share holds out every image that a
    smaller share holds out.

    Args:
      units: (n,) unit of each image: its group, or its key without one. A unit is never divided.
      share: share of the units held out on average, in [0, 1], else ValueError is raised.

    >>> held_out(["a", "b", "a", "c"], 0.5).tolist()
    [False, True, False, True]
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share that is held out must be between 0 and 1: got {share}")
    return are_below(keyed_hashes(seed, "holdout", units), share)
