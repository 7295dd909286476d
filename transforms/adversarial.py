"""Adversarial backgrounds: two measures of how many foregrounds a background can turn.

* challenge (the authors' evaluation): a foreground is turned if any background, of its own
  class too, makes the prediction differ from its label.
* fooled (paper, section on adversarial backgrounds): a foreground is fooled if some
  background of another class makes the model predict that background's class.

Both are read off a grid of predictions, foregrounds x backgrounds, of the composites
original * mask + only_bg_t * (1 - mask).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.geometry import Mask, Pixels
from transforms.two_way import Roles, wilson_of_pictures
from transforms.variants import composite

Labels = NDArray[np.int64]
Grid = NDArray[np.int16]
Counts = NDArray[np.int64]

UNTRIED = -2
"""Stands in a grid for a pair that no model has seen; -1 is a prediction outside the taxonomy."""

STRONGEST = 5
"""How many backgrounds of a class are named."""


def composites(
    originals: Pixels, masks: Mask, backgrounds: Pixels, foreground: Labels, background: Labels
) -> Pixels:
    """The pictures of an attack: original * mask + only_bg_t * (1 - mask).

    Args:
      originals: (F, S, S, 3) uint8.
      masks: (F, S, S) bool, True where the foreground shows.
      backgrounds: (B, S, S, 3) uint8, the variant `only_bg_t`.
      foreground, background: (n,) int64, the pairs.

    Returns:
      (n, S, S, 3) uint8.
    """
    return composite(originals[foreground], masks[foreground], backgrounds[background])


@dataclasses.dataclass(frozen=True)
class Share:
    """A proportion of foregrounds, with Wilson's 95 % interval; foregrounds of one group are
    related.

    Attributes:
      count: how many.
      n: of how many.
      value: count / n, None of nothing.
      low, high: the interval, fractions.
    """

    count: int
    n: int
    value: float | None
    low: float
    high: float

    @classmethod
    def from_outcomes(cls, found: NDArray[np.bool_], units: Labels | None = None) -> Share:
        """Those of (n,) foregrounds for which something was found; `units` (n,) numbers of their
        groups, None without."""
        count, n = int(found.sum()), len(found)
        roles = Roles.from_units(np.arange(n) if units is None else units)
        return cls(count, n, count / n if n else None, *wilson_of_pictures(found, roles))


@dataclasses.dataclass(frozen=True, eq=False)
class GridTally:
    """What the measures need of a grid, so that a large one can be read a few rows at a time.

    Attributes:
      labels: (F,) int64, of the foregrounds.
      turning: (F,) int64, how many backgrounds make the prediction differ from the label.
      fooled_by: (F, K) bool, whether some background of class k, another than the label,
        makes the model predict k.
      successes: (B,) int64, how many foregrounds of other classes each background makes the
        model take for its own class.
      tried: how many pairs were tried.
    """

    labels: Labels
    turning: Counts
    fooled_by: NDArray[np.bool_]
    successes: Counts
    tried: int


def tally(grid: Grid, labels: Labels, bg_labels: Labels, num_labels: int) -> GridTally:
    """Tallies a grid.

    Args:
      grid: (F, B) int16 predictions: labels, -1 outside the taxonomy, `UNTRIED`.
      labels: (F,) int64, of the foregrounds.
      bg_labels: (B,) int64, of the backgrounds.
      num_labels: K, number of superclasses.

    Raises:
      ValueError: sizes that do not fit.
    """
    if grid.shape != (len(labels), len(bg_labels)):
        raise ValueError(
            f"a grid of {grid.shape} for {len(labels)} foregrounds and {len(bg_labels)} backgrounds"
        )
    tried = grid != UNTRIED
    own = labels[:, np.newaxis]
    fools = (grid == bg_labels) & (bg_labels != own)
    fooled_by = [fools[:, bg_labels == label].any(axis=1) for label in range(num_labels)]
    return GridTally(
        labels=labels,
        turning=(tried & (grid != own)).sum(axis=1, dtype=np.int64),
        fooled_by=np.stack(fooled_by, axis=1),
        successes=fools.sum(axis=0, dtype=np.int64),
        tried=int(tried.sum()),
    )


def merge(tallies: Iterable[GridTally]) -> GridTally:
    """The tally of grids one below the other, on the same backgrounds. Raises ValueError if there
    is none."""
    parts = list(tallies)
    return GridTally(
        labels=np.concatenate([part.labels for part in parts]),
        turning=np.concatenate([part.turning for part in parts]),
        fooled_by=np.concatenate([part.fooled_by for part in parts]),
        successes=np.sum([part.successes for part in parts], axis=0, dtype=np.int64),
        tried=sum(part.tried for part in parts),
    )


def challenge_accuracy(tallied: GridTally, units: Labels | None = None) -> Share:
    """Share of the foregrounds that no background turns.

    Args:
      tallied: the tally.
      units: (F,) int64, the same from 0 on for foregrounds of one group; None without groups.
    """
    return Share.from_outcomes(np.asarray(tallied.turning == 0), units)


def fooled(tallied: GridTally, units: Labels | None = None) -> Share:
    """Share of the foregrounds that some background of another class fools: the paper's.
    Arguments as of `challenge_accuracy`."""
    return Share.from_outcomes(np.asarray(tallied.fooled_by.any(axis=1)), units)


def fooled_by_class(tallied: GridTally, label: int) -> Share:
    """Share of the foregrounds of other classes that any background of a class, in [0, K), fools:
    the paper's, by class."""
    return Share.from_outcomes(tallied.fooled_by[tallied.labels != label, label])


