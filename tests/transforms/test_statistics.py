"""Tests label rules, intervals and verdicts against scipy, known values, and by simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from pipeline.dataset.records import ShardCounts
from transforms.hashing import keyed_hash, keyed_hashes, substream
from transforms.intervals import (
    Verdict,
    above,
    below,
    bootstrap_interval,
    bootstrap_means,
    difference,
    poisson_weights,
    widened,
    wilson,
    within,
)
from transforms.scoring import LABEL_RULES, labels_of_outputs
from transforms.taxonomy import OUTSIDE, imagenet9


def test_the_taxonomy_is_the_papers() -> None:
    taxonomy = imagenet9()
    labels = np.asarray(taxonomy.labels)
    assert np.bincount(labels[labels != OUTSIDE]).tolist() == [
        116, 52, 42, 36, 35, 27, 26, 20, 16,
    ]  # fmt: skip
    assert taxonomy.label_of("n02110063") == 0
    assert taxonomy.index_of["n01440764"] == 0
    assert taxonomy.label_of("n02123045") == OUTSIDE  # The released map omits tabby cats.
    assert taxonomy.label_of("n99999999") == OUTSIDE
    assert taxonomy.num_labels == 9


@given(st.integers(1, 5000), st.floats(0, 1))
def test_wilson_is_that_of_scipy(n: int, share: float) -> None:
    correct = round(share * n)
    expected = stats.binomtest(correct, n).proportion_ci(method="wilson")
    assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_wilson_refuses_what_is_no_proportion() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="got 4"):
        wilson(4, 3)


def test_bootstrap_weights_are_poisson() -> None:
    hashes = keyed_hashes(0, "bootstrap", [str(i) for i in range(20_000)])
    weights = poisson_weights(substream(hashes, 3))
    assert weights.mean() == pytest.approx(1, abs=0.02)
    assert weights.var() == pytest.approx(1, abs=0.04)
    assert (weights == 0).mean() == pytest.approx(np.exp(-1), abs=0.01)
    other = poisson_weights(substream(hashes, 4))
    assert abs(np.corrcoef(weights, other)[0, 1]) < 0.03


def test_rows_of_one_unit_are_resampled_together() -> None:
    values = np.ones((40, 1))
    values[20:] = 0
    once = bootstrap_interval(values[::20], ["a", "b"], resamples=300)
    copied = bootstrap_interval(values, ["a"] * 20 + ["b"] * 20, resamples=300)
    np.testing.assert_allclose(copied, once)


def test_label_rules_on_a_worked_example() -> None:
    output_labels = np.asarray([OUTSIDE, 0, 0, 1])
    logits = np.asarray([[3, 1, 2, 0], [0, 1, 1, 4]], np.float32)
    labels = np.asarray([0, 0])
    argmax = LABEL_RULES["argmax_then_map"](logits, labels, output_labels)
    assert argmax.prediction.tolist() == [OUTSIDE, 1]
    assert argmax.output.tolist() == [0, 3]
    total = np.exp([3, 1, 2, 0]).sum()
    assert argmax.top1[0] == pytest.approx(np.exp(3) / total)
    assert argmax.true[0] == pytest.approx((np.exp(1) + np.exp(2)) / total)
    mapped = LABEL_RULES["mapped_only"](logits, labels, output_labels)
    assert mapped.prediction.tolist() == [0, 1]
    assert mapped.output.tolist() == [2, 3]
    assert mapped.true[0] == pytest.approx(1 - np.exp(0) / np.exp([1, 2, 0]).sum())


@given(
    arrays.arrays(np.float32, (3, 6), elements=st.floats(-50, 50, width=32)),
    arrays.arrays(np.bool_, (3, 6)),
)
def test_a_masked_output_counts_as_if_the_model_did_not_have_it(
    logits: np.ndarray, masked: np.ndarray
) -> None:
    output_labels, labels = np.asarray([OUTSIDE, 0, 0, 1, OUTSIDE, 2]), np.asarray([0, 1, 2])
    masked[masked.all(axis=1)] = False
    logits[masked] = -np.inf
    for name, rule in LABEL_RULES.items():
        scores = rule(logits, labels, output_labels)
        for i in range(3):
            allowed = ~masked[i] & ((output_labels != OUTSIDE) | (name == "argmax_then_map"))
            if not allowed.any():
                assert (scores.prediction[i], scores.top1[i], scores.true[i]) == (OUTSIDE, 0, 0)
                assert scores.output[i] == logits[i].argmax()
                continue
            row = slice(i, i + 1)
            alone = rule(logits[row, allowed], labels[row], output_labels[allowed])
            assert scores.output[i] == np.flatnonzero(allowed)[alone.output[0]]
            assert scores.prediction[i] == alone.prediction[0]
            assert scores.top1[i] == pytest.approx(alone.top1[0], abs=1e-6)
            assert scores.true[i] == pytest.approx(alone.true[0], abs=1e-6)


def test_nine_way_heads_agree_under_both_rules() -> None:
    outputs = labels_of_outputs(9, imagenet9())
    logits = np.random.default_rng(0).normal(size=(20, 9)).astype(np.float32)
    for rule in LABEL_RULES.values():
        scores = rule(logits, np.zeros(20, np.int64), outputs)
        np.testing.assert_array_equal(scores.prediction, logits.argmax(axis=1))
    with pytest.raises(ValueError, match="head of 10"):
        labels_of_outputs(10, imagenet9())


def test_hashes_are_stable_and_distinct_by_purpose() -> None:
    assert keyed_hash(0, "shard", "ILSVRC2012_val_00000355") == 4624683703699469604
    assert keyed_hash(1, "shard", "a") != keyed_hash(0, "shard", "a")
    assert keyed_hash(0, "shard", "a") != keyed_hash(0, "select", "a")
    assert keyed_hash(0, "shard", "\udcff") >= 0
    streams = [substream(keyed_hashes(0, "x", ["a", "b"]), i).tolist() for i in range(3)]
    assert len({value for stream in streams for value in stream}) == 6


@given(st.integers(1, 20_000_000), st.integers(1, 5000))
def test_shard_counts_nest_and_stay_bounded(images: int, per_shard: int) -> None:
    counts = ShardCounts.for_images(images, per_shard)
    assert 1 <= counts.output <= counts.source <= 100_000
    assert counts.source % counts.output == 0
    for output in range(0, counts.output, max(1, counts.output // 7)):
        assert all(source % counts.output == output for source in counts.sources_of(output))


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


def test_intervals_stay_what_they_were() -> None:
    """Checks numbers of a published table, which must not change with the implementation."""
    rng = np.random.default_rng(0)
    first, second = rng.random(151) < 0.8, rng.random(151) < 0.7
    difference = (first.astype(np.float64) - second)[:, np.newaxis]
    low, high = bootstrap_interval(difference, [f"ILSVRC2012_val_{i:08d}" for i in range(151)])
    assert (low[0], high[0]) == (0.007403381642512085, 0.22360943728562155)


@given(st.floats(-0.5, 1.5), *[st.floats(0, 0.5)] * 4, st.floats(-0.2, 0.8), st.floats(0, 0.5))
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


def test_values_that_are_not_known_are_left_out_of_their_column_alone() -> None:
    values = np.random.default_rng(0).normal(size=(40, 2))
    known = np.flatnonzero(np.arange(40) % 5)
    some, units = values.copy(), [f"{number // 2}" for number in range(40)]
    some[::5, 1] = np.nan
    low, high = bootstrap_interval(some, units)
    columns = (values[:, :1], units), (values[known, 1:], [units[i] for i in known])
    for column, of_column in enumerate(columns):
        expected = [end[0] for end in bootstrap_interval(*of_column)]
        assert (low[column], high[column]) == pytest.approx(expected, abs=1e-12)
