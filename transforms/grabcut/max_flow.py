"""The minimum cut of an 8-connected grid, found from the sink's side.

Method: the excesses incremental breadth-first search of Goldberg, Hed, Kaplan, Kohli,
Tarjan and Werneck, "Faster and More Dynamic Maximum Flow by Incremental Breadth-First
Search" (ESA 2015), with one tree instead of two, and lazier than theirs.

A pseudoflow is kept: arcs are never over capacity, while a node may have an excess
(more comes from the source than leaves) or a deficit (its arc to the sink is not full).
Any pseudoflow will do to begin with, so the flow of the last cut is the start of the
next one, whose terminal weights differ: only the differences are added to the excesses
(Kohli and Torr, "Efficiently Solving Dynamic Markov Random Fields using Graph Cuts",
ICCV 2005).

Nodes with a deficit are the roots, at level 1, of a forest in which every other node
has an open arc, to its parent, one level below. It grows breadth first. When it reaches
nodes with excess, *sweeps* from the highest level to the lowest push their excess from
parent to parent, so that many paths share the work; a node that has lost its last arc
to the level below and still holds excess is raised at once, as in push-relabel.
A node that has lost its parent and holds no excess becomes an orphan, and nothing else
is done: levels are lower bounds of the distances meanwhile. Only before the forest
grows on (or after `_SWEEPS` sweeps) a *repair* makes them exact: orphans of ever higher
levels look for another parent or leave the forest with all that hangs on them, and the
forest then grows back over what has left. Between repairs the forest grows by a
quarter of its depth, so their number is logarithmic.

A node that cannot reach the sink has no level at the end and is on the source's side.
So is a node that neither terminal reaches: there the minimum cut is not unique.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from transforms.grabcut.compilation import Integer, entry, helper
from transforms.grabcut.lanes import (
    SLACK,
    lowest_bit,
    lowest_open_level,
    neighbours_equal,
    neighbours_pointing_here,
    open_arcs_to,
)

FREE = np.uint16(65535)
"""Level of the nodes outside the forest. The padding of the grid has level 0."""
DEEPEST = 65533
"""Highest level that can be told from `FREE`, with one to spare."""

# In the plane of parents, where 0 to 7 are directions.
_NO_PARENT = np.uint8(8)
_ROOT = np.uint8(9)
_ORPHAN = np.uint8(10)

_SWEEPS = 64
_GROWTH = 4


_Bytes = NDArray[np.uint8]
_Ints = NDArray[np.int32]


class _Grid(NamedTuple):
    """The graph and its forest; flat arrays over the nodes of the padded grid.

    Attributes:
      residual: (8 * nodes,) int32, of the arcs of each node in the order of `lanes`.
      excess: (nodes,) int32, negative for a deficit.
      level: (nodes + SLACK,) uint16.
      parent: (nodes + SLACK,) uint8, a direction or one of the constants above.
      steps: (8,) int64, from a node to its neighbours.
      stride: nodes in a row.
    """

    residual: _Ints
    excess: NDArray[np.int32]
    level: NDArray[np.uint16]
    parent: NDArray[np.uint8]
    steps: NDArray[np.int64]
    stride: int


class _Queues(NamedTuple):
    """Lists of nodes by level: the first node of each level, and the next of each node.

    Attributes:
      active, active_next: nodes of the forest with excess.
      orphan, orphan_next: nodes that have lost their parents. One that has found another
        meanwhile, or was raised, stays in its list.
      is_listed: (nodes,) uint8, whether a node is in a list of orphans.
    """

    active: NDArray[np.int32]
    active_next: NDArray[np.int32]
    orphan: NDArray[np.int32]
    orphan_next: NDArray[np.int32]
    is_listed: NDArray[np.uint8]


@helper
def _put(first: _Ints, following: _Ints, node: Integer, level: Integer) -> None:
    """Puts a node into the list of a level."""
    following[node] = first[level]
    first[level] = node


@helper
def _orphan_children(
    parent: _Bytes,
    steps: NDArray[np.int64],
    stride: int,
    orphan: _Ints,
    orphan_next: _Ints,
    is_listed: _Bytes,
    node: Integer,
    level: Integer,
) -> None:
    """Orphans the children of a node of this level."""
    children = neighbours_pointing_here(parent, node, stride)
    while children:
        k = lowest_bit(children)
        children &= children - np.uint64(1)
        child = node + steps[k]
        parent[child] = _ORPHAN
        if not is_listed[child]:
            is_listed[child] = 1
            _put(orphan, orphan_next, child, level + 1)


@helper
def _adopt_free(
    residual: _Ints,
    level_of: NDArray[np.uint16],
    parent: _Bytes,
    steps: NDArray[np.int64],
    stride: int,
    node: Integer,
    level: Integer,
    found: _Ints,
    count: int,
) -> int:
    """Makes the free neighbours that can send flow to a node of this level its children.

    Appends them to the `count` nodes that have been found, and returns the new count.
    """
    neighbours = neighbours_equal(level_of, node, stride, FREE)
    while neighbours:
        k = lowest_bit(neighbours)
        neighbours &= neighbours - np.uint64(1)
        child = node + steps[k]
        if residual[child * 8 + 7 - k]:
            level_of[child] = level + 1
            parent[child] = 7 - k
            found[count] = child
            count += 1
    return count


@helper
def _grow(
    grid: _Grid, queues: _Queues, depth: int, leaves: _Ints, count: int, found: _Ints
) -> tuple[int, bool]:
    """Adds a level to the forest.

    Args:
      grid, queues: changed.
      depth: the forest's highest level.
      leaves: the nodes of that level are among the first `count` of these.
      found: the nodes of the new level are written here.

    Returns:
      How many nodes there are in the new level, and whether any of them is active.
    """
    residual, excess, level_of, parent, steps, stride = grid
    active, active_next, _, _, _ = queues
    added = 0
    for i in range(count):
        leaf = np.int64(leaves[i])
        if level_of[leaf] == depth:
            added = _adopt_free(
                residual, level_of, parent, steps, stride, leaf, depth, found, added
            )
    any_active = False
    for i in range(added):
        node = np.int64(found[i])
        if excess[node] > 0:
            _put(active, active_next, node, depth + 1)
            any_active = True
    return added, any_active


@helper
def _sweep(grid: _Grid, queues: _Queues, depth: int, leaves: _Ints, count: int) -> tuple[int, bool]:
    """Pushes all excess in the forest down, from the highest level to the lowest.

    Appends the nodes raised to the highest level to the `count` leaves, as far as there is
    room. Returns the new count, and whether any node is active, because it was raised.
    """
    residual, excess, level_of, parent, steps, stride = grid
    active, active_next, orphan, orphan_next, is_listed = queues
    any_active = False
    for level in range(depth, 0, -1):
        below = np.uint16(level - 1)
        upcoming = np.int64(active[level])
        active[level] = -1
        while upcoming >= 0:
            node = upcoming
            upcoming = np.int64(active_next[node])
            left = excess[node]
            k = np.int64(parent[node])
            while True:
                # The parent may have been raised, and the arc filled, since it was chosen.
                if k > 7 or residual[node * 8 + k] == 0 or level_of[node + steps[k]] != below:
                    arcs = open_arcs_to(residual, level_of, node, stride, below)
                    if arcs == 0:
                        break
                    k = lowest_bit(arcs)
                    parent[node] = k
                target = node + steps[k]
                capacity = residual[node * 8 + k]
                flow = min(left, capacity)
                residual[node * 8 + k] = capacity - flow
                residual[target * 8 + 7 - k] += flow
                before = excess[target]
                excess[target] = before + flow
                if before <= 0:
                    if before + flow > 0:
                        _put(active, active_next, target, level - 1)
                    elif before < 0 and before + flow == 0:
                        # A root whose deficit is just filled, and that is in no list yet.
                        parent[target] = _ORPHAN
                        is_listed[target] = 1
                        _put(orphan, orphan_next, target, level - 1)
                left -= flow
                if left == 0:
                    if flow == capacity:
                        arcs = open_arcs_to(residual, level_of, node, stride, below)
                        if arcs:
                            parent[node] = lowest_bit(arcs)
                        else:
                            parent[node] = _ORPHAN
                            if not is_listed[node]:
                                is_listed[node] = 1
                                _put(orphan, orphan_next, node, level)
                    break
            excess[node] = left
            if left == 0:
                continue
            _orphan_children(parent, steps, stride, orphan, orphan_next, is_listed, node, level)
            raised = lowest_open_level(residual, level_of, node, stride) + 1
            if raised > depth:
                level_of[node] = FREE
                parent[node] = _NO_PARENT
                continue
            level_of[node] = raised
            arcs = open_arcs_to(residual, level_of, node, stride, np.uint16(raised - 1))
            parent[node] = lowest_bit(arcs)
            _put(active, active_next, node, raised)
            any_active = True
            if raised == depth and count < len(leaves):
                leaves[count] = node
                count += 1
    return count, any_active


@helper
def _prune(grid: _Grid, queues: _Queues, depth: int, lost: _Ints) -> tuple[int, int]:
    """Finds another parent at the same level for the orphans; frees those that have none.

    Returns how many are lost, which are written to `lost`, and the lowest level of theirs.
    """
    residual, _, level_of, parent, steps, stride = grid
    _, _, orphan, orphan_next, is_listed = queues
    count, lowest = 0, depth
    for level in range(1, depth + 1):
        below = np.uint16(level - 1)
        while orphan[level] >= 0:
            node = np.int64(orphan[level])
            orphan[level] = orphan_next[node]
            if parent[node] != _ORPHAN:
                is_listed[node] = 0
                continue
            if level_of[node] != level:
                _put(orphan, orphan_next, node, np.int64(level_of[node]))
                continue
            is_listed[node] = 0
            arcs = open_arcs_to(residual, level_of, node, stride, below)
            if arcs:
                parent[node] = lowest_bit(arcs)
                continue
            _orphan_children(parent, steps, stride, orphan, orphan_next, is_listed, node, level)
            level_of[node] = FREE
            parent[node] = _NO_PARENT
            lost[count] = node
            count += 1
            lowest = min(lowest, level)
    return count, lowest


@helper
def _regrow(
    grid: _Grid,
    queues: _Queues,
    depth: int,
    lowest: int,
    lost: _Ints,
    lost_count: int,
    settled: _Ints,
    leaves: _Ints,
    count: int,
) -> int:
    """Grows the forest, up to its highest level, back over the nodes it has lost.

    Appends to the leaves as `_sweep` does.
    """
    residual, _, level_of, parent, steps, stride = grid
    _, _, bordering, bordering_next, _ = queues  # The lists of orphans, which are empty.
    for i in range(lost_count):
        node = np.int64(lost[i])
        level = lowest_open_level(residual, level_of, node, stride) + 1
        if level <= depth:
            _put(bordering, bordering_next, node, level)
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
                stop = _adopt_free(
                    residual, level_of, parent, steps, stride, node, level, settled, stop
                )
            elif count < len(leaves):
                leaves[count] = node
                count += 1
        start = end_of_level
    return count


@helper
def _list_active_anew(grid: _Grid, queues: _Queues, depth: int, nodes: _Ints) -> bool:
    """Moves the active nodes to the lists of the levels that a repair has given them.

    Needs room for `nodes`. Returns whether there is any active node left in the forest.
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
            _put(active, active_next, node, np.int64(level_of[node]))
            any_active = True
    return any_active


