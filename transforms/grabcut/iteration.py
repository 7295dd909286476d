"""GrabCut from a rectangle: runs the kernels in order, and passes arrays from one to the next.

The kernels work on samples, which are the colours of pixels in raster order. There are two arrays
of samples: the pixels outside the rectangle, which stay background, and the pixels inside.

Source: Rother, Kolmogorov and Blake, "GrabCut - Interactive Foreground Extraction using
Iterated Graph Cuts", SIGGRAPH 2004.
"""

import numpy as np
from numpy.typing import NDArray

from transforms.grabcut.cache import Unsupported
from transforms.grabcut.clustering import COMPONENTS, cluster, seeded
from transforms.grabcut.compilation import entry
from transforms.grabcut.forest import DEEPEST, FREE
from transforms.grabcut.lanes import SLACK
from transforms.grabcut.max_flow import minimum_cut, workspace
from transforms.grabcut.mixtures import (
    FIELDS,
    MOMENTS,
    NO_GROUP,
    assign_components,
    learn,
    regroup,
    weigh,
)
from transforms.grabcut.smoothness import link_pixels, measure_contrast

_SCALE = 2.0**20
"""Integer units that stand for a weight of 1 in the graph. The largest excess of a pixel, a pull of
up to 345 plus twice the capacity of eight links of up to 50, fits into int32. With fewer than 2^10
units, the cut begins to differ from OpenCV's if two cuts have nearly the same weight."""

_PROBABLY_BACKGROUND = 2
"""OpenCV's label `GC_PR_BGD`. The next number is `GC_PR_FGD`, for probable foreground."""

_Bytes = NDArray[np.uint8]


@entry(
    "Tuple((uint8[:,:,::1], uint8[:,::1], uint8[:,::1]))(uint8[:,:,::1],"
    " int64, int64, int64, int64)"
)
def _split(
    image: _Bytes, left: int, top: int, width: int, height: int
) -> tuple[_Bytes, _Bytes, _Bytes]:
    """Splits a (H, W, 3) uint8 picture into planes and samples, by a rectangle inside of it.

    Returns (3, H, W) planes of the picture, (3, m) samples outside of the rectangle, and (3, n)
    samples inside, all uint8.
    """
    image_height, image_width = image.shape[:2]
    planes = np.empty((3, image_height, image_width), np.uint8)
    outside = np.empty((3, image_height * image_width - width * height), np.uint8)
    inside = np.empty((3, width * height), np.uint8)
    right = left + width
    out = 0
    for y in range(image_height):
        for x in range(image_width):
            for c in range(3):
                planes[c, y, x] = image[y, x, c]
        if top <= y < top + height:
            start = (y - top) * width
            inside[:, start : start + width] = planes[:, y, left:right]
            outside[:, out : out + left] = planes[:, y, :left]
            out += left
            outside[:, out : out + image_width - right] = planes[:, y, right:]
            out += image_width - right
        else:
            outside[:, out : out + image_width] = planes[:, y]
            out += image_width
    return planes, outside, inside


