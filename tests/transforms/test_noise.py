"""Tests that noise is normal, keyed, and the same bytes everywhere."""

import hashlib
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.hashing import keyed_hash, substream
from transforms.variants import SIGMA, add_noise, gaussian_noise, level_table

DEVIATION = 255 * SIGMA


def test_levels_are_normal_and_no_rounding_is_close() -> None:
    levels = level_table()
    np.testing.assert_array_equal(levels, -levels[::-1])
    assert levels.std() == pytest.approx(DEVIATION, rel=1e-4)
    normal, places = NormalDist(sigma=DEVIATION), np.arange(1_000, 64_000, 97)
    exact = [normal.inv_cdf((position + 0.5) / 65536) for position in places.tolist()]
    np.testing.assert_allclose(levels[places], exact, atol=0.52)
    # A library that differs in the last bits would give the same table.
    starts = [65536 * normal.cdf(k - 0.5) for k in range(-299, 301)]
    assert min(abs(start % 1 - 0.5) for start in starts) > 5e-4
    digest = hashlib.sha256(levels.astype("<i2").tobytes()).hexdigest()
    assert digest == "8e4ff6d94bcbee0bdbcf0f5e45d99fd6345c23e2435d1f8b1a76f7d29ab39328"


def test_noise_is_that_of_the_keyed_hash() -> None:
    draw = keyed_hash(0, "noise", "ILSVRC2012_val_00000355")
    noise = gaussian_noise(draw, (5, 7, 3))
    words = [
        int(substream(np.asarray([draw], np.uint64), index)[0]) >> 16 * part & 0xFFFF
        for index in range(27)
        for part in range(4)
    ]
    assert noise.ravel().tolist() == level_table()[words[:105]].tolist()
    assert noise[0, 0].tolist() == [-57, 10, -66]
    large = gaussian_noise(draw, (224, 224, 3))
    np.testing.assert_array_equal(large.ravel()[:105], noise.ravel())
    assert abs(large.mean()) < 1
    assert large.std() == pytest.approx(DEVIATION, rel=0.01)
    # Pixels, channels and keys are independent.
    other = gaussian_noise(keyed_hash(0, "noise", "another"), large.shape)
    pairs = ((large[1:], large[:-1]), (large[..., 0], large[..., 1]), (large, other))
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02 for a, b in pairs)


@given(st.integers(0, 2**64 - 1), st.integers(0, 255))
def test_sums_are_clipped(draw: int, level: int) -> None:
    image = np.full((4, 4, 3), level, np.uint8)
    noise = gaussian_noise(draw, image.shape)
    expected = [min(max(level + value, 0), 255) for value in noise.ravel().tolist()]
    assert add_noise(image, noise).ravel().tolist() == expected