@helper
def _nodes_at(grid: _Grid, depth: int, found: _Ints) -> int:
    """Writes the nodes of a level to `found`; returns how many there are."""
    level_of, count = grid.level, 0
    for node in range(len(grid.excess)):
        if level_of[node] == depth:
            found[count] = node
            count += 1
    return count


@helper
def _plant(grid: _Grid, height: int, width: int, roots: _Ints) -> int:
    """Begins a forest of roots alone; returns how many are written to `roots`."""
    _, excess, level_of, parent, _, stride = grid
    count = 0
    for y in range(1, height + 1):
        for node in range(y * stride + 1, y * stride + 1 + width):
            if excess[node] < 0:
                level_of[node] = 1
                parent[node] = _ROOT
                roots[count] = node
                count += 1
            else:
                level_of[node] = FREE
                parent[node] = _NO_PARENT
    return count


def workspace(nodes: int, deepest: int) -> tuple[_Bytes, _Bytes, _Ints, _Ints]:
    """What `minimum_cut` works in, to be used for one cut after the other: fresh memory costs
    more than the later cuts themselves.

    Args:
      nodes: of the padded grid.
      deepest: as there.

    Returns:
      Parents (nodes + SLACK,) and marks of listed nodes (nodes,), uint8; lists by level
      (2, deepest + 2) and lists of nodes (8, nodes), int32.
    """
    return (
        np.full(nodes + SLACK, _NO_PARENT, np.uint8),
        np.zeros(nodes, np.uint8),
        np.full((2, deepest + 2), -1, np.int32),
        np.empty((8, nodes), np.int32),
    )