def foregrounds_of_others(labels: Labels, bg_labels: Labels) -> Counts:
    """(B,) int64: for each background, the foregrounds of other classes: all that can be fooled."""
    others: Counts = (labels != bg_labels[:, np.newaxis]).sum(axis=1, dtype=np.int64)
    return others


def strongest(
    tallied: GridTally,
    bg_keys: Sequence[str],
    bg_labels: Labels,
    label: int,
    count: int = STRONGEST,
) -> list[int]:
    """Positions of the backgrounds of a class that fool the most foregrounds.

    Args:
      tallied: of the grid.
      bg_keys: (B,) keys of the backgrounds; of equal ones the first comes first.
      bg_labels: (B,) int64.
      label: the class.
      count: at most how many.

    Returns:
      The strongest first.
    """
    members = np.flatnonzero(bg_labels == label).tolist()
    return sorted(members, key=lambda b: (-tallied.successes[b], bg_keys[b]))[:count]


def expected_accuracy(
    turning: Counts, backgrounds: int, numbers: Sequence[int]
) -> list[tuple[int, float]]:
    """Challenge accuracy that fewer backgrounds would have given, drawn at random.

    Args:
      turning: (F,) int64, of how many of the backgrounds turn each foreground.
      backgrounds: B.
      numbers: of how many backgrounds, each in [0, B].

    Returns:
      (k, mean over the foregrounds of C(B - turning, k) / C(B, k)) in rising order of k:
      exact, the hypergeometric chance that none of k distinct backgrounds turns it.

    Raises:
      ValueError: a number out of range.

    >>> expected_accuracy(np.asarray([0, 1]), 4, [1, 4])
    [(1, 0.875), (4, 0.5)]
    """
    wanted = sorted(set(numbers))
    if wanted and not 0 <= wanted[0] <= wanted[-1] <= backgrounds:
        raise ValueError(f"of {backgrounds} backgrounds, cannot draw {wanted[0]} to {wanted[-1]}")
    different, foregrounds = np.unique(turning, return_counts=True)
    stands = np.ones(len(different))
    found = []
    drawn = 0
    for number in wanted:
        while drawn < number:
            left = backgrounds - drawn
            stands *= np.maximum(left - different, 0) / left
            drawn += 1
        found.append((number, float(stands @ foregrounds / foregrounds.sum())))
    return found


def steps(backgrounds: int) -> list[int]:
    """Numbers of backgrounds for a curve: 1, 2, 5, 10, 20, ... and all.

    >>> steps(30)
    [1, 2, 5, 10, 20, 30]
    """
    numbers = []
    step = 1
    while step < backgrounds:
        numbers += [step, 2 * step, 5 * step]
        step *= 10
    return [number for number in numbers if number < backgrounds] + [backgrounds]
