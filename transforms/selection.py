"""Which of the accepted images make up a dataset: balance, limits, partners."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import keyed_hashes

Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]


def lowest_hashes(
    keys: Sequence[str], labels: Labels, count: int, *, seed: int, purpose: str
) -> Flags:
    """Chooses images of each class at random, stably.

    Args:
      keys: (n,) keys.
      labels: (n,) int64, the class of each.
      count: how many to keep of each class.
      seed, purpose: of the keyed hash.

    Returns:
      (n,) bool: True for the `count` lowest hashes of each class, ties by key. Adding an
      image displaces at most one other.
    """
    hashes = keyed_hashes(seed, purpose, keys)
    chosen = np.zeros(len(keys), np.bool_)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label).tolist()
        order = sorted(members, key=lambda i: (hashes[i], keys[i]))
        chosen[order[:count]] = True
    return chosen


def has_partners(
    labels: Labels,
    *,
    mixed: Sequence[str],
    own_background: bool,
    mixed_rand: str,
    groups: Labels | None = None,
) -> Flags:
    """Finds the images that every mixed variant can give a background.

    Args:
      labels: (n,) int64, classes of the candidate images of one split.
      mixed: names of the mixed variants to compose.
      own_background: whether an image may get its own background, or one of its group.
      mixed_rand: `any` or `other`, as for `pair`.
      groups: (n,) int64, the same for images that are no background for each other; None if
        there are no groups.

    Returns:
      (n,) bool. An image that leaves may have been the only partner of others, so the rule is
      applied until nothing changes: the pools that are left serve every image that is left.
    """
    keep = np.ones(len(labels), np.bool_)
    while keep.any():
        left = np.flatnonzero(keep)
        _, cell, of_class = np.unique(labels[left], return_inverse=True, return_counts=True)
        # Who is of the same class and group has the same partners, and where each image is a group
        # of its own, who is of the same class has as many.
        classes = group = np.arange(len(of_class))
        images = np.ones_like(classes)
        if groups is not None:
            numbers = np.unique(groups[left], return_inverse=True)[1]
            cells, cell, images = np.unique(
                cell * len(left) + numbers, return_inverse=True, return_counts=True
            )
            classes, group = np.divmod(cells, len(left))
        found = _count_partners(of_class, classes, group, images, own_background, mixed_rand)
        served = np.ones(len(classes), np.bool_)
        for variant in mixed:
            served &= found[variant] > 0
        if served.all():
            break
        keep[left[~served[cell]]] = False
    return keep


def _count_partners(
    of_class: Labels,
    classes: Labels,
    groups: Labels,
    images: Labels,
    own_background: bool,
    mixed_rand: str,
) -> dict[str, Labels]:
    """How many images each mixed variant can draw from, by cell: a class and a group, numbered
    from 0, in order, and how many images are of both. `of_class`: images of each class."""
    following = (classes + 1) % len(of_class)
    same, after, anyone = of_class[classes], of_class[following], of_class.sum()
    if not own_background:
        codes, wanted = (side * (groups.max() + 1) + groups for side in (classes, following))
        place = np.searchsorted(codes, wanted) % len(codes)
        same = same - images
        after = after - np.where(codes[place] == wanted, images[place], 0)
        anyone = anyone - np.bincount(groups, images).astype(np.int64)[groups]
    return {
        "mixed_same": same,
        "mixed_next": np.where(following == classes, 0, after),
        "mixed_rand": anyone - same if mixed_rand == "other" else anyone,
    }


def select(keys: Sequence[str], labels: Labels, *, per_class: str, seed: int) -> Flags:
    """Balances the classes (paper section 2).

    Args:
      keys: (n,) keys of the candidates.
      labels: (n,) int64.
      per_class: `all`, `min` (as many as the smallest class has), or a number.
      seed: of the keyed hash.

    Returns:
      (n,) bool, True for the selected images.

    Raises:
      ValueError: `per_class` is none of these.
    """
    if per_class == "all" or not len(keys):
        return np.ones(len(keys), np.bool_)
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    count = smallest if per_class == "min" else int(per_class)
    return lowest_hashes(keys, labels, count, seed=seed, purpose="select")
