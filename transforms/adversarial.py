"""Adversarial backgrounds: two measures of how many foregrounds are misjudged on a background.

* challenge (the authors' evaluation): a foreground is turned if any background, including those of
  its own class, makes the prediction differ from its label.
* fooled (paper, section on adversarial backgrounds): a foreground is fooled if some background of
  another class makes the model predict that background's class.

Both measures are computed from a grid of predictions, foregrounds x backgrounds, for the composites
original * mask + only_bg_t * (1 - mask). In the shapes below, F counts foregrounds, B backgrounds
and K superclasses.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.two_way import Roles, wilson_of_pictures

Labels = NDArray[np.int64]
Grid = NDArray[np.int16]
Counts = NDArray[np.int64]

UNTRIED = -2
"""Value in a grid for a pair that was not tried; -1 is a prediction outside the taxonomy."""

STRONGEST = 5
"""Number of backgrounds that are listed for each class."""


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of foregrounds, with Wilson's 95 % interval.

    Attributes:
      count: number of foregrounds for which the outcome is True.
      n: number of all foregrounds.
      value: count / n, None if n is 0.
      low, high: bounds of the interval, fractions. Foregrounds of one group count as dependent.
    """

    count: int
    n: int
    value: float | None
    low: float
    high: float

    @classmethod
    def from_outcomes(cls, outcomes: NDArray[np.bool_], units: Labels | None = None) -> Share:
        """Computes the share of True among outcomes, (n,) bool, of foregrounds.

        `units` are (n,) int64, the number of each foreground's group; None without groups.
        """
        count, n = int(outcomes.sum()), len(outcomes)
        roles = Roles.from_units(np.arange(n) if units is None else units)
        return cls(count, n, count / n if n else None, *wilson_of_pictures(outcomes, roles))


@dataclasses.dataclass(frozen=True, eq=False)
class GridTally:
    """The counts from which the measures are computed.

    Tallies can be merged, so a large grid can be read a few rows at a time.

    Attributes:
      labels: (F,) int64, labels of the foregrounds.
      turning: (F,) int64, number of backgrounds that make the prediction differ from the label.
      fooled_by: (F, K) bool, whether some background of class k makes the model predict k; False
        where k is the foreground's own label.
      successes: (B,) int64, number of foregrounds of other classes for which each background makes
        the model predict the background's class.
      tried: number of pairs of a foreground and a background that were tried.
    """

    labels: Labels
    turning: Counts
    fooled_by: NDArray[np.bool_]
    successes: Counts
    tried: int


def tally(grid: Grid, labels: Labels, bg_labels: Labels, num_labels: int) -> GridTally:
    """Tallies a grid; raises ValueError if the sizes do not match.

    Args:
      grid: (F, B) int16 predictions: a label, -1 outside the taxonomy, or `UNTRIED`.
      labels, bg_labels: (F,) and (B,) int64, labels of the foregrounds and backgrounds.
      num_labels: K, number of superclasses.
    """
    if grid.shape != (len(labels), len(bg_labels)):
        raise ValueError(
            f"a grid of {grid.shape} for {len(labels)} foregrounds and {len(bg_labels)} backgrounds"
        )
    tried = grid != UNTRIED
    fg_labels = labels[:, np.newaxis]
    fools = (grid == bg_labels) & (bg_labels != fg_labels)
    fooled_by = [fools[:, bg_labels == label].any(axis=1) for label in range(num_labels)]
    return GridTally(
        labels=labels,
        turning=(tried & (grid != fg_labels)).sum(axis=1, dtype=np.int64),
        fooled_by=np.stack(fooled_by, axis=1),
        successes=fools.sum(axis=0, dtype=np.int64),
        tried=int(tried.sum()),
    )


def merge(parts: Sequence[GridTally]) -> GridTally:
    """Merges tallies of different foregrounds on the same backgrounds.

    Raises ValueError if there are no tallies.
    """
    return GridTally(
        labels=np.concatenate([part.labels for part in parts]),
        turning=np.concatenate([part.turning for part in parts]),
        fooled_by=np.concatenate([part.fooled_by for part in parts]),
        successes=np.sum([part.successes for part in parts], axis=0, dtype=np.int64),
        tried=sum(part.tried for part in parts),
    )


