"""The grid of an attack: chooses its images, and the order in which pairs are tried."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.adversarial import UNTRIED, Grid, Labels
from transforms.hashing import keyed_hashes

Predict = Callable[[Labels, Labels], Grid]
"""A function of (n,) foregrounds and (n,) backgrounds to (rules, n) int16 predictions."""


def sample_evenly(
    keys: Sequence[str], labels: Labels, count: int, *, seed: int, purpose: str
) -> NDArray[np.bool_]:
    """Chooses images at random, the same number of each class.

    Args:
      keys: (n,) keys.
      labels: (n,) int64, the class of each.
      count: number of images in all; if there are not more, all are chosen.
      seed, purpose: of the keyed hash.

    Returns:
      (n,) bool. The numbers for the classes differ by at most one, unless a class has too few
      images. A smaller sample is part of a larger one.
    """
    hashes = keyed_hashes(seed, purpose, keys).tolist()
    by_hash = sorted(range(len(keys)), key=lambda i: (hashes[i], keys[i]))
    ranks: collections.Counter[int] = collections.Counter()
    turns = []
    for i in by_hash:
        turns.append((ranks[int(labels[i])], hashes[i], keys[i], i))
        ranks[int(labels[i])] += 1
    chosen = np.zeros(len(keys), np.bool_)
    chosen[[i for *_, i in sorted(turns)[:count]]] = True
    return chosen


class Strengths:
    """Counts of how often each background has turned the foregrounds that it was tried on.

    Args:
      backgrounds: number of backgrounds.
    """

    def __init__(self, backgrounds: int) -> None:
        self._turned = np.zeros(backgrounds, np.int64)
        self._tried = np.zeros(backgrounds, np.int64)

    def add(self, grid: Grid, labels: Labels) -> None:
        """Adds (rules, F, B) predictions of foregrounds with (F,) labels.

        A foreground is turned if its prediction is wrong under every label rule.
        """
        tried = grid[0] != UNTRIED
        turned = tried & (grid != labels[:, np.newaxis]).all(axis=0)
        self._tried += tried.sum(axis=0)
        self._turned += turned.sum(axis=0)

    def strongest_first(self) -> Labels:
        """Ranks the backgrounds, (B,) int64 positions, with ties in their order.

        They are ranked by (turned + 1) / (tried + 2), so that a single lucky trial does not lead.
        """
        return np.argsort(-(self._turned + 1) / (self._tried + 2), kind="stable")


def try_until_turned(
    labels: Labels, order: Labels, *, rules: int, batch_size: int, predict: Predict
) -> Grid:
    """Tries backgrounds on each foreground until one turns it under every label rule.

    Foregrounds that still stand fill each batch in turn, each with its next background, so all
    batches but the last are full.

    Args:
      labels: (F,) int64, of the foregrounds.
      order: (B,) int64, the backgrounds in the order in which they are tried.
      rules: number of label rules.
      batch_size: number of pairs in a batch.
      predict: predicts the pairs of a batch.

    Returns:
      (rules, F, B) int16, `UNTRIED` for pairs that were unnecessary. Each rule turns the same
      foregrounds here as in the complete grid, because a foreground either met all backgrounds or
      was turned under all rules.
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
