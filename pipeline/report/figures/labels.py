"""Places for labels that would touch each other."""

from __future__ import annotations

from collections.abc import Sequence


def apart(wanted: Sequence[float], sizes: Sequence[float], length: float) -> list[float]:
    """Places as close to the wanted ones as labels of these sizes allow without touching,
    between 0 and `length` if they fit there."""
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    # Neighbours that touch share a block, centred where its labels want to be.
    blocks: list[list[int]] = []
    for i in order:
        blocks.append([i])
        while len(blocks) > 1 and _start(blocks[-1], wanted, sizes, length) < _end(
            blocks[-2], wanted, sizes, length
        ):
            last = blocks.pop()
            blocks[-1] += last
    places = [0.0] * len(wanted)
    for block in blocks:
        at = _start(block, wanted, sizes, length)
        for i in block:
            places[i] = at + sizes[i] / 2
            at += sizes[i]
    return places


def _start(
    block: Sequence[int], wanted: Sequence[float], sizes: Sequence[float], length: float
) -> float:
    """Where a block of touching labels begins."""
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