@entry(
    "int64(int32[::1], int32[::1], uint16[::1], int64, int64, int64,"
    " uint8[::1], uint8[::1], int32[:,::1], int32[:,::1])"
)
def minimum_cut(
    residual: _Ints,
    excess: _Ints,
    level: NDArray[np.uint16],
    height: int,
    width: int,
    deepest: int,
    parent: _Bytes,
    is_listed: _Bytes,
    lists: _Ints,
    scratch: _Ints,
) -> int:
    """Turns a pseudoflow into one that no path can add to, and finds the sink's side.

    Args:
      residual: (8 * nodes,) int32 with nodes = (height + 2) * (width + 2), capacities of
        the arcs of each node of the padded grid; 0 to and from the padding. Changed.
      excess: (nodes,) int32, weight from the source minus weight to the sink, less what
        the flow of earlier cuts has carried away; 0 in the padding. Changed.
      level: (nodes + SLACK,) uint16, 0 in the padding. Written elsewhere: `FREE` on the
        source's side, less on the sink's.
      height, width: of the grid without its padding, >= 1.
      deepest: at most `DEEPEST`, where to give up.
      parent, is_listed, lists, scratch: from `workspace`.

    Returns:
      The depth of the forest; more than `deepest` if it has given up. Then the workspace
      cannot be used again.
    """
    stride = width + 2
    steps = np.array([-stride - 1, -stride, 1 - stride, -1, 1, stride - 1, stride, stride + 1])
    grid = _Grid(residual, excess, level, parent, steps, stride)
    queues = _Queues(lists[0], scratch[0], lists[1], scratch[1], is_listed)
    lost, settled = scratch[2], scratch[3]
    # Room for twice the nodes: where more are raised to the highest level, some of them
    # repeatedly, they are looked for instead.
    leaves, found = scratch[4:6].reshape(-1), scratch[6:8].reshape(-1)

    depth = 1
    count = _plant(grid, height, width, leaves)
    while True:
        any_active, added = False, 0
        for _ in range(1 + depth // _GROWTH):
            if depth > deepest:
                return depth
            added, new_active = _grow(grid, queues, depth, leaves, count, found)
            if added == 0:
                break
            depth += 1
            leaves, found, count = found, leaves, added
            any_active |= new_active
        if not any_active and added == 0:
            return depth
        while any_active:
            for _ in range(_SWEEPS):
                count, any_active = _sweep(grid, queues, depth, leaves, count)
                if not any_active:
                    break
            lost_count, lowest = _prune(grid, queues, depth, lost)
            count = _regrow(grid, queues, depth, lowest, lost, lost_count, settled, leaves, count)
            if any_active:
                any_active = _list_active_anew(grid, queues, depth, lost)
        if count == len(leaves):
            count = _nodes_at(grid, depth, leaves)
