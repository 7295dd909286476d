"""The grid of an attack: chooses its images, and the order in which pairs are tried.

In the shapes below, F counts foregrounds and B backgrounds.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.adversarial import UNTRIED, Grid, Labels
from transforms.hashing import keyed_hashes

Predict = Callable[[Labels, Labels], Grid]
"""A function that takes the positions of (n,) foregrounds and of (n,) backgrounds, and returns the
predictions for these n pairs under each label rule, (rules, n) int16."""


def sample_evenly(
    keys: Sequence[str], labels: Labels, count: int, *, seed: int, purpose: str
) -> NDArray[np.bool_]:
    """Chooses images at random, the same number of each class.

    Args:
      keys: (n,) keys of the images.
      labels: (n,) int64, the class of each image.
      count: total number of images to choose; with fewer images, all are chosen.
      seed, purpose: arguments of the keyed hash that decides the choice.

    Returns:
      (n,) bool, True for the chosen images. The numbers of images of the classes differ by at most
      one, unless a class has too few images. A smaller sample is part of every larger sample.
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
        """Adds the (rules, F, B) predictions for foregrounds with (F,) labels.

        A background turns a foreground if the prediction is wrong under every label rule.
        """
        tried = grid[0] != UNTRIED
        turned = tried & (grid != labels[:, np.newaxis]).all(axis=0)
        self._tried += tried.sum(axis=0)
        self._turned += turned.sum(axis=0)

    def strongest_first(self) -> Labels:
        """Ranks the backgrounds: (B,) int64 positions, the strongest first, ties by position.

        The rank follows from (turned + 1) / (tried + 2), so that a background does not come first
        after a single lucky trial.
        """
        return np.argsort(-(self._turned + 1) / (self._tried + 2), kind="stable")


def try_until_turned(
    labels: Labels, order: Labels, *, rules: int, batch_size: int, predict: Predict
) -> Grid:
    """Tries backgrounds on each foreground until one turns it under every label rule.

    A batch takes the foregrounds that no background has turned yet, one after the other, each with
    its next background, and starts over until it is full. So only the last batch may be smaller.

    Args:
      labels: (F,) int64, labels of the foregrounds.
      order: (B,) int64, the backgrounds in the order in which they are tried.
      rules: number of label rules.
      batch_size: number of pairs in a batch.
      predict: predicts the pairs of a batch.

    Returns:
      (rules, F, B) int16 predictions, `UNTRIED` for pairs that were unnecessary. Under each rule,
      the same foregrounds are turned as in the complete grid, because each foreground has either
      been tried on all backgrounds or been turned under all rules.
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
