"""Places labels so that they do not overlap."""

from __future__ import annotations

from collections.abc import Sequence


def apart(wanted: Sequence[float], sizes: Sequence[float], length: float) -> list[float]:
    """Moves labels apart so that they do not overlap, each as little as possible.

    Args:
      wanted: positions of the labels' centres.
      sizes: extents of the labels, in the same units.
      length: end of the room for labels, which begins at 0; they stay within it if they fit.

    Returns:
      Positions of the centres.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    # Neighbours that touch form a block, which is placed where its labels want to be on average.
    blocks: list[list[int]] = []
    for i in order:
        blocks.append([i])
        while len(blocks) > 1 and _start(blocks[-1], wanted, sizes, length) < _end(
            blocks[-2], wanted, sizes, length
        ):
            last = blocks.pop()
            blocks[-1] += last
    positions = [0.0] * len(wanted)
    for block in blocks:
        at = _start(block, wanted, sizes, length)
        for i in block:
            positions[i] = at + sizes[i] / 2
            at += sizes[i]
    return positions


def _start(
    block: Sequence[int], wanted: Sequence[float], sizes: Sequence[float], length: float
) -> float:
    """Returns the position where a block of touching labels begins."""
    total = sum(sizes[i] for i in block)
    before, starts = 0.0, []
    for i in block:
        starts.append(wanted[i] - sizes[i] / 2 - before)
        before += sizes[i]
    best = sum(starts) / len(starts)
    return max(min(best, length - total), min(0.0, length - total))


def _end(
    block: Sequence[int], wanted: Sequence[float], sizes: Sequence[float], length: float
) -> float:
    return _start(block, wanted, sizes, length) + sum(sizes[i] for i in block)
