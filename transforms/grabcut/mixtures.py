"""Two mixtures of five Gaussians: learns them, and computes what they say of each colour.

They are learned from moments. Moments of colours are exact integers, so samples can be added in any
order, and a sample that changes its component is simply subtracted from one component and added to
another. The covariance, its determinant and its inverse are then computed with OpenCV's operations
in OpenCV's order. This matters because the covariance of grey pictures is singular except for
rounding errors, which then decide the result. Source: OpenCV, imgproc/grabcut.cpp
(`GMM::endLearning`, `GMM::calcInverseCovAndDeterm`).

They then give each colour its component, a Gaussian of a mixture, and its pull to one side of the
cut. The exponent of a component is the logarithm of its density. OpenCV computes the density of
each Gaussian, and chooses the component with the greatest density, without weights. The component
with the greatest exponent is the same, so no exponential is needed to choose it. The pull is the
logarithm of the ratio of the two mixtures' densities. To compute it, the greatest term of each
mixture is factored out before the exponentials are summed. Quadratic forms are computed with
OpenCV's operations in OpenCV's order, in blocks that fit into the fastest cache.

This method would differ from OpenCV where OpenCV's densities underflow. For every possible
covariance, OpenCV's greatest density is a normal number if the greatest exponent is within +-690,
and 0 if the greatest exponent is below -780. If all densities are 0, OpenCV chooses the first
component, and the logarithm of the mixture's density is minus infinity, which makes an arc to the
source (or the sink) that cannot be filled; if both mixtures have density 0, it is the arc to the
source. These rules are applied here, too. The few samples whose greatest exponent is in neither of
the two ranges are recomputed in OpenCV's way. Source: OpenCV, imgproc/grabcut.cpp
(`GMM::whichComponent`, `GMM::operator()`, `constructGCGraph`).
"""

import math

import numpy as np
from numpy.typing import NDArray

from transforms.grabcut.clustering import COMPONENTS
from transforms.grabcut.compilation import Integer, entry, exp_below_zero, helper, log, single

# Columns of a component, which is a row of float64: weight, mean (3 columns), half the inverse
# covariance (9 columns, row by row), scale = 1 / sqrt(determinant), log(scale) and log(weight). A
# component without samples has weight 0, and minus infinity for both logarithms. A half costs an
# exponent no product, and is exact.
WEIGHT, MEAN, INVERSE, SCALE, LOG_SCALE, LOG_WEIGHT = 0, 1, 4, 13, 14, 15
FIELDS = 16

MOMENTS = 10
"""Number of moments of a group: the number of samples, and the sums of r, g, b, rr, rg, rb, gg, gb,
bb."""
NO_GROUP = 255
"""Group of a sample that no moments hold yet."""

_NOISE = 0.01
_SINGULAR = 1e-6
_EPSILON = float(np.finfo(np.float64).eps)


@helper
def _count_in(moments: NDArray[np.int64], sign: int, r: Integer, g: Integer, b: Integer) -> None:
    """Adds a colour to a group's moments; subtracts it if `sign` is -1."""
    values, field = (np.int64(1), r, g, b), 0
    for first in range(4):
        for second in range(first, 4):
            moments[field] += sign * values[first] * values[second]
            field += 1


@entry("void(uint8[:,::1], uint8[::1], uint8[::1], int64[:,::1])")
def regroup(
    samples: NDArray[np.uint8],
    groups: NDArray[np.uint8],
    new_groups: NDArray[np.uint8],
    moments: NDArray[np.int64],
) -> None:
    """Assigns new groups, and moves each sample whose group changes between the groups' moments.

    Args:
      samples: (3, n) uint8.
      groups: (n,) uint8, each sample's row of `moments`, or `NO_GROUP`. Changed.
      new_groups: (n,) uint8, each sample's new row of `moments`.
      moments: (groups, MOMENTS) int64. Changed.
    """
    for i in range(len(groups)):
        old, new = groups[i], new_groups[i]
        if old == new:
            continue
        groups[i] = new
        r, g, b = np.int64(samples[0, i]), np.int64(samples[1, i]), np.int64(samples[2, i])
        _count_in(moments[new], 1, r, g, b)
        if old != NO_GROUP:
            _count_in(moments[old], -1, r, g, b)


@helper
def _determinant(c: NDArray[np.float64]) -> float:
    return float(
        c[0] * (c[4] * c[8] - c[5] * c[7])
        - c[1] * (c[3] * c[8] - c[5] * c[6])
        + c[2] * (c[3] * c[7] - c[4] * c[6])
    )


