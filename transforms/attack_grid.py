"""The grid of an attack: which images make it up, and in which order its pairs are tried."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.adversarial import UNTRIED, Grid, Labels
from transforms.hashing import keyed_hashes

Predict = Callable[[Labels, Labels], Grid]
"""(n,) foregrounds, (n,) backgrounds -> (rules, n) int16 predictions of the pairs."""


def sample_evenly(
    keys: Sequence[str], labels: Labels, count: int, *, seed: int, purpose: str
) -> NDArray[np.bool_]:
    """Chooses images at random, as many of each class as of any other.

    Args:
      keys: (n,) keys.
      labels: (n,) int64, the class of each.
      count: how many in all; all images if there are no more.
      seed, purpose: of the keyed hash.

    Returns:
      (n,) bool. Classes differ by at most one, unless they have no more images. A smaller
      sample is part of a larger one.
    """
    hashes = keyed_hashes(seed, purpose, keys).tolist()
    by_hash = sorted(range(len(keys)), key=lambda i: (hashes[i], keys[i]))
    taken: collections.Counter[int] = collections.Counter()
    turns = []
    for i in by_hash:
        turns.append((taken[int(labels[i])], hashes[i], keys[i], i))
        taken[int(labels[i])] += 1
    chosen = np.zeros(len(keys), np.bool_)
    chosen[[i for *_, i in sorted(turns)[:count]]] = True
    return chosen


class Strengths:
    """How often each background turned the foregrounds that it was tried on, so far.

    Args:
      backgrounds: how many.
    """

    def __init__(self, backgrounds: int) -> None:
        self._turned = np.zeros(backgrounds, np.int64)
        self._tried = np.zeros(backgrounds, np.int64)

    def add(self, grid: Grid, labels: Labels) -> None:
        """Adds (rules, F, B) predictions of foregrounds with these (F,) labels. Turned is a
        foreground whose prediction is wrong under every label rule."""
        tried = grid[0] != UNTRIED
        turned = tried & (grid != labels[:, np.newaxis]).all(axis=0)
        self._tried += tried.sum(axis=0)
        self._turned += turned.sum(axis=0)

    def strongest_first(self) -> Labels:
        """(B,) int64 positions by the rate (turned + 1) / (tried + 2), so that one lucky trial
        does not lead; of equal ones the first comes first."""
        return np.argsort(-(self._turned + 1) / (self._tried + 2), kind="stable")


def try_until_turned(
    labels: Labels, order: Labels, *, rules: int, batch_size: int, predict: Predict
) -> Grid:
    """Tries backgrounds on each foreground until one turns it under every label rule.

    The foregrounds that still stand take turns in filling a batch, each with its next
    background, so that batches are full until the last.

    Args:
      labels: (F,) int64, of the foregrounds.
      order: (B,) int64, the backgrounds as they are to be tried.
      rules: how many label rules.
      batch_size: pairs at a time.
      predict: gives the predictions of a batch.

    Returns:
      (rules, F, B) int16, `UNTRIED` where it was not necessary. A foreground is turned under
      a rule in here exactly if it is in the whole grid: it either met all backgrounds, or
      stopped when it was turned under all rules.
    """
    grid = np.full((rules, len(labels), len(order)), UNTRIED, np.int16)
    met = np.zeros(len(labels), np.int64)
    standing = collections.deque(range(len(labels)) if len(order) else ())
    while standing:
        batch: list[tuple[int, int]] = []
        while standing and len(batch) < batch_size:
            foreground = standing.popleft()
            batch.append((foreground, int(order[met[foreground]])))
            met[foreground] += 1
            if met[foreground] < len(order):
                standing.append(foreground)
        pairs = np.asarray(batch, np.int64)
        predictions = predict(pairs[:, 0], pairs[:, 1])
        grid[:, pairs[:, 0], pairs[:, 1]] = predictions
        is_turned = (predictions != labels[pairs[:, 0]]).all(axis=0)
        turned = set(pairs[is_turned, 0].tolist())
        standing = collections.deque(f for f in standing if f not in turned)
    return grid
