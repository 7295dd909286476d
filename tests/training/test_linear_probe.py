"""Tests the linear probe against its definition and another optimiser."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.training.linear_probe import choose_penalty, fit_probe
from pipeline.training.penalty import PENALTIES, describe_penalty


def clouds(n: int, width: int, seed: int, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Draws features around the centres of four classes; returns (features, classes)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, n)
    centres = apart * random.normal(size=(4, width))
    return centres[labels] + random.normal(size=(n, width)), labels


def test_it_is_the_minimum_of_the_penalised_likelihood() -> None:
    features, labels = clouds(60, 8, 0)
    probe = fit_probe(features, labels, 4, penalty=0.1)
    scaled = (features - features.mean(0)) / features.std(0)
    # Newton's method with the Hessian of the definition converges to machine precision.
    weights = np.zeros((4, 9))
    design = np.column_stack([scaled, np.ones(60)])
    strength = np.tile([0.1] * 8 + [1e-9], 4)
    for _ in range(30):
        logits = design @ weights.T
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        gradient = (shares - np.eye(4)[labels]).T @ design / 60
        gradient = gradient.ravel() + strength * weights.ravel()
        spread = np.einsum("nc,cd->ncd", shares, np.eye(4)) - np.einsum("nc,nd->ncd", *[shares] * 2)
        hessian = np.einsum("ncd,ni,nj->cidj", spread, design, design).reshape(36, 36) / 60
        weights = weights - np.linalg.solve(hessian + np.diag(strength), gradient).reshape(4, 9)
    theirs, ours = design @ weights.T, probe.logits(features)
    # A shift of all biases does not change the likelihood.
    centred = [logits - logits.mean(axis=1, keepdims=True) for logits in (ours, theirs)]
    np.testing.assert_allclose(*centred, atol=2e-3)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-50, 50))
def test_units_and_offsets_of_features_do_not_matter(
    seed: int, scale: float, offset: float
) -> None:
    features, labels = clouds(40, 5, seed)
    one = fit_probe(features, labels, 4, penalty=0.1)
    other = fit_probe(features * scale + offset, labels, 4, penalty=0.1)
    np.testing.assert_allclose(
        one.logits(features), other.logits(features * scale + offset), atol=5e-3
    )


def test_a_class_without_images_is_never_the_answer() -> None:
    features, labels = clouds(40, 5, 1)
    labels[labels == 2] = 3
    probe = fit_probe(features, labels, 6, penalty=0.01)
    answers = probe.logits(np.random.default_rng(2).normal(size=(500, 5)) * 20).argmax(axis=1)
    assert set(answers.tolist()) <= {0, 1, 3}
    assert (probe.logits(features).argmax(axis=1) == labels).mean() > 0.8


def test_noise_gets_a_strong_penalty_and_signal_a_weak_one() -> None:
    signal, labels = clouds(120, 10, 3, apart=2.0)
    noise = np.random.default_rng(4).normal(size=(120, 60))
    keys = [f"{number}" for number in range(120)]
    assert choose_penalty(noise, labels, keys) >= 1.0
    # If the best penalty is the first or the last one tried, one beyond it might be better.
    separable = np.eye(4)[labels]
    assert "the weakest" in describe_penalty(choose_penalty(separable, labels, keys))
    assert "the strongest" in describe_penalty(choose_penalty(1 + 0 * noise, labels, keys))
    assert describe_penalty(PENALTIES[4]) == "0.1"
    assert choose_penalty(signal, labels, keys) <= 0.03
    # The order of the images does not matter.
    order = np.random.default_rng(5).permutation(120)
    shuffled = choose_penalty(noise[order], labels[order], [keys[i] for i in order])
    assert shuffled == choose_penalty(noise, labels, keys)


def test_images_of_a_unit_do_not_vouch_for_each_other() -> None:
    """Checks that copies of images, counted as units of their own, make noise look like signal."""
    noise = np.repeat(np.random.default_rng(6).normal(size=(40, 60)), 2, axis=0)
    labels = np.repeat(np.arange(40) % 4, 2)
    keys = [f"{number}" for number in range(80)]
    pairs = [f"{number // 2}" for number in range(80)]
    assert choose_penalty(noise, labels, keys) < choose_penalty(noise, labels, pairs)


def test_wrong_images_are_refused() -> None:
    with pytest.raises(ValueError, match="images"):
        fit_probe(np.zeros((0, 3)), np.zeros(0, np.int64), 4, 0.1)
    with pytest.raises(ValueError, match="0 to 3"):
        fit_probe(np.zeros((1, 3)), np.asarray([4]), 4, 0.1)
    assert choose_penalty(np.zeros((1, 3)), np.asarray([0]), ["a"]) == PENALTIES[0]