@helper
def _invert(c: NDArray[np.float64], determinant: float, inverse: NDArray[np.float64]) -> None:
    """Writes half the inverse of a covariance."""
    factor = 0.5 / determinant
    inverse[0] = (c[4] * c[8] - c[5] * c[7]) * factor
    inverse[1] = -(c[1] * c[8] - c[2] * c[7]) * factor
    inverse[2] = (c[1] * c[5] - c[2] * c[4]) * factor
    inverse[3] = -(c[3] * c[8] - c[5] * c[6]) * factor
    inverse[4] = (c[0] * c[8] - c[2] * c[6]) * factor
    inverse[5] = -(c[0] * c[5] - c[2] * c[3]) * factor
    inverse[6] = (c[3] * c[7] - c[4] * c[6]) * factor
    inverse[7] = -(c[0] * c[7] - c[1] * c[6]) * factor
    inverse[8] = (c[0] * c[4] - c[1] * c[3]) * factor


@entry("boolean(int64[:,::1], float64[:,::1])")
def learn(moments: NDArray[np.int64], mixture: NDArray[np.float64]) -> bool:
    """Learns a mixture from the moments of its components.

    Writes `mixture`, (COMPONENTS, FIELDS) float64, from (COMPONENTS, MOMENTS) int64. Returns
    whether every covariance has an inverse, which OpenCV asserts.
    """
    total = np.float64(moments[:, 0].sum())
    c = np.empty(9)
    for k in range(COMPONENTS):
        component, m = mixture[k], moments[k]
        component[:] = 0
        component[LOG_SCALE], component[LOG_WEIGHT] = -np.inf, -np.inf
        if m[0] == 0:
            continue
        share = 1.0 / m[0]
        r, g, b = m[1] * share, m[2] * share, m[3] * share
        c[0], c[1], c[2] = m[4] * share - r * r, m[5] * share - r * g, m[6] * share - r * b
        c[3], c[4], c[5] = c[1], m[7] * share - g * g, m[8] * share - g * b
        c[6], c[7], c[8] = c[2], c[5], m[9] * share - b * b
        determinant = _determinant(c)
        if determinant <= _SINGULAR:
            c[0] += _NOISE
            c[4] += _NOISE
            c[8] += _NOISE
            determinant = _determinant(c)
        if not determinant > _EPSILON:
            return False
        component[WEIGHT] = m[0] / total
        component[MEAN], component[MEAN + 1], component[MEAN + 2] = r, g, b
        _invert(c, determinant, component[INVERSE : INVERSE + 9])
        component[SCALE] = 1.0 / math.sqrt(determinant)
        component[LOG_SCALE] = math.log(component[SCALE])
        component[LOG_WEIGHT] = math.log(component[WEIGHT])
    return True


PULL_LIMIT = 345.0
"""Largest absolute pull. It exceeds the sum of a pixel's links (4 * 50 + 4 * 50 / sqrt(2) = 341.4),
so a pull of this size decides a pixel's side whatever the neighbours do, and greater pulls would
change nothing."""

_BLOCK = 256
_NORMAL = 690.0
_ZERO = -780.0
# Greater than any pull in integer units. Adding it makes every pull positive, so that truncation
# rounds down.
_OFFSET = 1 << 29

_Bytes = NDArray[np.uint8]
_Floats = NDArray[np.float64]
_Singles = NDArray[np.float32]


@helper
def _load(samples: _Bytes, start: int, count: int, colors: _Floats) -> None:
    """Copies a block of (3, n) samples to (3, _BLOCK) float64."""
    for c in range(3):
        source, target = samples[c, start : start + count], colors[c]
        for i in range(count):
            target[i] = source[i]


@helper
def _quadratic(
    r: float,
    g: float,
    b: float,
    i0: float,
    i1: float,
    i2: float,
    i3: float,
    i4: float,
    i5: float,
    i6: float,
    i7: float,
    i8: float,
) -> float:
    """Computes the quadratic form of a difference from the mean and half an inverse covariance."""
    return (
        r * (r * i0 + g * i3 + b * i6)
        + g * (r * i1 + g * i4 + b * i7)
        + b * (r * i2 + g * i5 + b * i8)
    )


