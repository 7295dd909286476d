"""Tests two-way intervals, flip rates, p values and slopes against loops, scipy and laws."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import optimize, stats
from two_way_by_hand import flip_interval, variance_of

from transforms.flips import FlipRate, PicturePairs, flip_rate
from transforms.intervals import (
    benjamini_hochberg,
    holm,
    score_interval,
    t_p_value,
    t_quantile,
    wilson,
)
from transforms.trend import line_interval
from transforms.two_way import (
    EstimateSpread,
    Roles,
    difference_interval,
    p_value,
    smallest_difference,
    wilson_of_pictures,
)

pictures = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), min_size=1, max_size=30
)
"""(foreground, background, right) of each picture."""
shares = hnp.arrays(np.float64, st.integers(0, 20), elements=st.floats(0, 1))


def columns(drawn: list[tuple[int, int, bool]]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    fg, bg, right = (np.asarray(column) for column in zip(*drawn, strict=True))
    return fg, bg, right


@given(pictures)
def test_the_variance_is_that_of_a_plain_loop(drawn: list[tuple[int, int, bool]]) -> None:
    fg, bg, right = columns(drawn)
    r = (right - right.mean()) / len(right)
    variance = Roles.from_units(fg * 7 - 3, bg).variance(r)
    with pytest.raises(ValueError, match=f"{len(fg)} foregrounds on {len(fg) + 1}"):
        Roles.from_units(fg, np.append(bg, 0))
    if min(len(set(fg.tolist())), len(set(bg.tolist()))) < 2:
        assert variance == math.inf
    else:
        rows = list(zip(fg.tolist(), bg.tolist(), r.tolist(), strict=True))
        assert variance == pytest.approx(variance_of(rows)[0])
    # The names of units and the order of pictures do not matter.
    order = np.arange(len(fg))[::-1]
    assert Roles.from_units(-fg[order], bg[order] + 90).variance(r[order]) == pytest.approx(
        variance
    )


@given(pictures)
def test_sums_are_linear_and_come_in_any_number(drawn: list[tuple[int, int, bool]]) -> None:
    fg, bg, right = columns(drawn)
    roles = Roles.from_units(fg, bg)
    r = np.stack([right - right.mean(), np.arange(len(fg)) - (len(fg) - 1) / 2])
    both = [*roles.corrected(r), roles.paired(r)]
    for row in range(2):
        one = [*roles.corrected(r[row]), roles.paired(r[row])]
        for together, alone in zip(both, one, strict=True):
            np.testing.assert_allclose(together[row], alone)
    *less, paired = (sums[0] - sums[1] for sums in both)
    spread, expected = roles.spread_of_sums(less, paired), roles.spread(r[0] - r[1])
    assert spread.variance == pytest.approx(roles.variance(r[0] - r[1]))
    assert spread.scatter == pytest.approx(expected.scatter)
    assert (spread.pairs, spread.units) == (expected.pairs, expected.units)


@given(pictures)
def test_wilson_of_pictures_lies_between_units_and_trials(
    drawn: list[tuple[int, int, bool]],
) -> None:
    fg, bg, right = columns(drawn)
    roles, hits, n = Roles.from_units(fg, bg), int(right.sum()), len(right)
    low, high = wilson_of_pictures(right, roles)
    narrow_low, narrow_high = wilson(hits, n)
    assert 0 <= low <= narrow_low + 1e-12
    assert narrow_high - 1e-12 <= high <= 1
    # The interval is never wider than if the pictures of a unit were copies of one.
    fewest = min(n**2 / np.square(np.unique(x, return_counts=True)[1]).sum() for x in (fg, bg))
    assert roles.units == pytest.approx(fewest)
    if roles.units >= 2:
        wide = score_interval(hits / n, float(fewest), t_quantile(roles.units - 1, 0.95))
        assert wide[0] <= low + 1e-12
        assert wide[1] >= high - 1e-12
    one_way = wilson_of_pictures(right, Roles.from_units(np.arange(n)))
    assert one_way == wilson_of_pictures(right, Roles.from_units(np.arange(n), np.arange(n)))
    assert one_way == wilson(hits, n)


def test_shares_without_doubt() -> None:
    none = np.empty(0, np.int64)
    assert wilson_of_pictures(none.astype(bool), Roles.from_units(none, none)) == (0, 1)
    # A single background or foreground says nothing about others.
    ones, many = np.zeros(12, np.int64), np.arange(12)
    for roles in (
        Roles.from_units(many, ones),
        Roles.from_units(ones, many),
        Roles.from_units(ones),
    ):
        assert roles.units == 1
        assert wilson_of_pictures(many > 3, roles) == (0, 1)
        value, spread = np.asarray(0.25), roles.spread((many - 5.5) / 12)
        assert spread.variance == np.inf
        assert difference_interval(value, spread) == (-1, 1)
        assert p_value(value, spread) == 1
        assert smallest_difference(value, spread) == np.inf
    # If all are right, or all wrong, there are as many trials as backgrounds, which serve two each.
    right, roles = np.ones(12, bool), Roles.from_units(many, many // 2)
    low, high = wilson_of_pictures(right, roles)
    assert (low, high) == score_interval(1.0, 6, t_quantile(5, 0.95))
    assert wilson_of_pictures(~right, roles) == pytest.approx((1 - high, 1 - low))


def spread_of(
    values: Any, units: float | None = None
) -> tuple[NDArray[np.float64], EstimateSpread]:
    """Returns the mean and the spread of independent paired differences."""
    y = np.asarray(values, np.float64)
    n, scatter = len(y), np.asarray(y.var())
    return np.asarray(y.mean()), EstimateSpread(
        scatter / n, scatter, n, n if units is None else units
    )


def test_many_degrees_of_freedom_give_published_intervals() -> None:
    """Compares with Fagerland, Lydersen and Laake 2017, Statistical Analysis of Contingency Tables.

    The studies are by Bentur et al. 2009 and Cavo et al. 2012; the intervals, in chapter 8, are
    those of Tango 1998 with normal quantiles.
    """
    for (more, less, alike), expected in (
        ((1, 7, 13), (-0.5172, -0.0260)),
        ((6, 16, 139), (-0.1240, -0.0054)),
    ):
        estimate, spread = spread_of([1] * more + [-1] * less + [0] * alike, units=1e9)
        bounds = difference_interval(estimate, spread)
        assert [float(end) for end in bounds] == pytest.approx(expected, abs=5e-5)
        # McNemar's test is the same score test of 0.
        mcnemar = stats.chi2.sf((more - less) ** 2 / (more + less), 1)
        assert p_value(estimate, spread) == pytest.approx(mcnemar, rel=1e-5)


@given(st.integers(0, 9), st.integers(0, 9), st.integers(1, 30), st.floats(-0.9, 0.9))
def test_the_variance_at_a_value_is_that_of_the_most_likely_shares(
    more: int, less: int, alike: int, value: float
) -> None:
    """Finds the shares of 1 and -1 with this mean numerically."""
    estimate, spread = spread_of([1] * more + [-1] * less + [0] * alike)

    def unlikely(rarer: float) -> float:
        shares = rarer + max(value, 0), rarer + max(-value, 0)
        counts = more, less, alike
        return -sum(
            count * math.log(share)
            for count, share in zip(counts, (*shares, 1 - sum(shares)), strict=True)
            if count
        )

    most = (1 - abs(value)) / 2
    best = optimize.minimize_scalar(unlikely, bounds=(0, most), options={"xatol": 1e-10})
    expected = (2 * best.x + abs(value) - value**2) / (more + less + alike)
    if more or less:
        assert spread.variance_at(estimate)(np.asarray(value)) == pytest.approx(expected, abs=1e-6)
    assert spread.variance_at(estimate)(estimate) == pytest.approx(spread.variance, abs=1e-12)


def test_units_that_agree_leave_room_for_some_that_do_not() -> None:
    estimate, nothing = np.asarray([0.0, 1.0, -1.0]), np.zeros(3)
    spread = EstimateSpread(nothing, nothing, 8, 4.0)
    low, high = difference_interval(estimate, spread)
    other = score_interval(0, 4, t_quantile(3, 0.95))[1]
    np.testing.assert_allclose(low, [-other, 1 - 2 * other, -1])
    np.testing.assert_allclose(high, [other, 1, 2 * other - 1])
    expected = t_p_value(np.asarray([0.0, 2.0, -2.0]), 3)
    np.testing.assert_allclose(p_value(estimate, spread), expected)


@pytest.mark.parametrize("differing", [3, 30])
def test_the_smallest_difference_shows_in_eight_of_ten_draws(differing: int) -> None:
    """Draws models with this true difference: as many more pairs differ as that takes."""
    rng, n = np.random.default_rng(0), 151
    sign = np.where(np.arange(differing) % 2, -1, 1)
    estimate, spread = spread_of([*sign, *[0] * (n - differing)])
    for limit, confidence in ((0.0, 0.95), (0.02, 0.99)):
        smallest = float(smallest_difference(estimate, spread, confidence, limit))
        against = differing / n / 2
        shares = [more := against + limit + smallest, against, 1 - more - against]
        draws = rng.choice([1, -1, 0], (3000, n), p=shares)
        scatter = draws.var(axis=1)
        drawn = EstimateSpread(scatter / (n - 1), scatter, n, n)
        low, _ = difference_interval(draws.mean(axis=1), drawn, confidence)
        assert 0.75 < (low > limit).mean() < 0.93
        # With the variance seen, it would show more rarely.
        df = n - 1
        errors = t_quantile(df, confidence) + t_quantile(df, 0.6)
        assert smallest > errors * math.sqrt(spread.variance)
    # If all units agree, a share of them is meant that differ by 1.
    nothing = EstimateSpread(np.zeros(()), np.zeros(()), n, n)
    rare = float(smallest_difference(np.zeros(()), nothing))
    errors = t_quantile(n - 1, 0.95) + t_quantile(n - 1, 0.6)
    assert rare == pytest.approx(errors * math.sqrt(rare * (1 - rare) / n))


@given(
    hnp.arrays(np.float64, 5, elements=st.floats(-1, 1)),
    hnp.arrays(np.float64, 5, elements=st.floats(0, 1)),
    hnp.arrays(np.float64, 5, elements=st.floats(0, 1)),
    st.floats(1, 40),
    st.floats(1, 4),
)
def test_p_values_and_intervals_say_the_same(
    estimate: NDArray[np.float64],
    variance: NDArray[np.float64],
    scatter: NDArray[np.float64],
    units: float,
    draws: float,
) -> None:
    spread = EstimateSpread(variance, scatter, units * draws, units)
    low, high = difference_interval(estimate, spread)
    assert ((low <= estimate) & (estimate <= high)).all()
    assert ((low >= -1) & (high <= 1)).all()
    p = p_value(estimate, spread)
    assert ((p >= 0) & (p <= 1)).all()
    clear = (np.abs(p - 0.05) > 1e-6) & (np.abs(estimate) > 1e-6)
    outside = (low > 0) | (high < 0)
    np.testing.assert_array_equal(outside[clear], (p < 0.05)[clear])
    # Models that are exchanged have the opposite difference, and more images leave less room.
    np.testing.assert_allclose(difference_interval(-estimate, spread), (-high, -low), atol=1e-8)
    closer = difference_interval(estimate, spread.grown(2.0))
    assert (closer[0] >= low - 1e-8).all()
    assert (closer[1] <= high + 1e-8).all()
    assert (smallest_difference(estimate, spread) > 0).all()


@given(st.integers(1, 100_000), st.floats(0.5, 1 - 1e-6))
def test_quantiles_and_p_values_are_those_of_scipy(df: int, confidence: float) -> None:
    t = t_quantile(df, confidence)
    assert t == pytest.approx(stats.t.ppf((1 + confidence) / 2, df), rel=1e-6)
    values = np.asarray([t, -t, math.inf])
    assert t_p_value(values, df) == pytest.approx([1 - confidence, 1 - confidence, 0], abs=1e-10)


def test_without_degrees_of_freedom_nothing_is_known() -> None:
    assert t_quantile(0, 0.95) == math.inf
    assert t_p_value(np.asarray([0.0, 9.0]), 0).tolist() == [1, 1]


@given(shares)
def test_adjusted_p_values_are_those_of_the_definitions(p: NDArray[np.float64]) -> None:
    m, ordered = len(p), sorted(p)
    for index, value in enumerate(p.tolist()):
        below = [(m - i) * x for i, x in enumerate(ordered) if x <= value]
        assert holm(p)[index] == pytest.approx(min(1, max(below)))
        above = [m * x / (i + 1) for i, x in enumerate(ordered) if x >= value]
        assert benjamini_hochberg(p)[index] == pytest.approx(min(1, min(above)))
    assert (benjamini_hochberg(p) <= holm(p) + 1e-12).all()
    two = np.stack([p, p[::-1]], axis=1)
    np.testing.assert_array_equal(holm(two)[:, 0], holm(p))
    np.testing.assert_array_equal(benjamini_hochberg(two)[:, 1], benjamini_hochberg(p)[::-1])


@pytest.mark.parametrize("at", [None, 0.6, 0.7, 0.9])
def test_a_line_has_the_variance_of_models_and_of_images(at: float | None) -> None:
    """The slope is row 1 of the coefficients, and the height is the intercept + at * slope."""
    rng = np.random.default_rng(3)
    x = rng.uniform(0.6, 0.85, 12)
    right = rng.random((12, 40)) < 0.1 + 0.8 * x[:, None]
    y = right.mean(axis=1)
    value, low, high = line_interval(x, y, [np.zeros((12, 2))], at=at)
    slope, intercept = np.polyfit(x, y, 1)
    assert value == pytest.approx(slope if at is None else intercept + at * slope)
    # HC3 is computed as a sandwich, with the whole hat matrix.
    design = np.stack([np.ones(12), x], axis=1)
    bread = np.linalg.inv(design.T @ design)
    hat = design @ bread @ design.T
    of_coefficients = [0, 1] if at is None else [1, at]
    weights, leverage = of_coefficients @ bread @ design.T, np.diag(hat)
    residual = (np.eye(12) - hat) @ y
    variance = float((weights**2 * (residual / (1 - leverage)) ** 2).sum())
    reach = t_quantile(10, 0.95) * math.sqrt(variance)
    assert (low, high) == pytest.approx((value - reach, value + reach))
    # HC3 covers errors on images that models do not share, but not errors that they share.
    roles = Roles.from_units(np.arange(40))
    r = (right - y[:, None]) / 40
    shared = r + 40 * np.outer(x - x.mean(), r[0])
    of_images = float(roles.variance(weights @ shared))
    shared_residuals = (np.eye(12) - hat) @ shared
    in_both = (weights**2 / (1 - leverage) ** 2 * roles.variance(shared_residuals)).sum()
    assert of_images > in_both
    _, low, high = line_interval(x, y, roles.corrected(shared), at=at)
    expected = t_quantile(10, 0.95) * math.sqrt(variance + of_images - in_both)
    assert (high - low) / 2 == pytest.approx(expected)
    # Only one model has the second accuracy, so nothing tells how much such models scatter.
    few = line_interval([0.7, 0.7, 0.8], [0.1, 0.2, 0.3], [np.zeros((3, 2))], at=at)
    assert few[1:] == (-math.inf, math.inf)


@pytest.mark.filterwarnings("error")
def test_a_slope_over_images_of_one_unit_is_unbounded() -> None:
    rng = np.random.default_rng(4)
    x, right = np.linspace(0.6, 0.8, 5), rng.random((5, 20)) < 0.6
    r = (right - right.mean(axis=1, keepdims=True)) / 20
    one, own = np.zeros(20, np.int64), np.arange(20)
    for roles in (Roles.from_units(one), Roles.from_units(own, one), Roles.from_units(one, own)):
        _, *bounds = line_interval(x, right.mean(axis=1), roles.corrected(r))
        assert bounds == [-math.inf, math.inf]


Array = NDArray[np.int64]


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Array, Array, Array, list[tuple[int, int]]]:
    """Draws (unit of each foreground, units of backgrounds, predictions, draws to compare)."""
    n, draws = draw(st.integers(1, 7)), draw(st.integers(2, 4))
    units = draw(hnp.arrays(np.int64, n, elements=st.integers(-3, 3)))
    grounds = draw(hnp.arrays(np.int64, (draws, n), elements=st.integers(-3, 3)))
    answers = draw(hnp.arrays(np.int64, (draws, n), elements=st.integers(-1, 2)))
    every = list(itertools.combinations(range(draws), 2))
    return units, grounds, answers, draw(st.lists(st.sampled_from(every), min_size=1, unique=True))


def rate_of(units: Array, grounds: Array, answers: Array, draws: Any) -> FlipRate | None:
    return flip_rate(
        answers, PicturePairs.from_units(units, grounds, np.ones_like(grounds, bool), draws)
    )


@given(drawn())
def test_rates_are_those_of_a_plain_loop(of: tuple[Array, Array, Array, Any]) -> None:
    units, grounds, answers, draws = of
    pairs = [
        (image, str(units[image]), (str(grounds[i, image]), str(grounds[j, image])), flips)
        for image in range(len(units))
        for i, j in draws
        if grounds[i, image] != grounds[j, image]
        for flips in [bool(answers[i, image] != answers[j, image])]
    ]
    shown = {
        (draw, image): (str(units[image]), str(grounds[draw, image]))
        for image in range(len(units))
        for i, j in draws
        if grounds[i, image] != grounds[j, image]
        for draw in (i, j)
    }
    result = rate_of(*of)
    if not pairs:
        assert result is None
        return
    assert result is not None
    assert (result.pairs, result.foregrounds) == (len(pairs), len({image for image, *_ in pairs}))
    expected = flip_interval(pairs, shown.values())
    assert (result.rate, result.low, result.high) == pytest.approx(expected, abs=1e-9)
    assert 0 <= result.low <= result.rate <= result.high <= 1
