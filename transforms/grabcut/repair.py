"""Repairs the forest of `max_flow`: makes levels exact after sweeps have cut off parts of it.

Level by level, orphans look for another parent with which they keep their level. Orphans without
such a parent leave the forest, and make their children orphans. Then the forest grows back over the
nodes that have left.
"""

from __future__ import annotations

import numpy as np

from transforms.grabcut.compilation import helper
from transforms.grabcut.forest import (
    FREE,
    NO_PARENT,
    ORPHAN,
    Grid,
    Ints,
    Queues,
    adopt_free,
    orphan_children,
    put,
)
from transforms.grabcut.lanes import lowest_bit, lowest_open_level, open_arcs_to


@helper
def prune(grid: Grid, queues: Queues, depth: int, lost: Ints) -> tuple[int, int]:
    """Gives each orphan another parent with which it keeps its level; frees the other orphans.

    Writes the freed nodes to `lost`; returns their number and their lowest level.
    """
    residual, _, level_of, parent, steps, stride = grid
    _, _, orphan, orphan_next, is_listed = queues
    count, lowest = 0, depth
    for level in range(1, depth + 1):
        below = np.uint16(level - 1)
        while orphan[level] >= 0:
            node = np.int64(orphan[level])
            orphan[level] = orphan_next[node]
            if parent[node] != ORPHAN:
                is_listed[node] = 0
                continue
            if level_of[node] != level:
                put(orphan, orphan_next, node, np.int64(level_of[node]))
                continue
            is_listed[node] = 0
            arcs = open_arcs_to(residual, level_of, node, stride, below)
            if arcs:
                parent[node] = lowest_bit(arcs)
                continue
            orphan_children(parent, steps, stride, orphan, orphan_next, is_listed, node, level)
            level_of[node] = FREE
            parent[node] = NO_PARENT
            lost[count] = node
            count += 1
            lowest = min(lowest, level)
    return count, lowest


@helper
def regrow(
    grid: Grid,
    queues: Queues,
    depth: int,
    lowest: int,
    lost: Ints,
    lost_count: int,
    settled: Ints,
    leaves: Ints,
    count: int,
) -> int:
    """Grows the forest, up to its highest level, back over the nodes that it has lost.

    New nodes at the highest level are appended to the first `count` leaves, if there is room.
    Returns the new count.
    """
    residual, _, level_of, parent, steps, stride = grid
    _, _, bordering, bordering_next, _ = queues  # Reuses the lists of orphans, which are empty.
    for i in range(lost_count):
        node = np.int64(lost[i])
        level = lowest_open_level(residual, level_of, node, stride) + 1
        if level <= depth:
            put(bordering, bordering_next, node, level)
    start = stop = 0
    for level in range(lowest + 1, depth + 1):
        below = np.uint16(level - 1)
        node = np.int64(bordering[level])
        bordering[level] = -1
        while node >= 0:
            if level_of[node] == FREE:
                level_of[node] = level
                parent[node] = lowest_bit(open_arcs_to(residual, level_of, node, stride, below))
                settled[stop] = node
                stop += 1
            node = np.int64(bordering_next[node])
        end_of_level = stop
        for i in range(start, end_of_level):
            node = np.int64(settled[i])
            if level < depth:
                stop = adopt_free(
                    residual, level_of, parent, steps, stride, node, level, settled, stop
                )
            elif count < len(leaves):
                leaves[count] = node
                count += 1
        start = end_of_level
    return count


@helper
def list_active_anew(grid: Grid, queues: Queues, depth: int, nodes: Ints) -> bool:
    """Lists active nodes by the levels that a repair has given them.

    Uses `nodes` as scratch memory. Returns whether the forest still has an active node.
    """
    level_of = grid.level
    active, active_next = queues.active, queues.active_next
    count = 0
    for level in range(1, depth + 1):
        node = np.int64(active[level])
        active[level] = -1
        while node >= 0:
            nodes[count] = node
            count += 1
            node = np.int64(active_next[node])
    any_active = False
    for i in range(count):
        node = np.int64(nodes[i])
        if level_of[node] != FREE:
            put(active, active_next, node, np.int64(level_of[node]))
            any_active = True
    return any_active