@helper
def _exponents(colors: _Floats, count: int, mixture: _Floats, exponents: _Floats) -> None:
    """Writes the logarithm of each Gaussian's density to `exponents`, (COMPONENTS, _BLOCK)."""
    reds, greens, blues = colors[0], colors[1], colors[2]
    for k in range(COMPONENTS):
        component, target = mixture[k], exponents[k]
        # Reads the values before the loop, because LLVM assumes that the loop may overwrite them,
        # and would read them again each time.
        m0, m1, m2 = component[MEAN], component[MEAN + 1], component[MEAN + 2]
        i0, i1, i2 = component[INVERSE], component[INVERSE + 1], component[INVERSE + 2]
        i3, i4, i5 = component[INVERSE + 3], component[INVERSE + 4], component[INVERSE + 5]
        i6, i7, i8 = component[INVERSE + 6], component[INVERSE + 7], component[INVERSE + 8]
        log_scale = component[LOG_SCALE]
        for i in range(count):
            r, g, b = reds[i] - m0, greens[i] - m1, blues[i] - m2
            quadratic = _quadratic(r, g, b, i0, i1, i2, i3, i4, i5, i6, i7, i8)
            target[i] = log_scale - quadratic


@helper
def _greatest(exponents: _Floats, count: int, components: _Bytes, greatest: _Floats) -> bool:
    """Finds each sample's greatest exponent, and the first component that has it.

    Returns whether any sample is uncertain: its greatest exponent is in none of the ranges in which
    OpenCV's result is known, so OpenCV's own way must decide.
    """
    e0, e1, e2, e3, e4 = exponents[0], exponents[1], exponents[2], exponents[3], exponents[4]
    uncertain: Integer = 0
    for i in range(count):
        # A number as wide as the exponents: on it depends whether AVX2 does four at a time.
        top, chosen = e0[i], np.int64(0)
        chosen, top = (np.int64(1), e1[i]) if e1[i] > top else (chosen, top)
        chosen, top = (np.int64(2), e2[i]) if e2[i] > top else (chosen, top)
        chosen, top = (np.int64(3), e3[i]) if e3[i] > top else (chosen, top)
        chosen, top = (np.int64(4), e4[i]) if e4[i] > top else (chosen, top)
        components[i] = np.int64(0) if top < _ZERO else chosen
        greatest[i] = top
        uncertain += np.int64(0) if _is_certain(top) else np.int64(1)
    return bool(uncertain > 0)


@helper
def _is_certain(greatest: float) -> bool:
    return abs(greatest) < _NORMAL or greatest < _ZERO


@helper
def _as_opencv(mixture: _Floats, red: float, green: float, blue: float) -> tuple[np.uint8, float]:
    """Computes a colour's component and density as OpenCV does: the density may underflow to 0."""
    chosen, greatest, density = np.uint8(0), 0.0, 0.0
    for k in range(COMPONENTS):
        component = mixture[k]
        if component[WEIGHT] > 0:
            inverse = component[INVERSE : INVERSE + 9]
            quadratic = _quadratic(
                red - component[MEAN],
                green - component[MEAN + 1],
                blue - component[MEAN + 2],
                inverse[0],
                inverse[1],
                inverse[2],
                inverse[3],
                inverse[4],
                inverse[5],
                inverse[6],
                inverse[7],
                inverse[8],
            )
            gaussian = component[SCALE] * math.exp(-quadratic)
            density += component[WEIGHT] * gaussian
            if gaussian > greatest:
                chosen, greatest = np.uint8(k), gaussian
    return chosen, density


@entry("void(uint8[:,::1], float64[:,::1], uint8[::1])")
def assign_components(samples: _Bytes, mixture: _Floats, components: _Bytes) -> None:
    """Finds each sample's component in a mixture, as `weigh` does; writes `components`."""
    colors = np.empty((3, _BLOCK))
    exponents = np.empty((COMPONENTS, _BLOCK))
    greatest = np.empty(_BLOCK)
    for start in range(0, samples.shape[1], _BLOCK):
        count = min(_BLOCK, samples.shape[1] - start)
        block = components[start : start + count]
        _load(samples, start, count, colors)
        _exponents(colors, count, mixture, exponents)
        if _greatest(exponents, count, block, greatest):
            for i in range(count):
                if not _is_certain(greatest[i]):
                    block[i] = _as_opencv(mixture, colors[0, i], colors[1, i], colors[2, i])[0]


