"""Tests that label rules on a model's device score like `transforms.scoring` on the host."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from pipeline.evaluate.on_device import RulesOnDevice
from pipeline.models.predict import are_numbers
from transforms.scoring import LABEL_RULES, Labels
from transforms.taxonomy import OUTSIDE

MASKED = -np.inf


def rules_of(of_outputs: Labels) -> RulesOnDevice:
    host: Any = SimpleNamespace(to_device=torch.from_numpy)
    return RulesOnDevice(host, of_outputs)


def assert_same(logits: NDArray[np.float32], labels: Labels, of_outputs: Labels) -> None:
    rules, outputs = rules_of(of_outputs), torch.from_numpy(logits)
    predictions = dict(zip(LABEL_RULES, rules.labels(outputs), strict=True))
    values = rules.scores(outputs, torch.from_numpy(labels))
    for rule, scores in rules.fetched_scores(values.numpy()).items():
        expected = LABEL_RULES[rule](logits, labels, of_outputs)
        np.testing.assert_array_equal(predictions[rule], expected.prediction)
        np.testing.assert_array_equal(scores.prediction, expected.prediction)
        np.testing.assert_array_equal(scores.output, expected.output)
        np.testing.assert_allclose(scores.top1, expected.top1, rtol=0, atol=1e-6)
        np.testing.assert_allclose(scores.true, expected.true, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "row",
    [
        [1, 1, 1, 1, 1],
        [5, MASKED, MASKED, MASKED, 5],
        [MASKED, MASKED, MASKED, MASKED, 0],
        [3e38, -3e38, 3e38, 0, 0],
        [-3e38, -3e38, -3e38, -3e38, -3e38],
        [1e-45, 0, -0.0, 0, 0],
    ],
)
def test_ties_masks_and_extremes(row: list[float]) -> None:
    logits = np.array([row] * 4, np.float32)
    assert_same(logits, np.array([0, 1, 2, 0]), np.array([OUTSIDE, 0, 1, 1, OUTSIDE]))


values = st.one_of(st.floats(-(2.0**100), 2.0**100, width=32), st.sampled_from([MASKED, 0.0, 1.0]))


@given(
    arrays(np.float32, (6, 7), elements=values),
    arrays(np.int64, 6, elements=st.integers(0, 2)),
    st.permutations([OUTSIDE, OUTSIDE, 0, 0, 1, 2, 2]),
)
def test_any_logits(logits: NDArray[np.float32], labels: Labels, of_outputs: list[int]) -> None:
    logits[:, 0] = np.where(np.isneginf(logits).all(axis=1), 0, logits[:, 0])
    assert_same(logits, labels, np.array(of_outputs))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_no_numbers_have_no_scores(value: float) -> None:
    logits = torch.zeros((3, 5))
    logits[1, 3], logits[2] = value, MASKED
    scores = rules_of(np.arange(5) - 1).scores(logits, torch.zeros(3, dtype=torch.int64))
    assert are_numbers(scores).tolist() == are_numbers(logits).tolist() == [True, False, False]
