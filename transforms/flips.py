"""Flip rate: how often a prediction changes when nothing but the background does.

It is the chance that two pictures of one foreground on different backgrounds get different
predictions, estimated over pairs of pictures. The share of foregrounds whose predictions are not
all equal is no such measure: it grows with the number of backgrounds that each is shown on, so
figures of different numbers of draws would not compare. Of one pair for each foreground both are
the same.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.two_way import Floats, Roles, Units, share_interval


@dataclasses.dataclass(frozen=True, eq=False)
class PicturePairs:
    """Pairs of pictures that show one foreground on backgrounds of two different units.

    Attributes:
      images: (m,) int64, number of the image that the foreground of each pair is of.
      draws: (2, m) int64, draws of the two pictures.
      weights: (m,) float64, which add up to 1: the pairs of each foreground weigh as much
        together as those of any other.
      pictures: (2, m) int64, the two pictures, among those that are in a pair.
      one: roles of these pictures.
      both: roles of the m pairs, where the two backgrounds together are the background.
    """

    images: NDArray[np.int64]
    draws: NDArray[np.int64]
    weights: Floats
    pictures: NDArray[np.int64]
    one: Roles
    both: Roles

    @classmethod
    def from_units(
        cls, foregrounds: Units, backgrounds: Units, draws: Sequence[tuple[int, int]]
    ) -> PicturePairs:
        """Pairs up the pictures of each foreground.

        Args:
          foregrounds: (n,) unit of each image that a foreground is of.
          backgrounds: (draws, n) unit of the background that it has in each draw.
          draws: which two draws are compared. Where both have a background of the same unit there
            is no pair: a picture that was drawn twice would count as a prediction that stays.
        """
        of_draws = np.asarray(draws, np.int64).reshape(-1, 2)
        differ = backgrounds[of_draws[:, 0]] != backgrounds[of_draws[:, 1]]
        images, compared = np.nonzero(differ.T)
        chosen = of_draws[compared].T
        n = len(foregrounds)
        counts = np.bincount(images, minlength=n)
        found, pictures = np.unique(chosen * n + images, return_inverse=True)
        pictures = pictures.reshape(2, -1)
        grounds = np.unique(backgrounds.ravel()[found], return_inverse=True)[1]
        low, high = np.sort(grounds[pictures], axis=0)
        return cls(
            images,
            chosen,
            1 / (counts[images] * np.count_nonzero(counts)),
            pictures,
            Roles.from_units(foregrounds[found % n], grounds),
            Roles.from_units(foregrounds[images], low * (int(grounds.max(initial=0)) + 1) + high),
        )

    def shared(self, r: Floats) -> tuple[float, float, float]:
        """Products of the contributions of every two pairs that share something, added up.

        A pair's contribution counts in full for each of its two backgrounds, since either has its
        whole effect in it. Two pairs that share both would count twice, which is taken off.
        Source: Aronow, Samii and Assenova 2015, "Cluster-robust variance estimation for dyadic
        data".

        Args:
          r: (m,) contribution of each pair.

        Returns:
          Of pairs that share (their foreground, a background, their foreground and a background),
          each with itself included.
        """
        by_picture = np.bincount(self.pictures.ravel(), np.tile(r, 2)).astype(np.float64)
        by_foreground, by_one, by_foreground_one = map(_squares, self.one.sums(by_picture))
        _, by_both, by_foreground_both = map(_squares, self.both.sums(r))
        # Both pictures of a pair are of its foreground.
        return by_foreground / 4, by_one - by_both, by_foreground_one - by_foreground_both

    @functools.cached_property
    def fewest(self) -> float:
        """How many pairs are left if those that share something are copies of one."""
        return 1 / max(self.shared(self.weights)[:2])

    @functools.cached_property
    def most(self) -> float:
        """How many pairs there are if none share anything, and weights are equal (Kish 1965)."""
        return 1 / _squares(self.weights)

    def variance(self, r: Floats) -> float:
        """The two-way variance of an estimate, of (m,) contributions of each pair, which add up to
        0; infinite where there is one foreground."""
        foreground, background, common = self.shared(r)
        units = self.one.counts
        if min(units) < 2:
            return float("inf")
        foreground, background = (
            total * of_role / (of_role - 1)
            for total, of_role in zip((foreground, background), units, strict=True)
        )
        return foreground + max(background - common, 0.0)


def _squares(sums: Floats) -> float:
    return float(np.square(sums).sum())


@dataclasses.dataclass(frozen=True)
class FlipRate:
    """How often predictions change.

    Attributes:
      rate: a fraction.
      low, high: two-way 95 % interval, for other foregrounds and other backgrounds.
      foregrounds: number of images whose foreground has a pair.
      pairs: number of pairs of pictures.
    """

    rate: float
    low: float
    high: float
    foregrounds: int
    pairs: int


def flip_rate(predictions: NDArray[np.integer], pairs: PicturePairs) -> FlipRate | None:
    """Says how often predictions change with the background.

    Args:
      predictions: (draws, n) integers, of each foreground in each draw; what lies in none of the
        classes is one prediction more.
      pairs: of these pictures.

    Returns:
      The mean over foregrounds of the share of their pairs whose two predictions differ; None
      without pairs. Its interval is Wilson's, of as many pairs as would have the same variance if
      no two shared anything.
    """
    if not len(pairs.images):
        return None
    first, second = predictions[pairs.draws, pairs.images]
    flips = first != second
    counts = np.bincount(pairs.images)
    there = counts > 0
    # Not by weights, whose sum is 1 but for rounding.
    rate = float((np.bincount(pairs.images, flips)[there] / counts[there]).mean())
    low, high = share_interval(
        rate,
        pairs.variance(pairs.weights * (flips - rate)),
        pairs.one.units,
        fewest=pairs.fewest,
        most=pairs.most,
    )
    return FlipRate(rate, low, high, int(there.sum()), len(flips))
