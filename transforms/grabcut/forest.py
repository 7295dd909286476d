"""The forest that `max_flow` grows on a grid: how it is planted, grown and repaired.

A node's position in the forest is its level and the direction of its parent. Lists of nodes are
linked through arrays: the first node of each level, and the next node after each node.

A repair makes levels exact after sweeps have cut off pieces of the forest. Level by level, orphans
look for another parent with which they keep their level. Orphans without such a parent leave the
forest, and make their children orphans. Then the forest grows back over the nodes that have left.

The functions look at the neighbours of all nodes of a level before they change any of these nodes;
`lanes` says why.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from transforms.grabcut.compilation import Integer, at, helper, inlined
from transforms.grabcut.lanes import (
    lowest_bit,
    lowest_open_arcs,
    neighbours_pointing_here,
    open_arcs_from,
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
      is_open: (nodes + SLACK,) uint8, a bit for each arc: whether it has residual capacity.
      excess: (nodes,) int32, excess of each node, negative for a deficit.
      level: (nodes + SLACK,) uint16; 0 in the padding.
      parent: (nodes + SLACK,) uint8, a direction (see `lanes`) or one of the constants above.
      steps: (8,) int64, offsets from a node to its neighbours.
      stride: number of nodes in a row.
    """

    residual: Ints
    is_open: Bytes
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


@inlined
def put(first: Ints, following: Ints, node: Integer, level: Integer) -> None:
    """Puts a node in front of a level's list."""
    following[at(node)] = first[at(level)]
    first[at(level)] = node


@helper
def plant(grid: Grid, height: int, width: int, roots: Ints) -> int:
    """Starts a forest of its roots, the nodes with a deficit; writes and counts them."""
    count = 0
    for y in range(1, height + 1):
        start = y * grid.stride + 1
        row = slice(start, start + width)
        excess, level_of, parent = grid.excess[row], grid.level[row], grid.parent[row]
        for x in range(width):
            level_of[x] = np.uint16(1) if excess[x] < 0 else FREE
            parent[x] = ROOT if excess[x] < 0 else NO_PARENT
        for x in range(width):
            roots[at(count)] = start + x
            count += excess[x] < 0
    return count


@helper
def nodes_at(grid: Grid, depth: int, nodes: Ints) -> int:
    """Writes the nodes of a level to `nodes`; returns their number."""
    level_of, count = grid.level, 0
    for node in range(len(grid.excess)):
        if level_of[at(node)] == depth:
            nodes[at(count)] = node
            count += 1
    return count


@helper
def _adopt_free(
    grid: Grid, parents: Ints, level: Integer, masks: Ints, children: Ints, count: int
) -> int:
    """Makes free neighbours the children of a level's nodes, if they can send flow to them.

    Of `parents`, those at other levels are left out. The new children are appended to the first
    `count` nodes in `children`. Uses `masks` as scratch memory. Returns the new count.
    """
    _, is_open, _, level_of, parent, steps, stride = grid
    for i in range(len(parents)):
        node = np.int64(parents[at(i)])
        arcs = open_arcs_from(is_open, level_of, node, stride, FREE)
        masks[at(i)] = arcs if level_of[at(node)] == level else 0
    for i in range(len(parents)):
        arcs = np.int64(masks[at(i)])
        while arcs:
            k = lowest_bit(arcs)
            arcs &= arcs - 1
            child = np.int64(parents[at(i)]) + steps[at(k)]
            # A parent before may have adopted it.
            if level_of[at(child)] == FREE:
                level_of[at(child)] = level + 1
                parent[at(child)] = 7 - k
                children[at(count)] = child
                count += 1
    return count


@helper
def grow(
    grid: Grid, queues: Queues, depth: int, leaves: Ints, new_leaves: Ints, masks: Ints
) -> tuple[int, bool]:
    """Adds a level above `depth`, the highest, to the forest and its lists, which are changed.

    Returns the number of nodes in the new level, and whether any of them is active.

    Args:
      leaves: nodes that include all nodes of the highest level.
      new_leaves: nodes of the new level. Written.
      masks: scratch memory, as long as `leaves`.
    """
    excess, active, active_next = grid.excess, queues.active, queues.active_next
    added = _adopt_free(grid, leaves, depth, masks, new_leaves, 0)
    any_active = False
    for i in range(added):
        node = np.int64(new_leaves[at(i)])
        if excess[at(node)] > 0:
            put(active, active_next, node, depth + 1)
            any_active = True
    return added, any_active


# Takes arrays one by one, as a tuple of them would have to be made, and dropped, for each node.
@inlined
def make_orphan(
    parent: Bytes, orphan: Ints, orphan_next: Ints, is_listed: Bytes, node: Integer, level: Integer
) -> None:
    """Takes away the parent of a node; `level` is the node's level."""
    parent[at(node)] = ORPHAN
    if not is_listed[at(node)]:
        is_listed[at(node)] = 1
        put(orphan, orphan_next, node, level)


