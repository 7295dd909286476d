"""Tests shares of features' variance against plain loops, planted shares and laws."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from transforms.feature_shares import SHARES, feature_shares

CLASSES = np.repeat(np.arange(9), 3)


def planted(
    rng: np.random.Generator, background: float, of_class: float, *, heavy: bool = False
) -> NDArray[np.float64]:
    """Draws features of 27 x 27 composites; the foreground's share is .6 of what is left."""

    def effects(*shape: int) -> NDArray[np.float64]:
        return rng.standard_t(5, shape) / (5 / 3) ** 0.5 if heavy else rng.standard_normal(shape)

    rest, width = 1 - background, 8
    of_backgrounds = of_class**0.5 * effects(9, width)[CLASSES]
    of_backgrounds += (1 - of_class) ** 0.5 * effects(27, width)
    return np.asarray(
        (0.6 * rest) ** 0.5 * effects(27, 1, width)
        + background**0.5 * of_backgrounds
        + (0.4 * rest) ** 0.5 * effects(27, 27, width)
    )


@pytest.mark.parametrize("heavy", [False, True], ids=["gaussian", "heavy tails"])
@pytest.mark.parametrize("background", [0.05, 0.5, 0.8])
@pytest.mark.parametrize("of_class", [0, 0.7])
def test_planted_shares_are_recovered(background: float, of_class: float, heavy: bool) -> None:
    truth, found = (0.6 * (1 - background), background, 0.4 * (1 - background), of_class), []
    for seed in range(100):
        features = planted(np.random.default_rng(seed), background, of_class, heavy=heavy)
        found.append([*feature_shares(features, CLASSES).values()])
    value, low, high = np.moveaxis(np.array(found), 2, 0)
    assert ((low <= truth) & (truth <= high)).sum(axis=0).min() >= 91
    assert np.all((low <= value) & (value <= high))
    # Estimates are at least 0, so the mean of those of 0 is above it.
    assert np.allclose(value.mean(axis=0), truth, atol=0.1 if of_class == 0 else 0.03)


def by_hand(x: NDArray[np.float64], labels: NDArray[np.int64]) -> list[float]:
    """Computes the shares by the formulas of mean squares, one picture at a time."""
    a, b, _ = x.shape
    m = b // len(set(labels.tolist()))
    mean, of_fg, of_bg = x.mean(axis=(0, 1)), x.mean(axis=1), x.mean(axis=0)
    of_class = {label: of_bg[labels == label].mean(axis=0) for label in set(labels.tolist())}
    fg = b * sum(((one - mean) ** 2).sum() for one in of_fg) / (a - 1)
    both = sum(
        ((x[f, g] - of_fg[f] - of_bg[g] + mean) ** 2).sum()
        for f, g in itertools.product(range(a), range(b))
    ) / ((a - 1) * (b - 1))
    between = a * m * sum(((one - mean) ** 2).sum() for one in of_class.values())
    between /= len(of_class) - 1
    within = (
        a
        * sum(
            ((one - of_class[label]) ** 2).sum()
            for one, label in zip(of_bg, labels.tolist(), strict=True)
        )
        / (len(of_class) * (m - 1))
    )
    of_classes, in_classes = (between - within) / (a * m), (within - both) / a
    variances = [max(one, 0) for one in ((fg - both) / b, of_classes + in_classes, both)]
    shares = [one / sum(variances) for one in variances]
    return [*shares, max(of_classes, 0) / (max(of_classes, 0) + max(in_classes, 0))]


@given(st.integers(0, 2**32), st.sampled_from([0.2, 0.6]), st.floats(0.01, 100))
def test_shares_are_those_of_loops_and_depend_on_no_order_and_no_common_scale(
    seed: int, background: float, scale: float
) -> None:
    rng = np.random.default_rng(seed)
    features = planted(rng, background, 0.5)
    shares = feature_shares(features, CLASSES)
    values = [one[0] for one in shares.values() if one]
    assert values == pytest.approx(by_hand(features, CLASSES), abs=1e-5)
    assert sum(values[:3]) == pytest.approx(1, abs=1e-5)
    foregrounds, backgrounds = rng.permutation(27), rng.permutation(27)
    names = rng.permutation(9)
    moved = scale * features[foregrounds][:, backgrounds] + rng.normal(size=features.shape[2])
    again = feature_shares(moved, names[CLASSES[backgrounds]])
    for share in SHARES:
        assert again[share] == pytest.approx(shares[share], abs=1e-6)


def test_what_cannot_be_told_is_said() -> None:
    features = planted(np.random.default_rng(0), 0.4, 0.5)
    for labels in (np.arange(27), np.zeros(27, np.int64), np.repeat([0, 1, 2], [9, 9, 9]) % 2):
        shares = feature_shares(features, labels)
        assert shares["class"] is None
        assert shares["background"] is not None
    # Without any effect of the background, its class has no share of it.
    alone = feature_shares(np.broadcast_to(features[:, :1], features.shape), CLASSES)
    assert alone["class"] is None
    assert alone["foreground"] == pytest.approx((1, 1, 1), abs=1e-5)
    for constant in (0.0, 0.1):
        nothing = feature_shares(np.full((27, 27, 3), constant), CLASSES)
        assert nothing["class"] is None
        assert all(one == pytest.approx((0, 0, 0), abs=1e-5) for one in nothing.values() if one)
