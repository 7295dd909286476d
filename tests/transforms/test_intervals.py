"""Tests intervals: published values, coverage, and the bootstrap against a plain loop."""

import math

import numpy as np
import pytest

from transforms.hashing import keyed_hashes, substream, substreams
from transforms.intervals import (
    bootstrap_interval,
    bootstrap_means,
    poisson_weights,
    wilson,
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
    """Computes coverage exactly, by the probability of every outcome, for a grid of accuracies."""
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


@pytest.mark.parametrize("units", [1, 40, 5000])
def test_bootstrap_means_are_those_of_a_plain_loop(units: int) -> None:
    """Tests units of different size, and more of them than are processed at a time."""
    rng = np.random.default_rng(units)
    values = rng.integers(-3, 4, (units, 3)).astype(np.float64)
    sizes = rng.integers(1, 4, units).astype(np.float64)
    hashes = keyed_hashes(5, "bootstrap", [str(unit) for unit in range(units)])
    expected = []
    for resample in range(37):
        weights = poisson_weights(substream(hashes, resample))
        if weights @ sizes > 0:
            expected.append(weights @ values / (weights @ sizes))
    means = bootstrap_means(values, sizes, hashes, resamples=37)
    np.testing.assert_array_equal(means, np.asarray(expected).reshape(-1, 3))


def test_several_substreams_are_each_of_them() -> None:
    hashes = keyed_hashes(0, "x", ["a", "b", "c"])
    together = substreams(hashes, range(4, 9))
    for row, index in zip(together, range(4, 9), strict=True):
        np.testing.assert_array_equal(row, substream(hashes, index))


def test_intervals_stay_what_they_were() -> None:
    """Checks numbers of a published table, which must not change with the implementation."""
    rng = np.random.default_rng(0)
    first, second = rng.random(151) < 0.8, rng.random(151) < 0.7
    difference = (first.astype(np.float64) - second)[:, np.newaxis]
    low, high = bootstrap_interval(difference, [f"ILSVRC2012_val_{i:08d}" for i in range(151)])
    assert (low[0], high[0]) == (0.007403381642512085, 0.22360943728562155)


def test_the_bootstrap_matches_the_normal_approximation_of_many_pairs() -> None:
    """Compares with the standard error of paired differences, sqrt((b + c - (b - c)^2 / n)) / n."""
    n, lost, won = 3000, 420, 150
    first, second = np.ones(n), np.ones(n)
    second[:lost], first[lost : lost + won] = 0, 0
    difference = (first - second)[:, np.newaxis]
    (low,), (high,) = bootstrap_interval(difference, [str(i) for i in range(n)])
    gap = (lost - won) / n
    error = math.sqrt(lost + won - (lost - won) ** 2 / n) / n
    assert low == pytest.approx(gap - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(gap + 1.96 * error, abs=0.1 * error)
