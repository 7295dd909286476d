"""Flip rate: how often a prediction changes when only the background does.

The flip rate is the probability that two pictures of one foreground on different backgrounds get
different predictions. It is estimated over pairs of pictures. A simpler measure would be the share
of foregrounds whose predictions are not all equal. But that share grows with the number of
backgrounds of each foreground, so figures for different numbers of draws could not be compared.
With one pair for each foreground, both measures are equal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.intervals import Floats
from transforms.two_way import Roles, Units, share_interval


@dataclasses.dataclass(frozen=True, eq=False)
class PicturePairs:
    """Pairs of pictures that show one foreground on backgrounds of two different units.

    Attributes:
      images: (m,) int64, number of the image whose foreground each pair shows.
      draws: (2, m) int64, the draws that the two pictures of each pair come from.
      weights: (m,) float64, weights of the pairs, which add up to 1. The weights of each
        foreground's pairs have the same total.
      pictures: (2, m) int64, numbers of the two pictures of each pair. Only pictures that are in
        some pair have a number.
      picture_roles: units of the numbered pictures' foregrounds and backgrounds.
      pair_roles: units of the m pairs; the background unit of a pair is the unordered pair of its
        two pictures' background units.
    """

    images: NDArray[np.int64]
    draws: NDArray[np.int64]
    weights: Floats
    pictures: NDArray[np.int64]
    picture_roles: Roles
    pair_roles: Roles

    @classmethod
    def from_units(
        cls,
        foregrounds: Units,
        backgrounds: Units,
        usable: NDArray[np.bool_],
        draws: Sequence[tuple[int, int]],
    ) -> PicturePairs:
        """Pairs up the pictures of each foreground.

        Args:
          foregrounds: (n,) unit of each image whose foreground is shown.
          backgrounds: (draws, n) unit of the background that each foreground has in each draw.
          usable: (draws, n) bool, whether each picture may be paired.
          draws: the pairs of draws to compare. Two pictures whose backgrounds belong to the same
            unit are not paired, because the same picture drawn twice would always count as a stable
            prediction.
        """
        draw_pairs = np.asarray(draws, np.int64).reshape(-1, 2)
        differ = backgrounds[draw_pairs[:, 0]] != backgrounds[draw_pairs[:, 1]]
        images, compared = np.nonzero((differ & usable[draw_pairs].all(axis=1)).T)
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
        """Sums the products of the contributions of every two pairs that share a unit.

        A pair's contribution counts in full for each of its two backgrounds, because each of them
        affects the whole pair. The product of two pairs that share both backgrounds would count
        twice, so it is subtracted once.
        Source: Aronow, Samii and Assenova 2015, "Cluster-robust variance estimation for dyadic
        data".

        Args:
          r: (m,) contribution of each pair.

        Returns:
          Three sums: over every two pairs that share their foreground, that share a background, and
          that share both. Each pair also counts with itself.
        """
        by_picture = np.bincount(self.pictures.ravel(), np.tile(r, 2)).astype(np.float64)
        by_foreground, by_one, by_foreground_one = map(
            _sum_squares, self.picture_roles.sums(by_picture)
        )
        _, by_both, by_foreground_both = map(_sum_squares, self.pair_roles.sums(r))
        # Both pictures of a pair show its foreground, so its contribution is counted twice there.
        return by_foreground / 4, by_one - by_both, by_foreground_one - by_foreground_both

    def variance(self, r: Floats) -> float:
        """Computes an estimate's two-way variance; infinite if a role has a single unit.

        `r` is the (m,) contribution of each pair; the contributions add up to 0.
        """
        foreground, background, common = self.shared_products(r)
        units = self.picture_roles.effective
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
      rate: the flip rate, a fraction.
      low, high: two-way 95 % interval of the rate, over foregrounds and backgrounds.
      foregrounds: number of images whose foreground has at least one pair of pictures.
    """

    rate: float
    low: float
    high: float
    foregrounds: int
    pairs: int


def flip_rate(predictions: NDArray[np.integer], pairs: PicturePairs) -> FlipRate | None:
    """Estimates how often predictions change with the background.

    Args:
      predictions: (draws, n) integers, the prediction for each foreground in each draw; `OUTSIDE`
        counts as a class of its own.

    Returns:
      The flip rate; None without pairs. For each foreground, take the share of its pairs whose two
      predictions differ; the rate is the mean of these shares. The interval is Wilson's, for the
      number of independent pairs that would have the same variance.
    """
    if not len(pairs.images):
        return None
    first, second = predictions[pairs.draws, pairs.images]
    flips = first != second
    counts = np.bincount(pairs.images)
    has_pairs = counts > 0
    # The weights would give the same rate, but only up to rounding.
    rate = float((np.bincount(pairs.images, flips)[has_pairs] / counts[has_pairs]).mean())
    low, high = share_interval(
        rate,
        pairs.variance(pairs.weights * (flips - rate)),
        pairs.picture_roles.units,
        # If all pairs that share a unit are copies of one pair.
        fewest=1 / max(pairs.shared_products(pairs.weights)[:2]),
        # If no two share a unit, the weights give the number (Kish 1965).
        most=1 / _sum_squares(pairs.weights),
    )
    return FlipRate(rate, low, high, int(has_pairs.sum()), len(flips))
