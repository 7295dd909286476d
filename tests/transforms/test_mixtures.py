"""Tests the pull of colours to either side of GrabCut's cut against their densities in NumPy."""

import numpy as np
import pytest
from numpy.typing import NDArray

from transforms.grabcut import prepare

UNITS = 2.0**20
COMPONENTS = 5


def log_density(colors: NDArray[np.float64], groups: NDArray[np.int64]) -> NDArray[np.float64]:
    """Computes (n,) logarithms of densities of (n, 3) colours, in the mixture that they make."""
    total = np.zeros(len(colors))
    for group in range(COMPONENTS):
        own = colors[groups == group]
        if len(own):
            covariance = np.cov(own.T, bias=True)
            apart = colors - own.mean(axis=0)
            form = np.einsum("ni,ij,nj->n", apart, np.linalg.inv(covariance), apart)
            share = len(own) / len(colors)
            total += share * np.exp(-form / 2) / np.sqrt(np.linalg.det(covariance))
    return np.asarray(np.log(total))


@pytest.mark.parametrize("used", [COMPONENTS, 3, 1])
def test_pulls_are_the_ratios_of_densities(used: int) -> None:
    """Takes 1,000 colours, so that a block of the kernel is not full, and empty components."""
    prepare()
    from transforms.grabcut import mixtures

    rng = np.random.default_rng(used)
    samples = rng.integers(0, 256, (3, 1000), np.uint8)
    sides, logs = [], []
    for number in (used, COMPONENTS):
        groups = rng.integers(0, number, 1000)
        moments = np.zeros((COMPONENTS, mixtures.MOMENTS), np.int64)
        new, old = groups.astype(np.uint8), np.full(1000, mixtures.NO_GROUP, np.uint8)
        mixtures.regroup(samples, old, new, moments)
        mixture = np.empty((COMPONENTS, mixtures.FIELDS))
        assert mixtures.learn(moments, mixture)
        sides.append(mixture)
        logs.append(log_density(samples.T.astype(np.float64), groups))
    pulls, components = np.empty(1000, np.int32), np.empty((2, 1000), np.uint8)
    mixtures.weigh(samples, *sides, UNITS, components[0], components[1], pulls)
    assert np.abs(pulls / UNITS - (logs[1] - logs[0])).max() <= 1 / UNITS
