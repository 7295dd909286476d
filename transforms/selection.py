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
    labels: Labels, *, mixed: Sequence[str], own_background: bool, mixed_rand: str
) -> Flags:
    """Finds the images that every mixed variant can give a background.

    Args:
      labels: (n,) int64, classes of the candidate images of one split.
      mixed: names of the mixed variants to compose.
      own_background: whether an image may get its own background.
      mixed_rand: `any` or `other`, as for `pair`.

    Returns:
      (n,) bool. Where only one image may not be its own partner, its class drops out
      as a whole; the pools that are left serve every image that is left.
    """
    keep = np.ones(len(labels), np.bool_)
    if "mixed_same" in mixed and not own_background:
        classes, counts = np.unique(labels, return_counts=True)
        keep &= ~np.isin(labels, classes[counts < 2])
    needs_other_class = "mixed_next" in mixed or ("mixed_rand" in mixed and mixed_rand == "other")
    if needs_other_class and len(np.unique(labels[keep])) < 2:
        keep[:] = False
    if "mixed_rand" in mixed and not own_background and keep.sum() == 1:
        keep[:] = False
    return keep


def select(keys: Sequence[str], labels: Labels, *, per_class: str, seed: int) -> Flags:
    """Balances the classes (paper section 2).

    Args:
      keys: (n,) keys of the candidates.
      labels: (n,) int64.
      per_class: `all`, `min` (as many as the smallest class has), or a number.
      seed: of the keyed hash.

    Returns:
      (n,) bool, True for the selected images.
    """
    if per_class == "all" or not len(keys):
        return np.ones(len(keys), np.bool_)
    smallest = int(np.unique(labels, return_counts=True)[1].min())
    count = smallest if per_class == "min" else int(per_class)
    return lowest_hashes(keys, labels, count, seed=seed, purpose="select")
