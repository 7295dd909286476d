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
    every = np.arange(len(labels)) if groups is None else groups
    keep = np.ones(len(labels), np.bool_)
    while keep.any():
        left = np.flatnonzero(keep)
        served = np.ones(len(left), np.bool_)
        for variant in mixed:
            here = (labels[left], every[left], own_background)
            if variant == "mixed_rand":
                served &= _has_any(*here, of_other_class=mixed_rand == "other")
            else:
                served &= _has_in_class(*here, of_next_class=variant == "mixed_next")
        if served.all():
            break
        keep[left[~served]] = False
    return keep


def _has_any(labels: Labels, groups: Labels, own_background: bool, of_other_class: bool) -> Flags:
    """Whether each image has a partner among all, or those of other classes."""
    excluded = np.zeros(len(labels), np.int64)
    if of_other_class:
        excluded += _count_of(labels)
    if not own_background:
        excluded += _count_of(groups)
    if of_other_class and not own_background:
        # Those of its own class and group were counted twice.
        pairs = np.unique(np.stack([labels, groups]), axis=1, return_inverse=True)[1]
        excluded -= _count_of(pairs.ravel())
    return np.asarray(excluded < len(labels))


def _has_in_class(
    labels: Labels, groups: Labels, own_background: bool, of_next_class: bool
) -> Flags:
    """Whether each image has a partner in its own class, or in the next present one."""
    present, own = np.unique(labels, return_inverse=True)
    wanted = (own + 1) % len(present) if of_next_class else own
    served = wanted != own if of_next_class else np.ones(len(labels), np.bool_)
    if own_background:
        return served
    lowest = np.full(len(present), np.iinfo(np.int64).max)
    highest = np.full(len(present), -1)
    np.minimum.at(lowest, own, groups)
    np.maximum.at(highest, own, groups)
    # A class of one group alone serves the others only.
    alone = lowest == highest
    return np.asarray(served & ~(alone[wanted] & (lowest[wanted] == groups)))


def _count_of(values: Labels) -> Labels:
    """How often the value of each row occurs, (n,) int64."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray(counts[place], np.int64)


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
