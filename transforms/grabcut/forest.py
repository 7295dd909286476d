"""The forest that `max_flow` grows on a grid: how it is planted, grown and repaired.

A node's position in the forest is its level and the direction of its parent. Lists of nodes are
linked through arrays: the first node of each level, and the next node after each node.

Repairs the forest of `max_flow`: makes levels exact after sweeps have cut off parts of it.

Level by level, orphans look for another parent with which they keep their level. Orphans without
such a parent leave the forest, and make their children orphans. Then the forest grows back over the
nodes that have left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from transforms.grabcut.compilation import Integer, helper
from transforms.grabcut.lanes import (
    lowest_bit,
    lowest_open_level,
    neighbours_equal,
    neighbours_pointing_here,
    open_arcs_to,
)

FREE = np.uint16(65535)
"""Level of the grid's nodes that are not in the forest. The grid's padding has level 0."""
DEEPEST = 65533
"""Highest level that a search may reach. It leaves one level to spare below `FREE`."""

# Special values of a node's `parent`; 0 to 7 are directions.
NO_PARENT = np.uint8(8)
ROOT = np.uint8(9)
ORPHAN = np.uint8(10)

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]


class Grid(NamedTuple):
    """The graph and its forest, as flat arrays over the nodes of the padded grid.

    Attributes:
      residual: (8 * nodes,) int32, residual capacities of each node's eight arcs, in the order of
        directions in `lanes`.
      excess: (nodes,) int32, excess of each node, negative for a deficit.
      level: (nodes + SLACK,) uint16; 0 in the padding.
      parent: (nodes + SLACK,) uint8, a direction (see `lanes`) or one of the constants above.
      steps: (8,) int64, offsets from a node to its neighbours.
      stride: number of nodes in a row.
    """

    residual: Ints
    excess: Ints
    level: NDArray[np.uint16]
    parent: Bytes
    steps: NDArray[np.int64]
    stride: int


class Queues(NamedTuple):
    """Linked lists of nodes, one for each level.

    Two int32 arrays hold the lists: the first node of each level's list, (deepest + 2,), and the
    node that follows each node, (nodes,). -1 ends a list.

    Attributes:
      active, active_next: lists of the forest's nodes with excess.
      orphan, orphan_next: lists of nodes that have lost their parents. A node stays in its list
        even if it has found another parent since, or was raised.
      is_listed: (nodes,) uint8, whether each node is in a list of orphans.
    """

    active: Ints
    active_next: Ints
    orphan: Ints
    orphan_next: Ints
    is_listed: Bytes


@helper
def put(first: Ints, following: Ints, node: Integer, level: Integer) -> None:
    """Puts a node in front of a level's list."""
    following[node] = first[level]
    first[level] = node


@helper
def plant(grid: Grid, height: int, width: int, roots: Ints) -> int:
    """Starts a forest of its roots, the nodes with a deficit; returns the number of `roots`."""
    _, excess, level_of, parent, _, stride = grid
    count = 0
    for y in range(1, height + 1):
        for node in range(y * stride + 1, y * stride + 1 + width):
            if excess[node] < 0:
                level_of[node] = 1
                parent[node] = ROOT
                roots[count] = node
                count += 1
            else:
                level_of[node] = FREE
                parent[node] = NO_PARENT
    return count


@helper
def nodes_at(grid: Grid, depth: int, nodes: Ints) -> int:
    """Writes the nodes of a level to `nodes`; returns their number."""
    level_of, count = grid.level, 0
    for node in range(len(grid.excess)):
        if level_of[node] == depth:
            nodes[count] = node
            count += 1
    return count


@helper
def adopt_free(
    residual: Ints,
    level_of: NDArray[np.uint16],
    parent: Bytes,
    steps: NDArray[np.int64],
    stride: int,
    node: Integer,
    level: Integer,
    children: Ints,
    count: int,
) -> int:
    """Makes free neighbours the children of a node, if they can send flow to it.

    Appends the new children to the first `count` nodes in `children`; returns the new count.
    """
    neighbours = neighbours_equal(level_of, node, stride, FREE)
    while neighbours:
        k = lowest_bit(neighbours)
        neighbours &= neighbours - np.uint64(1)
        child = node + steps[k]
        if residual[child * 8 + 7 - k]:
            level_of[child] = level + 1
            parent[child] = 7 - k
            children[count] = child
            count += 1
    return count


@helper
def grow(
    grid: Grid, queues: Queues, depth: int, leaves: Ints, count: int, new_leaves: Ints
) -> tuple[int, bool]:
    """Adds a level to the forest.

    Args:
      grid: the forest. Changed.
      queues: its lists. Changed.
      depth: the forest's highest level.
      leaves: nodes whose first `count` include all nodes of the highest level.
      count: see `leaves`.
      new_leaves: nodes of the new level. Written.

    Returns:
      The number of nodes in the new level, and whether any of them is active.
    """
    residual, excess, level_of, parent, steps, stride = grid
    active, active_next, _, _, _ = queues
    added = 0
    for i in range(count):
        leaf = np.int64(leaves[i])
        if level_of[leaf] == depth:
            added = adopt_free(
                residual, level_of, parent, steps, stride, leaf, depth, new_leaves, added
            )
    any_active = False
    for i in range(added):
        node = np.int64(new_leaves[i])
        if excess[node] > 0:
            put(active, active_next, node, depth + 1)
            any_active = True
    return added, any_active


@helper
def orphan_children(
    parent: Bytes,
    steps: NDArray[np.int64],
    stride: int,
    orphan: Ints,
    orphan_next: Ints,
    is_listed: Bytes,
    node: Integer,
    level: Integer,
) -> None:
    """Makes the children of a node orphans; `level` is the node's level."""
    children = neighbours_pointing_here(parent, node, stride)
    while children:
        k = lowest_bit(children)
        children &= children - np.uint64(1)
        child = node + steps[k]
        parent[child] = ORPHAN
        if not is_listed[child]:
            is_listed[child] = 1
            put(orphan, orphan_next, child, level + 1)


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
