"""Tests the variance of a method's mean over its seeds against plain loops and laws."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from two_way_by_hand import Method, singles_of, spread_of

from transforms.analysis import gaps_of_pictures
from transforms.two_way import EstimateSpread, Roles, Seeds, spread_of_methods


class Drawn:
    """Pictures that share foregrounds and backgrounds, and the answers of two methods' seeds."""

    def __init__(self, seed: int, pictures: int, seeds: Sequence[int], agreement: float) -> None:
        rng = np.random.default_rng(seed)
        self.foregrounds = rng.integers(0, max(pictures // 2, 2), pictures)
        self.backgrounds = rng.integers(0, max(pictures // 3, 2), pictures)
        self.roles = Roles.from_units(self.foregrounds, self.backgrounds)
        common = rng.random(pictures)
        self.methods = [
            seeds_of(
                np.where(rng.random((k, pictures)) < agreement, common, rng.random((k, pictures)))
                < rng.uniform(0.05, 0.95, (k, 1))
            )
            for k in seeds
        ]

    def __repr__(self) -> str:
        return f"{len(self.foregrounds)} pictures, {[len(one.values) for one in self.methods]}"


def seeds_of(right: Any) -> Seeds:
    """Returns the accuracies of seeds that are right on some pictures, (seeds, pictures)."""
    share = right.mean(axis=1)
    return Seeds(share, (right - share[:, np.newaxis]) / right.shape[1])


numbers = st.integers(3, 6)
drawn = st.builds(
    Drawn,
    st.integers(0, 2**32),
    st.integers(2, 30),
    st.tuples(numbers, numbers),
    st.sampled_from((0.0, 0.5, 0.9, 1.0)),
)


def by_hand(of: Drawn, *methods: Seeds, further: bool = False) -> tuple[float, float]:
    units = [(str(fg), str(bg)) for fg, bg in zip(of.foregrounds, of.backgrounds, strict=True)]
    known = [Method(one.values.tolist(), one.r.tolist()) for one in methods]
    return spread_of(units, known, further=further)


def figures(spread: EstimateSpread) -> list[float]:
    return [float(spread.variance), spread.units, float(spread.scatter), spread.pairs]


@given(drawn)
def test_variances_and_degrees_of_freedom_are_those_of_plain_loops(of: Drawn) -> None:
    first, second = of.methods
    if of.roles.units < 2:
        return
    for spread, expected in (
        (spread_of_methods(of.roles, first), by_hand(of, first)),
        (spread_of_methods(of.roles, first, second), by_hand(of, first, second)),
        (spread_of_methods(of.roles, first, further=True), by_hand(of, first, further=True)),
    ):
        found = float(spread.variance), spread.units - 1
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(drawn)
def test_paired_differences_are_those_of_single_seeds(of: Drawn) -> None:
    n = len(of.foregrounds)
    for known in (of.methods[:1], of.methods):
        spread = spread_of_methods(of.roles, *known)
        if spread.units < 2:
            return
        seeds = singles_of([Method(one.values.tolist(), one.r.tolist()) for one in known])
        scatter = sum(sum((n * x) ** 2 for x in r) / n for r in seeds) / len(seeds)
        assert float(spread.scatter) == pytest.approx(scatter)
        r = known[0].r.mean(axis=0) - sum(one.r.mean(axis=0) for one in known[1:])
        of_mean = float(of.roles.spread(r).scatter)
        # If no two pictures share a unit, the mean has the variance of so many of them.
        assert spread.pairs >= n
        if of_mean > 1e-12:
            assert scatter / spread.pairs == pytest.approx(of_mean / n)


@given(drawn, numbers)
@example(Drawn(384, 29, (4, 5), 1.0), 3)  # Both methods answer alike.
def test_seeds_that_are_alike_have_the_variance_of_one(of: Drawn, k: int) -> None:
    alike = [
        Seeds(np.repeat(one.values[:1], k), np.repeat(one.r[:1], k, axis=0)) for one in of.methods
    ]
    single = [Seeds(one.values[:1], one.r[:1]) for one in of.methods]
    for known in (1, 2):
        expected = of.roles.spread(single[0].r[0] - sum(one.r[0] for one in single[1:known]))
        # A single seed each says nothing of others, so its spread is that of images alone.
        assert figures(spread_of_methods(of.roles, *single[:known])) == figures(expected)
        found = spread_of_methods(of.roles, *alike[:known])
        assert figures(found) == pytest.approx(figures(expected), rel=1e-9, abs=1e-18)
    further = spread_of_methods(of.roles, alike[0], further=True)
    expected = of.roles.spread(single[0].r[0])
    assert figures(further) == pytest.approx(figures(expected), rel=1e-9, abs=1e-18)


@given(st.integers(0, 2**32), numbers)
def test_gaps_of_seeds_that_differ_everywhere_alike_differ_by_that(seed: int, k: int) -> None:
    """Seeds whose deviation from their mean is the same on all pictures have no noise of images."""
    rng = np.random.default_rng(seed)
    right, is_same = rng.random((1, 12)) < 0.5, np.arange(12) < 6
    roles = Roles.from_units(np.tile(np.arange(6), 2), rng.integers(0, 6, 12))
    gap, r = gaps_of_pictures(right, is_same)
    values = gap + rng.normal(0, 0.1, k)
    spread = spread_of_methods(roles, Seeds(values, np.repeat(r, k, axis=0)))
    of_images = roles.spread(r[0])
    expected = of_images.variance + values.var(ddof=1) / k
    assert float(spread.variance) == pytest.approx(float(expected))
    further = spread_of_methods(roles, Seeds(values, np.repeat(r, k, axis=0)), further=True)
    assert float(further.variance) == pytest.approx(float(expected + values.var(ddof=1)))


def test_with_one_unit_nothing_is_known_of_others() -> None:
    right = np.random.default_rng(1).random((3, 12)) < 0.7
    many, ones = np.arange(12), np.zeros(12, np.int64)
    for roles in (Roles.from_units(many, ones), Roles.from_units(ones, many)):
        for spread in (
            spread_of_methods(roles, seeds_of(right)),
            spread_of_methods(roles, seeds_of(right), seeds_of(~right)),
            spread_of_methods(roles, seeds_of(right), further=True),
        ):
            assert spread.variance == math.inf
            assert spread.units == 1
