"""Tests of estimates, their intervals, and verdicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.estimates import Verdict, above, below, difference, widened, within
from transforms.intervals import wilson


@given(
    st.floats(-0.5, 1.5),
    *[st.floats(0, 0.5)] * 4,
    st.floats(-0.2, 0.8),
    st.floats(0, 0.5),
)
def test_a_wider_interval_never_decides(
    value: float, down: float, up: float, more_down: float, more_up: float, at: float, wide: float
) -> None:
    narrow = (value - down, value + up)
    wider = (narrow[0] - more_down, narrow[1] + more_up)
    for law in (
        lambda low, high: above(low, high, at),
        lambda low, high: below(low, high, at),
        lambda low, high: within(low, high, (at, at + wide)),
    ):
        before, after = law(*narrow), law(*wider)
        assert after in (before, Verdict.OPEN)
        # A claim that holds or fails does so for every value of the interval.
        if before is not Verdict.OPEN:
            assert {law(end, end) for end in (*narrow, value)} <= {before, Verdict.OPEN}


def test_intervals_of_differences_and_selected_estimates() -> None:
    # The example is 56/70 less 48/80 by method 10, from Newcombe 1998, table II.
    first, second = (0.8, *wilson(56, 70)), (0.6, *wilson(48, 80))
    assert difference(first, second) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert widened((0.5, 0.4, 0.7), 1) == pytest.approx((0.5, 0.4, 0.7))
    assert widened((0.5, 0.4, 0.7), 10) == pytest.approx((0.5, 0.3568, 0.7864), abs=5e-5)
