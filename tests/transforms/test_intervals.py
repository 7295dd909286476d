"""Intervals: published values, coverage, and the bootstrap against a plain loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from transforms.hashing import keyed_hashes, substream, substreams
from transforms.intervals import (
    bootstrap_hashes,
    bootstrap_means,
    paired_bootstrap,
    percentile_interval,
    poisson_weights,
    wilson,
    wilson_of_units,
)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_matches_published_intervals(correct: int, n: int, low: float, high: float) -> None:
    assert wilson(correct, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [20, 151, 450])
def test_wilson_covers(n: int) -> None:
    """Exactly: the probability of every outcome, over a grid of true accuracies."""
    bounds = np.asarray([wilson(correct, n) for correct in range(n + 1)])
    shares = np.linspace(0.02, 0.98, 97)
    choose = [
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)
    ]
    k = np.arange(n + 1)
    outcomes = np.exp(
        np.asarray(choose) + k * np.log(shares)[:, None] + (n - k) * np.log1p(-shares)[:, None]
    )
    np.testing.assert_allclose(outcomes.sum(axis=1), 1, rtol=1e-9)
    inside = (bounds[:, 0] <= shares[:, None]) & (shares[:, None] <= bounds[:, 1])
    coverage = (outcomes * inside).sum(axis=1)
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)
    assert coverage.min() > 0.89


def related_trials(rng: np.random.Generator, trials: int, shape: tuple[int, int]) -> NDArray:
    """(trials, units, replicates) bool: units of different difficulty, 0.7 right on average."""
    difficulty = rng.beta(0.7, 0.3, (trials, shape[0], 1))
    return rng.random((trials, *shape)) < difficulty


def test_wilson_of_units_covers_where_trials_are_related() -> None:
    right = related_trials(np.random.default_rng(1), 1500, (40, 5)).sum(axis=2)
    of_each = np.full(40, 5)
    bounds = np.asarray([wilson_of_units(hits, of_each) for hits in right])
    coverage = ((bounds[:, 0] <= 0.7) & (bounds[:, 1] >= 0.7)).mean()
    assert 0.925 <= coverage <= 0.975
    plain = np.asarray([wilson(int(hits.sum()), 200) for hits in right])
    assert ((plain[:, 0] <= 0.7) & (plain[:, 1] >= 0.7)).mean() < 0.8


@given(st.integers(0, 60), st.integers(0, 60))
def test_wilson_of_single_trials_is_wilson(correct: int, wrong: int) -> None:
    hits = np.repeat([1, 0], [correct, wrong])
    expected = wilson(correct, correct + wrong)
    assert wilson_of_units(hits, np.ones_like(hits)) == pytest.approx(expected)


@given(hnp.arrays(np.int64, st.integers(1, 12), elements=st.integers(0, 4)))
def test_wilson_of_units_lies_between_units_and_trials(hits: NDArray[np.int64]) -> None:
    n, total = np.full(len(hits), 4), int(hits.sum())
    low, high = wilson_of_units(hits, n)
    narrow_low, narrow_high = wilson(total, 4 * len(hits))
    assert low <= narrow_low + 1e-12
    assert high >= narrow_high - 1e-12
    assert low <= total / (4 * len(hits)) <= high
    # Copies of one trial count once.
    copied = wilson_of_units(np.where(hits > 1, 4, 0), n)
    assert copied == pytest.approx(wilson(int((hits > 1).sum()), len(hits)))


def test_wilson_of_units_refuses_what_is_no_proportion() -> None:
    assert wilson_of_units(np.empty(0, np.int64), np.empty(0, np.int64)) == (0.0, 1.0)
    for hits, n in (([1], [0]), ([3], [2]), ([-1], [2])):
        with pytest.raises(ValueError, match="no more successes"):
            wilson_of_units(np.asarray(hits), np.asarray(n))


@pytest.mark.parametrize("units", [1, 40, 5000])
def test_bootstrap_means_are_those_of_a_plain_loop(units: int) -> None:
    """More units than are worked on at a time, and units of different size."""
    rng = np.random.default_rng(units)
    values = rng.integers(-3, 4, (units, 3)).astype(np.float64)
    sizes = rng.integers(1, 4, units).astype(np.float64)
    hashes = keyed_hashes(5, "bootstrap", [str(unit) for unit in range(units)])
    expected = []
    for resample in range(37):
        weights = poisson_weights(substream(hashes, resample))
        if weights @ sizes > 0:
            expected.append(weights @ values / (weights @ sizes))
    found = bootstrap_means(values, sizes, hashes, resamples=37)
    np.testing.assert_array_equal(found, np.asarray(expected).reshape(-1, 3))


def test_several_substreams_are_each_of_them() -> None:
    hashes = keyed_hashes(0, "x", ["a", "b", "c"])
    together = substreams(hashes, range(4, 9))
    for row, index in zip(together, range(4, 9), strict=True):
        np.testing.assert_array_equal(row, substream(hashes, index))


def test_intervals_stay_what_they_were() -> None:
    """Results must not change with the implementation: numbers of a published table."""
    rng = np.random.default_rng(0)
    first, second = rng.random(151) < 0.8, rng.random(151) < 0.7
    found = paired_bootstrap(first, second, [f"ILSVRC2012_val_{i:08d}" for i in range(151)])
    assert found == (0.11920529801324503, 0.007403381642512085, 0.22360943728562155)


def test_the_bootstrap_matches_the_normal_approximation_of_many_pairs() -> None:
    """Standard error of a paired difference: sqrt((b + c - (b - c)^2 / n)) / n."""
    n, lost, won = 3000, 420, 150
    first, second = np.ones(n), np.ones(n)
    second[:lost], first[lost : lost + won] = 0, 0
    gap, low, high = paired_bootstrap(first, second, [str(i) for i in range(n)])
    error = math.sqrt(lost + won - (lost - won) ** 2 / n) / n
    assert gap == (lost - won) / n
    assert low == pytest.approx(gap - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(gap + 1.96 * error, abs=0.1 * error)


def coverage(differences: NDArray[np.floating], sizes: float, truth: float) -> float:
    """Share of trials, (units, trials) sums of differences, whose interval holds the truth."""
    keys = [f"unit {unit}" for unit in range(len(differences))]
    means = bootstrap_means(
        differences.astype(np.float64), np.full(len(keys), sizes), bootstrap_hashes(keys)
    )
    low, high = percentile_interval(means)
    return float(((low <= truth) & (truth <= high)).mean())


def test_the_gap_interval_covers() -> None:
    rng = np.random.default_rng(11)
    same = rng.random((151, 2000)) < 0.88
    rand = np.where(same, rng.random(same.shape) < 0.88, rng.random(same.shape) < 0.25)
    truth = 0.88 - (0.88 * 0.88 + 0.12 * 0.25)
    assert 0.93 <= coverage(same * 1.0 - rand, 1, truth) <= 0.965


def test_the_gap_interval_covers_over_replicates_of_the_same_foregrounds() -> None:
    """Foregrounds are resampled whole; as if replicates were other images, it would not."""
    rng = np.random.default_rng(12)
    # The difference that backgrounds make to a foreground, drawn anew in every trial.
    hard = rng.beta(0.5, 1.5, (100, 1, 1500))
    same = rng.random((100, 4, 1500)) < 1 - 0.2 * hard
    differences = same * 1.0 - (rng.random(same.shape) < 1 - hard)
    truth = 0.8 * 0.25
    assert 0.925 <= coverage(differences.sum(axis=1), 4, truth) <= 0.965
    assert coverage(differences.reshape(400, -1), 1, truth) < 0.92
