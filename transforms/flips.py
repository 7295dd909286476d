"""Flip rate: how often a prediction changes when only the background does.

It is the probability that two pictures of one foreground on different backgrounds get different
predictions, estimated over pairs of pictures. The share of foregrounds whose predictions are not
all equal would not do: it grows with the number of backgrounds of each foreground, so figures for
different numbers of draws could not be compared. With one pair for each foreground, both measures
are equal.
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
      images: (m,) int64, number of the image whose foreground each pair shows.
      draws: (2, m) int64, draws of the two pictures.
      weights: (m,) float64, which add up to 1; the pairs of each foreground have the same total.
      pictures: (2, m) int64, the two pictures, numbered among those that are in any pair.
      picture_roles: roles of these pictures.
      pair_roles: roles of the m pairs, with the two backgrounds together as the background.
    """

    images: NDArray[np.int64]
    draws: NDArray[np.int64]
    weights: Floats
    pictures: NDArray[np.int64]
    picture_roles: Roles
    pair_roles: Roles

    @classmethod
    def from_units(
        cls, foregrounds: Units, backgrounds: Units, draws: Sequence[tuple[int, int]]
    ) -> PicturePairs:
        """Pairs up the pictures of each foreground.

        Args:
          foregrounds: (n,) unit of each image, whose foreground is shown.
          backgrounds: (draws, n) unit of its background in each draw.
          draws: the pairs of draws to compare. Two backgrounds of the same unit form no pair,
            because a picture that was drawn twice would count as a stable prediction.
        """
        draw_pairs = np.asarray(draws, np.int64).reshape(-1, 2)
        differ = backgrounds[draw_pairs[:, 0]] != backgrounds[draw_pairs[:, 1]]
        images, compared = np.nonzero(differ.T)
        chosen = draw_pairs[compared].T
        n = len(foregrounds)
        counts = np.bincount(images, minlength=n)
        paired, pictures = np.unique(chosen * n + images, return_inverse=True)
        pictures = pictures.reshape(2, -1)
        numbers = np.unique(backgrounds.ravel()[paired], return_inverse=True)[1]
        low, high = np.sort(numbers[pictures], axis=0)
        return cls(
            images,
            chosen,
            1 / (counts[images] * np.count_nonzero(counts)),
            pictures,
            Roles.from_units(foregrounds[paired % n], numbers),
            Roles.from_units(foregrounds[images], low * (int(numbers.max(initial=0)) + 1) + high),
        )

    def shared_products(self, r: Floats) -> tuple[float, float, float]:
        """Sums the products of contributions over every two pairs that share a unit.

        A pair's contribution counts in full for each of its two backgrounds, since each affects the
        pair fully. Two pairs that share both backgrounds would count twice, so that is subtracted.
        Source: Aronow, Samii and Assenova 2015, "Cluster-robust variance estimation for dyadic
        data".

        Args:
          r: (m,) contribution of each pair.

        Returns:
          The sums over pairs that share (their foreground, a background, both); each pair shares
          everything with itself.
        """
        by_picture = np.bincount(self.pictures.ravel(), np.tile(r, 2)).astype(np.float64)
        by_foreground, by_one, by_foreground_one = map(
            _sum_squares, self.picture_roles.sums(by_picture)
        )
        _, by_both, by_foreground_both = map(_sum_squares, self.pair_roles.sums(r))
        # Each pair counts twice for its foreground, which both of its pictures show.
        return by_foreground / 4, by_one - by_both, by_foreground_one - by_foreground_both

    @functools.cached_property
    def fewest(self) -> float:
        """Effective number of pairs if those that share a unit are all copies of one."""
        return 1 / max(self.shared_products(self.weights)[:2])

    @functools.cached_property
    def most(self) -> float:
        """Effective number of pairs if none share a unit: that of their weights (Kish 1965)."""
        return 1 / _sum_squares(self.weights)

    def variance(self, r: Floats) -> float:
        """Computes the two-way variance of an estimate.

        Args:
          r: (m,) contribution of each pair; they add up to 0.

        Returns:
          The variance, infinite if a role has a single unit.
        """
        foreground, background, common = self.shared_products(r)
        units = self.picture_roles.counts
        if min(units) < 2:
            return float("inf")
        foreground, background = (
            total * count / (count - 1)
            for total, count in zip((foreground, background), units, strict=True)
        )
        return foreground + max(background - common, 0.0)


def _sum_squares(sums: Floats) -> float:
    return float(np.square(sums).sum())


@dataclasses.dataclass(frozen=True)
class FlipRate:
    """A flip rate with its interval.

    Attributes:
      rate: a fraction.
      low, high: two-way 95 % interval, over foregrounds and backgrounds.
      foregrounds: number of images whose foreground has a pair.
      pairs: number of pairs of pictures.
    """

    rate: float
    low: float
    high: float
    foregrounds: int
    pairs: int


def flip_rate(predictions: NDArray[np.integer], pairs: PicturePairs) -> FlipRate | None:
    """Estimates how often predictions change with the background.

    Args:
      predictions: (draws, n) integers, of each foreground in each draw; `OUTSIDE` counts as a class
        of its own.
      pairs: of these pictures.

    Returns:
      The mean over foregrounds of the share of their pairs whose two predictions differ; None
      without pairs. The interval is Wilson's, for the number of independent pairs that would have
      the same variance.
    """
    if not len(pairs.images):
        return None
    first, second = predictions[pairs.draws, pairs.images]
    flips = first != second
    counts = np.bincount(pairs.images)
    has_pairs = counts > 0
    # The weights would do, but they only add up to 1 up to rounding.
    rate = float((np.bincount(pairs.images, flips)[has_pairs] / counts[has_pairs]).mean())
    low, high = share_interval(
        rate,
        pairs.variance(pairs.weights * (flips - rate)),
        pairs.picture_roles.units,
        fewest=pairs.fewest,
        most=pairs.most,
    )
    return FlipRate(rate, low, high, int(has_pairs.sum()), len(flips))