@helper
def _densities(
    exponents: _Floats,
    count: int,
    mixture: _Floats,
    others: _Singles,
    tops: _Floats,
    sums: _Singles,
) -> None:
    """Computes each sample's density, exp(tops) * sums; one of its exponents must be finite.

    Numbers of single precision are enough for the sums, and AVX2 adds up eight of them at a time.
    `others`, (COMPONENTS - 1, _BLOCK), holds the terms meanwhile.
    """
    e0, e1, e2, e3, e4 = exponents[0], exponents[1], exponents[2], exponents[3], exponents[4]
    o1, o2, o3, o4 = others[0], others[1], others[2], others[3]
    w0, w1, w2 = mixture[0, LOG_WEIGHT], mixture[1, LOG_WEIGHT], mixture[2, LOG_WEIGHT]
    w3, w4 = mixture[3, LOG_WEIGHT], mixture[4, LOG_WEIGHT]
    for i in range(count):
        t0, t1, t2, t3, t4 = e0[i] + w0, e1[i] + w1, e2[i] + w2, e3[i] + w3, e4[i] + w4
        # The greatest term, and the other four in any order.
        top, other1 = (t0, t1) if t0 > t1 else (t1, t0)
        top, other2 = (top, t2) if top > t2 else (t2, top)
        top, other3 = (top, t3) if top > t3 else (t3, top)
        top, other4 = (top, t4) if top > t4 else (t4, top)
        tops[i] = top
        o1[i], o2[i], o3[i], o4[i] = other1 - top, other2 - top, other3 - top, other4 - top
    for i in range(count):
        sums[i] = (
            single(1)
            + exp_below_zero(o1[i])
            + exp_below_zero(o2[i])
            + exp_below_zero(o3[i])
            + exp_below_zero(o4[i])
        )


@helper
def _whole(pull: float, scale: float) -> Integer:
    """Limits a pull to +-PULL_LIMIT, and rounds it to a whole number of integer units."""
    pull = pull if pull < PULL_LIMIT else PULL_LIMIT
    pull = pull if pull > -PULL_LIMIT else -PULL_LIMIT
    return np.int32(pull * scale + (_OFFSET + 0.5)) - _OFFSET


@entry(
    "void(uint8[:,::1], float64[:,::1], float64[:,::1], float64,"
    " uint8[::1], uint8[::1], int32[::1])"
)
def weigh(
    samples: _Bytes,
    background: _Floats,
    foreground: _Floats,
    scale: float,
    background_components: _Bytes,
    foreground_components: _Bytes,
    pulls: NDArray[np.int32],
) -> None:
    """Finds each sample's component in both mixtures, and its pull.

    Args:
      samples: (3, n) uint8.
      background, foreground: (COMPONENTS, FIELDS) float64.
      scale: number of integer units that stand for a pull of 1.
      background_components, foreground_components: (n,) uint8. Written.
      pulls: (n,) int32, log density in the foreground's mixture minus log density in the
        background's mixture, in integer units, within +-PULL_LIMIT * scale. Written.
    """
    colors = np.empty((3, _BLOCK))
    exponents = np.empty((COMPONENTS, _BLOCK))
    greatest_b, tops_b, sums_b = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK, np.float32)
    greatest_f, tops_f, sums_f = np.empty(_BLOCK), np.empty(_BLOCK), np.empty(_BLOCK, np.float32)
    others = np.empty((COMPONENTS - 1, _BLOCK), np.float32)
    for start in range(0, samples.shape[1], _BLOCK):
        count = min(_BLOCK, samples.shape[1] - start)
        components_b = background_components[start : start + count]
        components_f = foreground_components[start : start + count]
        block = pulls[start : start + count]
        _load(samples, start, count, colors)
        _exponents(colors, count, background, exponents)
        uncertain_b = _greatest(exponents, count, components_b, greatest_b)
        _densities(exponents, count, background, others, tops_b, sums_b)
        _exponents(colors, count, foreground, exponents)
        uncertain_f = _greatest(exponents, count, components_f, greatest_f)
        _densities(exponents, count, foreground, others, tops_f, sums_f)
        for i in range(count):
            sums_f[i] = log(sums_f[i] / sums_b[i])
        for i in range(count):
            pull = tops_f[i] - tops_b[i] + sums_f[i]
            pull = -PULL_LIMIT if greatest_f[i] < _ZERO else pull
            pull = PULL_LIMIT if greatest_b[i] < _ZERO else pull
            block[i] = _whole(pull, scale)
        if not (uncertain_b or uncertain_f):
            continue
        for i in range(count):
            if _is_certain(greatest_b[i]) and _is_certain(greatest_f[i]):
                continue
            r, g, b = colors[0, i], colors[1, i], colors[2, i]
            components_b[i], density_b = _as_opencv(background, r, g, b)
            components_f[i], density_f = _as_opencv(foreground, r, g, b)
            if density_b == 0:
                pull = PULL_LIMIT
            elif density_f == 0:
                pull = -PULL_LIMIT
            else:
                pull = math.log(density_f) - math.log(density_b)
            block[i] = _whole(pull, scale)
