"""Tests the linear probe against its definition.

A fit leaves at most `LEFT` in the difference between two logits of one image, by the bound of
`pipeline.training.probe_fit`.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import JobError
from pipeline.training.probe_fit import LinearProbe, choose_penalty, fit_probes
from pipeline.training.train_plan import PENALTIES, describe_penalty

LEFT = 2 * 1e-6 * 4


def clouds(n: int, width: int, seed: int, apart: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Draws features around the centres of four classes; returns (features, classes)."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 4, n)
    centres = apart * random.normal(size=(4, width))
    return centres[labels] + random.normal(size=(n, width)), labels


def fit_probe(
    features: np.ndarray, labels: np.ndarray, num_classes: int, penalty: float
) -> LinearProbe:
    return fit_probes(features, labels, num_classes, [penalty])[0]


def answers(logits: np.ndarray) -> np.ndarray:
    """Returns what decides the probabilities: a shift of all logits does not change them."""
    return logits - logits.mean(axis=1, keepdims=True)


def test_neither_the_start_nor_the_threads_matter() -> None:
    features, labels = clouds(300, 400, 7)
    together = fit_probes(features, labels, 4, (10.0, 0.1, 0.001))
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = fit_probes(features, labels, 4, (10.0, 0.1, 0.001))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    for one, other in zip(together, again, strict=True):
        assert (one.weight == other.weight).all()
        assert (one.bias == other.bias).all()
        alone = answers(fit_probe(features, labels, 4, one.penalty).logits(features))
        np.testing.assert_allclose(answers(one.logits(features)), alone, rtol=0, atol=2 * LEFT)


def gradient_of(
    probe: LinearProbe, features: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the gradient of the penalised loss by weights of scaled features, and by biases.

    The loss is convex, so the probe is the minimum if and only if both are 0.
    """
    logits = probe.logits(features)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors = odds / odds.sum(axis=1, keepdims=True) - np.eye(logits.shape[1])[labels]
    scaled = (features - features.mean(0)) / features.std(0)
    weights = errors.T @ scaled / len(labels)
    return weights + probe.penalty * probe.weight * features.std(0), errors.mean(axis=0)


@pytest.mark.parametrize(("n", "width"), [(60, 8), (20, 50)])
def test_it_is_the_minimum(n: int, width: int) -> None:
    features, labels = clouds(n, width, 0)
    for probe in fit_probes(features, labels, 4, (10.0, 0.1, 0.001)):
        by_weights, by_biases = gradient_of(probe, features, labels)
        assert np.linalg.norm(by_weights) < 1e-6 * probe.penalty
        assert abs(by_biases).max() < 1e-9


@pytest.mark.parametrize("seed", range(8))
def test_extreme_features_converge(seed: int) -> None:
    """Tests features without a mean, on which whole Newton steps often lead away for good."""
    random = np.random.default_rng(seed)
    features = random.standard_cauchy((120, 40))
    labels = (np.cbrt(features) @ random.normal(size=(40, 8))).argmax(axis=1)
    (probe,) = fit_probes(features, labels, 8, [0.001])
    by_weights, by_biases = gradient_of(probe, features, labels)
    assert np.linalg.norm(by_weights) < 1e-8
    assert abs(by_biases).max() < 1e-9


def test_a_fit_that_rounding_keeps_from_converging_is_an_error() -> None:
    features, labels = clouds(60, 8, 0)
    with pytest.raises(JobError, match="penalty of 1e-15 does not converge"):
        fit_probes(features, labels, 4, [1e-15])


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-50, 50))
def test_units_and_offsets_of_features_do_not_matter(
    seed: int, scale: float, offset: float
) -> None:
    features, labels = clouds(40, 5, seed)
    one = fit_probe(features, labels, 4, penalty=0.1)
    other = fit_probe(features * scale + offset, labels, 4, penalty=0.1)
    theirs = other.logits(features * scale + offset)
    np.testing.assert_allclose(answers(one.logits(features)), answers(theirs), atol=2 * LEFT)


def test_a_class_without_images_is_never_the_answer() -> None:
    features, labels = clouds(40, 5, 1)
    labels[labels == 2] = 3
    probe = fit_probe(features, labels, 6, penalty=0.01)
    others = np.random.default_rng(2).normal(size=(500, 5)) * 20
    assert set(probe.logits(others).argmax(axis=1).tolist()) <= {0, 1, 3}
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


def test_too_few_images_to_compare_penalties_get_the_strongest() -> None:
    assert choose_penalty(np.zeros((1, 3)), np.asarray([0]), ["a"]) == PENALTIES[0]