@entry("void(int32[::1], int32[::1], int32[::1], int64)")
def _pull(
    excess: NDArray[np.int32], pulls: NDArray[np.int32], applied: NDArray[np.int32], width: int
) -> None:
    """Adds to the excesses the change of the pulls since `applied`, and updates `applied`."""
    for y in range(len(pulls) // width):
        node = (y + 1) * (width + 2) + 1
        row = excess[node : node + width]
        new, old = pulls[y * width :], applied[y * width :]
        for x in range(width):
            row[x] += new[x] - old[x]
            old[x] = new[x]


@entry("void(uint16[::1], uint8[::1], uint8[::1], uint8[::1], int64)")
def _read_cut(
    level: NDArray[np.uint16],
    background_components: _Bytes,
    foreground_components: _Bytes,
    groups: _Bytes,
    width: int,
) -> None:
    """Reads each sample's side of the cut, and writes its group.

    Groups 0 to COMPONENTS - 1 are the components of the background's mixture; the components of the
    foreground's mixture follow.
    """
    for y in range(len(groups) // width):
        node = (y + 1) * (width + 2) + 1
        sides = level[node : node + width]
        row = groups[y * width :]
        backs, fronts = background_components[y * width :], foreground_components[y * width :]
        for x in range(width):
            front = np.uint8(fronts[x] + COMPONENTS)
            row[x] = front if sides[x] == FREE else backs[x]


def _learn(
    groupings: tuple[tuple[_Bytes, _Bytes, _Bytes], ...],
    moments: NDArray[np.int64],
    background: NDArray[np.float64],
    foreground: NDArray[np.float64],
) -> None:
    """Learns both mixtures from (samples, groups, new groups), see `mixtures.regroup`."""
    for samples, groups, new_groups in groupings:
        regroup(samples, groups, new_groups, moments)
    if not (learn(moments[:COMPONENTS], background) and learn(moments[COMPONENTS:], foreground)):
        raise Unsupported("a Gaussian without an inverse covariance, which OpenCV refuses too")


def segment(image: _Bytes, rect: tuple[int, int, int, int], iterations: int, seed: int) -> _Bytes:
    """Runs GrabCut on checked arguments: (H, W) uint8, 0 outside the rectangle, 2 or 3 inside.

    Raises Unsupported if a covariance has no inverse, or the search is too deep.

    Args:
      image: (H, W, 3) uint8, contiguous and writable.
      rect: (left, top, width, height), inside the image, neither empty nor the whole image.
      iterations: number of times that the mixtures are learned and the cut is made, >= 0.
      seed: seed of OpenCV's generator.
    """
    left, top, width, height = rect
    planes, outside, inside = _split(image, left, top, width, height)
    state = seeded(seed)
    outside_new = cluster(outside, state)
    inside_new = cluster(inside, state)
    inside_new += np.uint8(COMPONENTS)

    outside_groups = np.full(outside.shape[1], NO_GROUP, np.uint8)
    inside_groups = np.full(inside.shape[1], NO_GROUP, np.uint8)
    groupings = (outside, outside_groups, outside_new), (inside, inside_groups, inside_new)
    moments = np.zeros((2 * COMPONENTS, MOMENTS), np.int64)
    background, foreground = np.empty((2, COMPONENTS, FIELDS))
    _learn(groupings, moments, background, foreground)
    assign_components(inside, foreground, inside_new)
    inside_new += np.uint8(COMPONENTS)

    beta = measure_contrast(planes)
    residual, is_open, excess = link_pixels(planes, left, top, width, height, beta, _SCALE)

    background_components = np.empty(inside.shape[1], np.uint8)
    foreground_components = np.empty(inside.shape[1], np.uint8)
    pulls = np.empty(inside.shape[1], np.int32)
    applied = np.zeros(inside.shape[1], np.int32)
    level = np.zeros(len(excess) + SLACK, np.uint16)
    deepest = min(DEEPEST, len(excess))
    work = workspace(len(excess), deepest)
    for _ in range(iterations):
        assign_components(outside, background, outside_new)
        _learn(groupings, moments, background, foreground)
        weigh(
            inside,
            background,
            foreground,
            _SCALE,
            background_components,
            foreground_components,
            pulls,
        )
        _pull(excess, pulls, applied, width)
        grid = (residual, is_open, excess, level)
        if minimum_cut(*grid, height, width, deepest, *work) > deepest:
            raise Unsupported(f"a search more than {deepest} levels deep")
        # The components that the samples have in this iteration's mixtures become the groups from
        # which the next iteration learns its mixtures.
        _read_cut(level, background_components, foreground_components, inside_new, width)

    mask = np.zeros(image.shape[:2], np.uint8)
    values = (inside_new >= COMPONENTS).reshape(height, width) + np.uint8(_PROBABLY_BACKGROUND)
    mask[top : top + height, left : left + width] = values
    return mask