@inlined
def orphan_children(
    parent: Bytes,
    steps: NDArray[np.int64],
    orphan: Ints,
    orphan_next: Ints,
    is_listed: Bytes,
    node: Integer,
    children: Integer,
    level: Integer,
) -> None:
    """Makes the children of a node, a bit mask, orphans; `level` is the node's level."""
    while children:
        k = lowest_bit(children)
        children &= children - 1
        child = node + steps[at(k)]
        make_orphan(parent, orphan, orphan_next, is_listed, child, level + 1)


@helper
def prune(grid: Grid, queues: Queues, depth: int, lost: Ints, masks: Ints) -> tuple[int, int]:
    """Gives each orphan another parent with which it keeps its level; frees the other orphans.

    Writes the freed nodes to `lost`; returns their number and their lowest level. Uses `masks` as
    scratch memory.
    """
    _, is_open, _, level_of, parent, steps, stride = grid
    _, _, orphan, orphan_next, is_listed = queues
    count, lowest = 0, depth
    for level in range(1, depth + 1):
        below = np.uint16(level - 1)
        first = count
        node = np.int64(orphan[at(level)])
        orphan[at(level)] = -1
        while node >= 0:
            following = np.int64(orphan_next[at(node)])
            if parent[at(node)] != ORPHAN:
                is_listed[at(node)] = 0
            elif level_of[at(node)] != level:
                put(orphan, orphan_next, node, np.int64(level_of[at(node)]))
            else:
                is_listed[at(node)] = 0
                arcs = open_arcs_to(is_open, level_of, node, stride, below)
                if arcs:
                    parent[at(node)] = lowest_bit(arcs)
                else:
                    lost[at(count)] = node
                    count += 1
            node = following
        if count > first:
            lowest = min(lowest, level)
        for i in range(first, count):
            masks[at(i)] = neighbours_pointing_here(parent, np.int64(lost[at(i)]), stride)
        for i in range(first, count):
            node = np.int64(lost[at(i)])
            children = np.int64(masks[at(i)])
            orphan_children(parent, steps, orphan, orphan_next, is_listed, node, children, level)
            level_of[at(node)] = FREE
            parent[at(node)] = NO_PARENT
    return count, lowest


@helper
def regrow(
    grid: Grid,
    queues: Queues,
    depth: int,
    lowest: int,
    lost: Ints,
    settled: Ints,
    masks: Ints,
    leaves: Ints,
    count: int,
) -> int:
    """Grows the forest, up to its highest level, back over the nodes that it has lost.

    New nodes at the highest level are appended to the first `count` leaves, if there is room.
    Returns the new count. Uses `settled` and `masks` as scratch memory.
    """
    is_open, level_of, parent, stride = grid.is_open, grid.level, grid.parent, grid.stride
    # Reuses the lists of orphans, which are empty.
    bordering, bordering_next = queues.orphan, queues.orphan_next
    for i in range(len(lost)):
        node = np.int64(lost[at(i)])
        level = (lowest_open_arcs(is_open, level_of, node, stride) >> 8) + 1
        if level <= depth:
            put(bordering, bordering_next, node, level)
    start = stop = 0
    for level in range(lowest + 1, depth + 1):
        below = np.uint16(level - 1)
        adopted = stop
        node = np.int64(bordering[at(level)])
        bordering[at(level)] = -1
        while node >= 0:
            if level_of[at(node)] == FREE:
                arcs = open_arcs_to(is_open, level_of, node, stride, below)
                parent[at(node)] = lowest_bit(arcs)
                settled[at(stop)] = node
                stop += 1
            node = np.int64(bordering_next[at(node)])
        for i in range(adopted, stop):
            level_of[at(settled[at(i)])] = level
        end_of_level = stop
        if level < depth:
            stop = _adopt_free(grid, settled[start:stop], level, masks, settled, stop)
        else:
            for i in range(start, min(stop, start + len(leaves) - count)):
                leaves[at(count)] = settled[at(i)]
                count += 1
        start = end_of_level
    return count


@helper
def list_active_anew(grid: Grid, queues: Queues, depth: int, nodes: Ints) -> bool:
    """Lists active nodes by the levels that a repair has given them.

    Uses `nodes` as scratch memory. Returns whether the forest still has an active node.
    """
    level_of, active, active_next = grid.level, queues.active, queues.active_next
    count = 0
    for level in range(1, depth + 1):
        node = np.int64(active[at(level)])
        active[at(level)] = -1
        while node >= 0:
            nodes[at(count)] = node
            count += 1
            node = np.int64(active_next[at(node)])
    any_active = False
    for i in range(count):
        node = np.int64(nodes[at(i)])
        if level_of[at(node)] != FREE:
            put(active, active_next, node, np.int64(level_of[at(node)]))
            any_active = True
    return any_active
