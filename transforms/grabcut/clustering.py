"""Reproduces `cv2.kmeans` on colours exactly, with its random numbers.

The clusters initialise the two mixtures. The method is k-means++ (Arthur and Vassilvitskii, SODA
2007) with three trials for each centre, then Lloyd's iterations. Colours are whole numbers. So
squared distances between two samples, and sums of colours below 2^24, are exact in float32, and may
be added in any order. Values that are not exact, such as distances to means, are computed with
OpenCV's operations in OpenCV's order. Source: OpenCV, core/kmeans.cpp.

Random numbers come from a multiply-with-carry generator. The state of `cv::RNG` has 64 bits: the
last number in the low half, the carry in the high half. A random `double` is made from two numbers
of 32 bits: together they are a number of 64 bits, with the first number as its high half, which is
divided by 2^64. Source: OpenCV, core/operations.hpp.
"""

import numpy as np
from numpy.typing import NDArray

from transforms.grabcut.compilation import Integer, at, entry, helper

_MULTIPLIER = np.uint64(4164903690)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def seeded(seed: int) -> NDArray[np.uint64]:
    """Returns the state after `cv2.setRNGSeed(seed)`, (1,) uint64; the seed is a C int."""
    return np.array([seed % 2**64 or 0xFFFFFFFF], np.uint64)


@helper
def next_integer(state: NDArray[np.uint64]) -> Integer:
    """Advances the state; returns 32 random bits."""
    state[0] = (state[0] & _LOW_HALF) * _MULTIPLIER + (state[0] >> _HALF)
    return np.uint64(state[0] & _LOW_HALF)


@helper
def next_fraction(state: NDArray[np.uint64]) -> float:
    """Advances the state twice; returns a float64 in [0, 1]."""
    high = next_integer(state)
    return np.float64((high << _HALF) | next_integer(state)) * 2.0**-64


COMPONENTS = 5
"""Number of clusters, and of Gaussians in a mixture."""

_ITERATIONS = 10
_EPSILON = float(np.finfo(np.float32).eps) ** 2
"""If the squared length of the longest move is not greater, the iterations end."""
_EXACT = 1 << 24
"""Whole numbers up to this one are exact in float32."""
_BLOCK = 4096
"""Number of samples whose squared distances are added up to one subtotal."""
_NO_LABEL = 255

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float32]
_Integers = NDArray[np.int64]


@helper
def _potentials(
    samples: _Bytes, distances: _Floats, first: int, second: int, third: int
) -> tuple[Integer, Integer, Integer]:
    """Sums squared distances to the nearest centre, if each of three samples became a centre."""
    reds, greens, blues = samples[0], samples[1], samples[2]
    r1, g1, b1 = np.float32(reds[first]), np.float32(greens[first]), np.float32(blues[first])
    r2, g2, b2 = np.float32(reds[second]), np.float32(greens[second]), np.float32(blues[second])
    r3, g3, b3 = np.float32(reds[third]), np.float32(greens[third]), np.float32(blues[third])
    total1: Integer = 0
    total2: Integer = 0
    total3: Integer = 0
    for i in range(len(distances)):
        r, g, b, d = np.float32(reds[i]), np.float32(greens[i]), np.float32(blues[i]), distances[i]
        d1 = (r - r1) * (r - r1) + (g - g1) * (g - g1) + (b - b1) * (b - b1)
        d2 = (r - r2) * (r - r2) + (g - g2) * (g - g2) + (b - b2) * (b - b2)
        d3 = (r - r3) * (r - r3) + (g - g3) * (g - g3) + (b - b3) * (b - b3)
        total1 += np.int32(d1 if d1 < d else d)
        total2 += np.int32(d2 if d2 < d else d)
        total3 += np.int32(d3 if d3 < d else d)
    return total1, total2, total3


@helper
def _add_center(samples: _Bytes, distances: _Floats, subtotals: _Integers, chosen: Integer) -> None:
    """Makes a sample a centre, and updates the squared distances to the nearest and subtotals."""
    reds, greens, blues = samples[0], samples[1], samples[2]
    r1, g1, b1 = np.float32(reds[chosen]), np.float32(greens[chosen]), np.float32(blues[chosen])
    for block in range(len(subtotals)):
        total: Integer = 0
        start = block * _BLOCK
        nearest = distances[start : start + _BLOCK]
        for i in range(len(nearest)):
            j = at(start + i)
            r, g, b = np.float32(reds[j]), np.float32(greens[j]), np.float32(blues[j])
            d = (r - r1) * (r - r1) + (g - g1) * (g - g1) + (b - b1) * (b - b1)
            d = d if d < nearest[i] else nearest[i]
            nearest[i] = d
            total += np.int32(d)
        subtotals[block] = total


