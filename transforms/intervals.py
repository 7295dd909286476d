"""Confidence intervals: Wilson's for an accuracy, a paired bootstrap for a difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import UInt64Array, keyed_hashes, substream

CONFIDENCE = 0.95
RESAMPLES = 2000

# Cumulative Poisson(1) probabilities: the weight of a unit in a resample is the number
# of these that its uniform draw exceeds.
_POISSON = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(12)])


def wilson(correct: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927).

    Args:
      correct: successes, 0 to n.
      n: trials.
      confidence: in (0, 1).

    Returns:
      (low, high), fractions in [0, 1]; (0, 1) for no trials.

    >>> [round(bound, 4) for bound in wilson(149, 151)]
    [0.953, 0.9964]
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct must be between 0 and n={n}: got {correct}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    # Rounding must not put the estimate outside its own interval.
    return min(max(centre - spread, 0.0), share), max(min(centre + spread, 1.0), share)


def resample_weights(hashes: UInt64Array, resample: int) -> NDArray[np.float64]:
    """Weights of one Poisson bootstrap resample (Hanley and MacGibbon 2006).

    Args:
      hashes: (n,) uint64 keyed hashes of the units.
      resample: which resample, >= 0.

    Returns:
      (n,) float64: how often each unit is drawn, Poisson(1). It depends on the unit's own
      hash alone, so it is the same in any order, on any runner.
    """
    uniform = (substream(hashes, resample) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.searchsorted(_POISSON, uniform, side="right").astype(np.float64)


def paired_bootstrap(
    first: Sequence[float] | NDArray[np.generic],
    second: Sequence[float] | NDArray[np.generic],
    keys: Sequence[str],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> tuple[float, float, float]:
    """Mean of first - second over the same units, with a percentile bootstrap interval.

    Args:
      first, second: (n,) values of each unit, such as correctness on two variants.
      keys: (n,) the unit that each pair of values belongs to; rows with the same key are
        resampled together.
      seed: of the keyed hash.
      resamples: number of resamples.
      confidence: in (0, 1).

    Returns:
      (difference, low, high).

    Raises:
      ValueError: no units, or sequences of different length.
    """
    if not len(first) == len(second) == len(keys):
        raise ValueError(f"{len(first)} and {len(second)} values for {len(keys)} keys")
    if not len(keys):
        raise ValueError("a difference of no units has no interval")
    difference = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    units, unit_of = np.unique(np.asarray(keys, object), return_inverse=True)
    sums = np.bincount(unit_of, difference, len(units))
    sizes = np.bincount(unit_of, minlength=len(units)).astype(np.float64)
    hashes = keyed_hashes(seed, "bootstrap", units)
    means = []
    for resample in range(resamples):
        weights = resample_weights(hashes, resample)
        total = sizes @ weights
        if total > 0:
            means.append(float(sums @ weights) / total)
    estimate = float(difference.mean())
    if not means:
        return estimate, estimate, estimate
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return estimate, float(low), float(high)