def challenge_accuracy(tallied: GridTally, units: Labels | None = None) -> Share:
    """Computes the share of foregrounds that no background turns.

    `units` are (F,) int64, the number of each foreground's group; None without groups.
    """
    return Share.from_outcomes(np.asarray(tallied.turning == 0), units)


def fooled(tallied: GridTally, units: Labels | None = None) -> Share:
    """Computes the share of foregrounds that some background of another class fools.

    This is the paper's measure; the arguments are those of `challenge_accuracy`.
    """
    return Share.from_outcomes(np.asarray(tallied.fooled_by.any(axis=1)), units)


def fooled_by_class(tallied: GridTally, label: int) -> Share:
    """Computes the share of foregrounds of other classes that the backgrounds of a class fool.

    Groups are ignored, so the interval is too narrow if there are any.
    """
    return Share.from_outcomes(tallied.fooled_by[tallied.labels != label, label])


def foregrounds_of_others(labels: Labels, bg_labels: Labels) -> Counts:
    """Counts the foregrounds of other classes for each background: (B,) int64.

    A background can fool only these foregrounds.
    """
    counts: Counts = (labels != bg_labels[:, np.newaxis]).sum(axis=1, dtype=np.int64)
    return counts


def strongest(
    tallied: GridTally,
    bg_keys: Sequence[str],
    bg_labels: Labels,
    label: int,
    count: int = STRONGEST,
) -> list[int]:
    """Ranks the backgrounds of a class by the number of foregrounds that they fool, the most first.

    Returns their positions. (B,) `bg_keys` break ties; `bg_labels` are (B,) int64.
    """
    members = np.flatnonzero(bg_labels == label).tolist()
    return sorted(members, key=lambda b: (-tallied.successes[b], bg_keys[b]))[:count]


def expected_accuracy(
    turning: Counts, backgrounds: int, numbers: Sequence[int]
) -> list[tuple[int, float]]:
    """Computes the challenge accuracy that is expected against some backgrounds, drawn at random.

    It is exact: the mean over foregrounds of C(B - turning, k) / C(B, k), the hypergeometric
    probability that none of k distinct backgrounds turns the foreground.

    Args:
      turning: (F,) int64, number of backgrounds that turn each foreground; F >= 1.
      backgrounds: number of all backgrounds, B.
      numbers: the numbers k of drawn backgrounds, each in [0, B].

    Returns:
      (k, accuracy) in ascending order of k.

    >>> expected_accuracy(np.asarray([0, 1]), 4, [1, 4])
    [(1, 0.875), (4, 0.5)]
    """
    different, foregrounds = np.unique(turning, return_counts=True)
    stands = np.ones(len(different))
    accuracies = []
    drawn = 0
    for number in sorted(set(numbers)):
        while drawn < number:
            remaining = backgrounds - drawn
            stands *= np.maximum(remaining - different, 0) / remaining
            drawn += 1
        accuracies.append((number, float(stands @ foregrounds / foregrounds.sum())))
    return accuracies


def steps(backgrounds: int) -> list[int]:
    """Lists the numbers of backgrounds at which a curve has points: 1, 2, 5, 10, 20, ... and all.

    >>> steps(30)
    [1, 2, 5, 10, 20, 30]
    """
    numbers = []
    step = 1
    while step < backgrounds:
        numbers += [step, 2 * step, 5 * step]
        step *= 10
    return [number for number in numbers if number < backgrounds] + [backgrounds]


class Strengths:
    """Counts of how often each background has turned the foregrounds that it was tried on."""

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
    labels: Labels,
    order: Labels,
    predict: Callable[[Labels, Labels], Grid],
    *,
    rules: int,
    batch_size: int,
) -> Grid:
    """Tries backgrounds on each foreground until one turns it under every label rule.

    A batch takes the foregrounds that no background has turned yet, one after the other, each with
    its next background, and starts over until it is full. So only the last batch may be smaller.

    Args:
      labels: (F,) int64, labels of the foregrounds.
      order: (B,) int64, the backgrounds in the order in which they are tried.
      predict: takes the pairs of a batch, (n,) int64 foregrounds and (n,) int64 backgrounds;
        returns their predictions, (rules, n) int16.
      rules: number of label rules.

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
