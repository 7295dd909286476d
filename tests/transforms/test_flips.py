"""Tests flip rates against plain loops, and their laws."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from two_way_by_hand import flip_interval

from transforms.flips import FlipRate, PicturePairs, flip_rate

Array = NDArray[np.int64]


@st.composite
def drawn(draw: st.DrawFn) -> tuple[Array, Array, Array, list[tuple[int, int]]]:
    """Draws (unit of each foreground, units of backgrounds, predictions, draws to compare)."""
    n, draws = draw(st.integers(1, 7)), draw(st.integers(2, 4))
    units = draw(hnp.arrays(np.int64, n, elements=st.integers(0, 6)))
    grounds = draw(hnp.arrays(np.int64, (draws, n), elements=st.integers(0, 6)))
    answers = draw(hnp.arrays(np.int64, (draws, n), elements=st.integers(-1, 2)))
    every = list(itertools.combinations(range(draws), 2))
    return units, grounds, answers, draw(st.lists(st.sampled_from(every), min_size=1, unique=True))


def rate_of(units: Array, grounds: Array, answers: Array, draws: Any) -> FlipRate | None:
    return flip_rate(answers, PicturePairs.from_units(units, grounds, draws))


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


@given(drawn(), st.permutations(range(4)), st.randoms(use_true_random=False))
def test_names_and_order_mean_nothing(
    of: tuple[Array, Array, Array, Any], classes: list[int], random: Any
) -> None:
    units, grounds, answers, draws = of
    result = rate_of(*of)
    assume(result is not None)
    assert result is not None
    order = random.sample(range(len(units)), len(units))
    other = rate_of(
        90 - 7 * units[order],
        3 * grounds[:, order] - 5,
        np.asarray(classes)[answers[:, order] + 1],
        [(j, i) for i, j in reversed(draws)],
    )
    assert other is not None
    assert (other.rate, other.low, other.high) == pytest.approx(
        (result.rate, result.low, result.high), abs=1e-9
    )
    assert (other.pairs, other.foregrounds) == (result.pairs, result.foregrounds)


@given(drawn(), st.integers(-1, 8))
def test_a_constant_answer_never_flips(of: tuple[Array, Array, Array, Any], answer: int) -> None:
    units, grounds, answers, draws = of
    never = rate_of(units, grounds, np.full_like(answers, answer), draws)
    always = rate_of(units, grounds, answers * 0 + np.arange(len(answers))[:, np.newaxis], draws)
    # The background does not change an answer that the foreground alone decides.
    by_foreground = rate_of(units, grounds, answers * 0 + np.arange(len(units)), draws)
    assert never == by_foreground
    if never is not None and always is not None:
        assert (never.rate, never.low, always.rate, always.high) == (0, 0, 1, 1)
        assert never.high == pytest.approx(1 - always.low)
