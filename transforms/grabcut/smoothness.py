"""Links neighbouring pixels, strongly if their colours are alike.

A link weighs 50 * exp(-beta * |difference|^2), divided by sqrt(2) on a diagonal. Here beta is
1 / (2 * mean), with the mean squared difference of all neighbours in the picture. Only pixels in
the rectangle need links. A pixel outside is certainly background: its arc to the sink would weigh
450, more than all of its links together (341.4), so it always ends on the sink's side. That is why
a link to a pixel outside becomes an arc to the sink. Source: OpenCV, imgproc/grabcut.cpp
(`calcBeta`, `calcNWeights`).
"""

import numpy as np
from numpy.typing import NDArray

from transforms.grabcut.compilation import Integer, at, entry, exp_below_zero, helper
from transforms.grabcut.lanes import SLACK, open_arcs

_GAMMA = 50.0
# OpenCV's square root of 2 is a float32.
_DIAGONAL_GAMMA = _GAMMA / float(np.sqrt(np.float32(2)))

_Bytes = NDArray[np.uint8]

# (down, right) directions of the four links that are stored with a pixel. The links in the other
# four directions are stored with the neighbours.
_STEPS = ((0, 1), (1, -1), (1, 0), (1, 1))


@helper
def _squared(planes: _Bytes, y: int, x: int, y2: int, x2: int, i: int) -> Integer:
    """Computes the squared difference of the colours at (y, x + i) and (y2, x2 + i)."""
    r = np.int32(planes[0, y, x + i]) - np.int32(planes[0, y2, x2 + i])
    g = np.int32(planes[1, y, x + i]) - np.int32(planes[1, y2, x2 + i])
    b = np.int32(planes[2, y, x + i]) - np.int32(planes[2, y2, x2 + i])
    return np.int32(r * r + g * g + b * b)


@entry("float64(uint8[:,:,::1])")
def measure_contrast(planes: _Bytes) -> float:
    """Computes beta of a (3, H, W) uint8 picture; 0 for a picture of a single colour."""
    height, width = planes.shape[1:]
    total: Integer = 0
    for y in range(height):
        for down, right in _STEPS:
            if y + down < height:
                first = max(0, -right)
                for i in range(width - abs(right)):
                    total += _squared(planes, y, first, y + down, first + right, i)
    if total == 0:
        return 0.0
    pairs = 4 * width * height - 3 * width - 3 * height + 2
    return float(1.0 / (2.0 * np.float64(total) / pairs))


@helper
def _link_planes(
    planes: _Bytes, left: int, top: int, width: int, height: int, beta: float, scale: float
) -> NDArray[np.int32]:
    """Computes the links of a rectangle's pixels and of the ring around it: (4, nodes) int32.

    Row k holds each pixel's link to its neighbour in the direction `_STEPS[k]`, on the padded grid.
    The link is 0 if one of the two pixels is outside of the ring or of the picture.
    """
    picture_height, picture_width = planes.shape[1:]
    stride = width + 2
    links = np.zeros((4, (height + 2) * stride), np.int32)
    # The part of the ring that is inside the picture.
    x0, x1 = max(left - 1, 0), min(left + width + 1, picture_width)
    y0, y1 = max(top - 1, 0), min(top + height + 1, picture_height)
    for k in range(4):
        down, right = _STEPS[k]
        weight = scale * (_DIAGONAL_GAMMA if down and right else _GAMMA)
        first = x0 + max(0, -right)
        count = x1 - x0 - abs(right)
        for y in range(y0, y1 - down):
            start = (y - top + 1) * stride + first - left + 1
            row = links[k, start : start + count]
            for i in range(count):
                squared = np.float64(_squared(planes, y, first, y + down, first + right, i))
                row[i] = np.int32(weight * exp_below_zero(np.float32(-beta * squared)) + 0.5)
    return links


@helper
def _contract(
    residual: NDArray[np.int32], excess: NDArray[np.int32], node: int, arcs: tuple[int, ...]
) -> None:
    """Merges the arcs that lead from a node out of the rectangle into its arc to the sink."""
    for k in arcs:
        excess[node] -= residual[node * 8 + k]
        residual[node * 8 + k] = 0


@entry(
    "Tuple((int32[::1], uint8[::1], int32[::1]))"
    "(uint8[:,:,::1], int64, int64, int64, int64, float64, float64)"
)
def link_pixels(
    planes: _Bytes, left: int, top: int, width: int, height: int, beta: float, scale: float
) -> tuple[NDArray[np.int32], NDArray[np.uint8], NDArray[np.int32]]:
    """Builds the graph of a rectangle's pixels, including their links to pixels outside.

    Args:
      planes: (3, H, W) uint8, the picture, inside of which the rectangle lies.
      beta: from `measure_contrast`.
      scale: number of integer units that stand for a weight of 1.

    Returns:
      Residual capacities, open arcs and excesses, as `max_flow.minimum_cut` takes them.
    """
    stride = width + 2
    nodes = (height + 2) * stride
    links = _link_planes(planes, left, top, width, height, beta, scale)
    residual = np.zeros(8 * nodes, np.int32)
    for y in range(1, height + 1):
        for node in range(y * stride + 1, y * stride + 1 + width):
            first = node * 8
            for k in range(4):
                down, right = _STEPS[k]
                # The link to the neighbour, and that of the neighbour on the other side.
                residual[at(first + 4 + k)] = links[k, at(node)]
                residual[at(first + 3 - k)] = links[k, at(node - down * stride - right)]
    excess = np.zeros(nodes, np.int32)
    for x in range(1, width + 1):
        _contract(residual, excess, stride + x, (0, 1, 2))
        _contract(residual, excess, height * stride + x, (5, 6, 7))
    for y in range(1, height + 1):
        _contract(residual, excess, y * stride + 1, (0, 3, 5))
        _contract(residual, excess, y * stride + width, (2, 4, 7))
    is_open = np.zeros(nodes + SLACK, np.uint8)
    for node in range(nodes):
        is_open[at(node)] = open_arcs(residual, node)
    return residual, is_open, excess