@helper
def _draw(distances: _Floats, subtotals: _Integers, share: float) -> int:
    """Finds the first sample at which the sum of squared distances reaches `share`, or the last.

    OpenCV subtracts the distances from the share one by one. These differences are exact as long as
    they are positive, so subtracting the total of a whole block gives the same result.
    """
    last = len(distances) - 1
    i = 0
    for subtotal in subtotals:
        if share - subtotal <= 0:
            break
        share -= subtotal
        i += _BLOCK
    while i < last:
        share -= np.float64(distances[i])
        if share <= 0:
            break
        i += 1
    return min(i, last)


@helper
def _choose_centers(
    samples: _Bytes, centers: _Floats, clusters: int, state: NDArray[np.uint64]
) -> None:
    """Chooses centres by k-means++, and writes them to the first `clusters` rows of `centers`."""
    count = samples.shape[1]
    distances = np.full(count, np.inf, np.float32)
    subtotals = np.zeros((count + _BLOCK - 1) // _BLOCK, np.int64)
    chosen: Integer = np.int64(next_integer(state) % np.uint64(count))
    for k in range(clusters):
        if k > 0:
            total = np.float64(subtotals.sum())
            first = _draw(distances, subtotals, next_fraction(state) * total)
            second = _draw(distances, subtotals, next_fraction(state) * total)
            third = _draw(distances, subtotals, next_fraction(state) * total)
            best, other, another = _potentials(samples, distances, first, second, third)
            chosen = first
            if other < best:
                best, chosen = other, second
            if another < best:
                chosen = third
        _add_center(samples, distances, subtotals, chosen)
        for c in range(3):
            centers[k, c] = samples[c, chosen]


@helper
def _assign(samples: _Bytes, centers: _Floats, labels: _Bytes) -> None:
    """Labels each sample with its nearest centre, or with the first of equally near centres."""
    r0, g0, b0 = centers[0, 0], centers[0, 1], centers[0, 2]
    r1, g1, b1 = centers[1, 0], centers[1, 1], centers[1, 2]
    r2, g2, b2 = centers[2, 0], centers[2, 1], centers[2, 2]
    r3, g3, b3 = centers[3, 0], centers[3, 1], centers[3, 2]
    r4, g4, b4 = centers[4, 0], centers[4, 1], centers[4, 2]
    reds, greens, blues = samples[0], samples[1], samples[2]
    for i in range(len(labels)):
        r, g, b = np.float32(reds[i]), np.float32(greens[i]), np.float32(blues[i])
        least = (r - r0) * (r - r0) + (g - g0) * (g - g0) + (b - b0) * (b - b0)
        label = np.uint8(0)
        d = (r - r1) * (r - r1) + (g - g1) * (g - g1) + (b - b1) * (b - b1)
        label, least = (np.uint8(1), d) if d < least else (label, least)
        d = (r - r2) * (r - r2) + (g - g2) * (g - g2) + (b - b2) * (b - b2)
        label, least = (np.uint8(2), d) if d < least else (label, least)
        d = (r - r3) * (r - r3) + (g - g3) * (g - g3) + (b - b3) * (b - b3)
        label, least = (np.uint8(3), d) if d < least else (label, least)
        d = (r - r4) * (r - r4) + (g - g4) * (g - g4) + (b - b4) * (b - b4)
        labels[i] = np.uint8(4) if d < least else label


@helper
def _move(
    samples: _Bytes, labels: _Bytes, new_labels: _Bytes, counts: _Integers, sums: _Integers
) -> None:
    """Assigns new labels, and moves each sample whose label changes between the clusters' sums."""
    for i in range(len(labels)):
        old, new = labels[i], new_labels[i]
        if old == new:
            continue
        labels[i] = new
        counts[new] += 1
        for c in range(3):
            sums[new, c] += samples[c, i]
        if old != _NO_LABEL:
            counts[old] -= 1
            for c in range(3):
                sums[old, c] -= samples[c, i]


@helper
def _round_sums(samples: _Bytes, labels: _Bytes, sums: _Integers, rounded: _Floats) -> None:
    """Rounds the sums as OpenCV does, because it adds one sample after the other in float32."""
    for k in range(COMPONENTS):
        if sums[k].max() < _EXACT:
            rounded[k] = sums[k]
            continue
        red, green, blue = np.float32(0), np.float32(0), np.float32(0)
        for i in range(len(labels)):
            if labels[i] == k:
                red += np.float32(samples[0, i])
                green += np.float32(samples[1, i])
                blue += np.float32(samples[2, i])
        rounded[k, 0], rounded[k, 1], rounded[k, 2] = red, green, blue


@helper
def _farthest(samples: _Bytes, labels: _Bytes, label: Integer, center: _Floats) -> int:
    """Finds the last of the samples with this label that are farthest from a (3,) centre."""
    farthest, most = -1, np.float32(0)
    for i in range(len(labels)):
        if labels[i] == label:
            r = np.float32(samples[0, i]) - center[0]
            g = np.float32(samples[1, i]) - center[1]
            b = np.float32(samples[2, i]) - center[2]
            distance = r * r + g * g + b * b
            if distance >= most:
                farthest, most = i, distance
    return farthest


@helper
def _fill_empty(
    samples: _Bytes,
    labels: _Bytes,
    counts: _Integers,
    sums: _Integers,
    rounded: _Floats,
    clusters: int,
) -> None:
    """Moves into each empty cluster the largest cluster's sample that is farthest from its mean."""
    for k in range(clusters):
        if counts[k] != 0:
            continue
        largest = np.argmax(counts[:clusters])
        center = rounded[largest] * (np.float32(1) / np.float32(counts[largest]))
        farthest = _farthest(samples, labels, largest, center)
        labels[farthest] = k
        counts[largest] -= 1
        counts[k] += 1
        for c in range(3):
            value = samples[c, farthest]
            sums[largest, c] -= value
            sums[k, c] += value
            rounded[largest, c] -= np.float32(value)
            rounded[k, c] += np.float32(value)


@helper
def _move_centers(centers: _Floats, rounded: _Floats, counts: _Integers, clusters: int) -> float:
    """Moves each centre to its cluster's mean; returns the squared length of the longest move."""
    longest = 0.0
    for k in range(clusters):
        scale = np.float32(1) / np.float32(counts[k])
        shift = 0.0
        for c in range(3):
            mean = rounded[k, c] * scale
            step = np.float64(mean - centers[k, c])
            shift += step * step
            centers[k, c] = mean
        longest = max(longest, shift)
    return longest


@entry("uint8[::1](uint8[:,::1], uint64[::1])")
def cluster(samples: _Bytes, state: NDArray[np.uint64]) -> _Bytes:
    """Clusters samples as `cv2.kmeans` does in 10 iterations and one attempt.

    Returns (n,) uint8 label of each sample's cluster, less than min(COMPONENTS, n).

    Args:
      samples: (3, n) uint8, the colours of n >= 1 samples.
      state: state of the random generator. Changed.
    """
    count = samples.shape[1]
    clusters = min(COMPONENTS, count)
    # Unused centres are at infinity, so no sample is nearest to them.
    centers = np.full((COMPONENTS, 3), np.inf, np.float32)
    labels = np.full(count, _NO_LABEL, np.uint8)
    new_labels = np.empty(count, np.uint8)
    counts = np.zeros(COMPONENTS, np.int64)
    sums = np.zeros((COMPONENTS, 3), np.int64)
    rounded = np.zeros((COMPONENTS, 3), np.float32)
    _choose_centers(samples, centers, clusters, state)
    # OpenCV runs ten iterations, or two if there is one cluster. Each begins by moving the centres,
    # which ends an iteration here. OpenCV's first iteration chooses centres instead, and its last
    # assigns no labels, so there is one iteration less here.
    for _ in range((_ITERATIONS if clusters > 1 else 2) - 1):
        _assign(samples, centers, new_labels)
        _move(samples, labels, new_labels, counts, sums)
        _round_sums(samples, labels, sums, rounded)
        _fill_empty(samples, labels, counts, sums, rounded, clusters)
        if _move_centers(centers, rounded, counts, clusters) <= _EPSILON:
            break
    return labels
