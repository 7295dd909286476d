"""Learns two mixtures of five Gaussians from moments that are whole numbers.

Moments of colours are exact integers, so samples can be added in any order, and a sample that
changes its component is simply subtracted from one component and added to another. The covariance,
its determinant and its inverse are then computed with OpenCV's operations in OpenCV's order. This
matters because the covariance of grey pictures is singular except for rounding errors, which then
decide the result. Source: OpenCV, imgproc/grabcut.cpp (`GMM::endLearning`,
`GMM::calcInverseCovAndDeterm`).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from transforms.grabcut.clustering import COMPONENTS
from transforms.grabcut.compilation import Integer, entry, helper

# Columns of a component, which is a row of float64: weight, mean (3 columns), inverse covariance (9
# columns, row by row), scale = 1 / sqrt(determinant), log(scale) and log(weight). A component
# without samples has weight 0, and minus infinity for both logarithms.
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
    moments[0] += sign
    moments[1] += sign * r
    moments[2] += sign * g
    moments[3] += sign * b
    moments[4] += sign * r * r
    moments[5] += sign * r * g
    moments[6] += sign * r * b
    moments[7] += sign * g * g
    moments[8] += sign * g * b
    moments[9] += sign * b * b


@entry("void(uint8[:,::1], uint8[::1], uint8[::1], int64[:,::1])")
def regroup(
    samples: NDArray[np.uint8],
    groups: NDArray[np.uint8],
    new_groups: NDArray[np.uint8],
    moments: NDArray[np.int64],
) -> None:
    """Assigns new groups. A sample whose group changes is subtracted from the moments of its old
    group and added to the moments of its new group.

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
    determinant: float = (
        c[0] * (c[4] * c[8] - c[5] * c[7])
        - c[1] * (c[3] * c[8] - c[5] * c[6])
        + c[2] * (c[3] * c[7] - c[4] * c[6])
    )
    return determinant


@helper
def _invert(c: NDArray[np.float64], determinant: float, inverse: NDArray[np.float64]) -> None:
    factor = 1.0 / determinant
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

    Args:
      moments: (COMPONENTS, MOMENTS) int64.
      mixture: (COMPONENTS, FIELDS) float64. Written.

    Returns:
      Whether every covariance has an inverse, which OpenCV asserts.
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
