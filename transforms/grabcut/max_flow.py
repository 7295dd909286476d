"""Finds the minimum cut of an 8-connected grid, by a search that starts at the sink.

The method is "excesses incremental breadth-first search" of Goldberg, Hed, Kaplan, Kohli, Tarjan
and Werneck, "Faster and More Dynamic Maximum Flow by Incremental Breadth-First Search" (ESA 2015),
but searches from the sink only, not from both terminals, and repairs its forest less often.

The search maintains a pseudoflow: arcs are never over capacity, but a node may have an excess (more
flow comes from the source than leaves the node) or a deficit (its arc to the sink is not full). Any
pseudoflow is a valid start. So the flow of one cut is the start for the next cut, whose weights of
arcs to the terminals differ: only the differences are added to the excesses (Kohli and Torr,
"Efficiently Solving Dynamic Markov Random Fields using Graph Cuts", ICCV 2005).

Nodes with a deficit are the roots, at level 1, of a forest in which every other node has an open
arc to its parent one level below. An arc is open if it has capacity left. The forest grows breadth
first. When it reaches nodes with excess, *sweeps* from the highest level to the lowest push the
excess from parent to parent, so that many paths share the work. A node that has lost its last open
arc to the level below, but still holds excess, is raised at once, as in push-relabel. A node that
has lost its parent and holds no excess only becomes an orphan. So until the next repair, levels are
only lower bounds of distances. Before the forest grows again (or after `_SWEEPS` sweeps), a
*repair* makes the levels exact: level by level, orphans look for another parent, or else leave the
forest and make their children orphans; then the forest grows back over the nodes that have left.
Between repairs the forest grows by a quarter of its depth, so that there are few.

At the end, a node that cannot reach the sink has no level, and is on the source's side. If the
minimum cut is not unique, some nodes are reached from neither terminal; they are on the source's
side, too.
"""

import numpy as np
from numpy.typing import NDArray

from transforms.grabcut.compilation import at, entry, helper
from transforms.grabcut.forest import (
    FREE,
    NO_PARENT,
    Bytes,
    Grid,
    Ints,
    Queues,
    grow,
    list_active_anew,
    make_orphan,
    nodes_at,
    orphan_children,
    plant,
    prune,
    put,
    regrow,
)
from transforms.grabcut.lanes import (
    SLACK,
    lowest_bit,
    lowest_open_arcs,
    neighbours_pointing_here,
    open_arcs_to,
)

_SWEEPS = 32
"""Largest number of sweeps before a repair."""
_GROWTH = 4
"""Before it is swept and repaired, the forest grows by one level and 1 / _GROWTH of its depth."""


@helper
def _sweep(
    grid: Grid,
    queues: Queues,
    depth: int,
    leaves: Ints,
    count: int,
    stuck: Ints,
    lowest: Ints,
    children: Ints,
) -> tuple[int, bool]:
    """Pushes all excess in the forest down, from the highest level to the lowest.

    Nodes that are raised to the highest level are appended to the first `count` leaves, if there is
    room. Returns the new count, and whether raised nodes still hold excess. Uses `stuck`, `lowest`
    and `children` as scratch memory.
    """
    residual, is_open, excess, level_of, parent, steps, stride = grid
    active, active_next, orphan, orphan_next, is_listed = queues
    any_active = False
    for level in range(depth, 0, -1):
        below = np.uint16(level - 1)
        upcoming = np.int64(active[at(level)])
        if upcoming < 0:
            continue
        active[at(level)] = -1
        first_below = active[at(below)]
        num_stuck = 0
        # Pushes to the level below, which changes no level.
        while upcoming >= 0:
            node = upcoming
            upcoming = np.int64(active_next[at(node)])
            remaining = excess[at(node)]
            arcs = open_arcs_to(is_open, level_of, node, stride, below)
            k = np.int64(parent[at(node)])
            # The parent may have been raised, or the arc filled, since the parent was chosen.
            if not (arcs >> k) & 1:
                k = lowest_bit(arcs)
            while arcs:
                target = node + steps[at(k)]
                capacity = residual[at(node * 8 + k)]
                flow = min(remaining, capacity)
                remaining -= flow
                residual[at(node * 8 + k)] = capacity - flow
                residual[at(target * 8 + 7 - k)] += flow
                is_open[at(target)] |= np.uint8(128 >> k)
                before = excess[at(target)]
                after = before + flow
                excess[at(target)] = after
                # Puts the target in front of its list, if it is new there, without a branch.
                is_new = (before <= 0) & (after > 0)
                following = active_next[at(target)]
                active_next[at(target)] = first_below if is_new else following
                first_below = np.int32(target) if is_new else first_below
                if before < 0 and after == 0:
                    # The flow exactly fills the deficit of a root.
                    make_orphan(parent, orphan, orphan_next, is_listed, target, level - 1)
                if flow < capacity:
                    break
                arcs ^= 1 << k
                is_open[at(node)] ^= np.uint8(1 << k)
                if remaining == 0:
                    break
                k = lowest_bit(arcs)
            excess[at(node)] = remaining
            if remaining:
                stuck[at(num_stuck)] = node
                num_stuck += 1
            elif (arcs >> k) & 1:
                parent[at(node)] = k
            elif arcs:
                parent[at(node)] = lowest_bit(arcs)
            else:
                make_orphan(parent, orphan, orphan_next, is_listed, node, level)
        active[at(below)] = first_below

        # Raises the nodes without an open arc to the level below.
        for i in range(num_stuck):
            node = np.int64(stuck[at(i)])
            lowest[at(i)] = lowest_open_arcs(is_open, level_of, node, stride)
            children[at(i)] = neighbours_pointing_here(parent, node, stride)
        for i in range(num_stuck):
            node = np.int64(stuck[at(i)])
            lost = np.int64(children[at(i)])
            orphan_children(parent, steps, orphan, orphan_next, is_listed, node, lost, level)
            found = np.int64(lowest[at(i)])
            arcs = found & 255
            # Neighbours may have been raised since.
            while arcs and level_of[at(node + steps[at(lowest_bit(arcs))])] != found >> 8:
                arcs &= arcs - 1
            if not arcs:
                found = lowest_open_arcs(is_open, level_of, node, stride)
                arcs = found & 255
            raised = (found >> 8) + 1
            if raised > depth:
                level_of[at(node)] = FREE
                parent[at(node)] = NO_PARENT
                continue
            k = lowest_bit(arcs)
            level_of[at(node)] = raised
            parent[at(node)] = k
            if raised == level + 1 and excess[at(node + steps[at(k)])] > 0:
                # The new parent is stuck, too, and is about to be raised.
                make_orphan(parent, orphan, orphan_next, is_listed, node, raised)
            put(active, active_next, node, raised)
            any_active = True
            if raised == depth and count < len(leaves):
                leaves[at(count)] = node
                count += 1
    return count, any_active


def workspace(nodes: int, deepest: int) -> tuple[Bytes, Bytes, Ints, Ints]:
    """Allocates the memory of `minimum_cut`, to be reused for several cuts.

    Allocating the memory anew would take longer than the later cuts themselves.

    Returns:
      The arguments `parent`, `is_listed`, `lists` and `scratch` of `minimum_cut`: uint8 of shapes
      (nodes + SLACK,) and (nodes,), int32 of shapes (2, deepest + 2) and (8, nodes).
    """
    return (
        np.full(nodes + SLACK, NO_PARENT, np.uint8),
        np.zeros(nodes, np.uint8),
        np.full((2, deepest + 2), -1, np.int32),
        np.empty((8, nodes), np.int32),
    )


@entry(
    "int64(int32[::1], uint8[::1], int32[::1], uint16[::1], int64, int64, int64,"
    " uint8[::1], uint8[::1], int32[:,::1], int32[:,::1])"
)
def minimum_cut(
    residual: Ints,
    is_open: Bytes,
    excess: Ints,
    level: NDArray[np.uint16],
    height: int,
    width: int,
    deepest: int,
    parent: Bytes,
    is_listed: Bytes,
    lists: Ints,
    scratch: Ints,
) -> int:
    """Augments a pseudoflow until no more flow can reach the sink, and finds the sink's side.

    Args:
      residual: (8 * nodes,) int32 with nodes = (height + 2) * (width + 2), residual capacities of
        the arcs of each node of the padded grid; 0 to and from the padding. Changed.
      is_open: (nodes + SLACK,) uint8, a bit for each arc: whether its capacity is not 0. Changed.
      excess: (nodes,) int32, weight from the source minus weight to the sink, less the flow
        of earlier cuts; 0 in the padding. Changed.
      level: (nodes + SLACK,) uint16, 0 in the padding, which stays as it is. Written for all other
        nodes: `FREE` on the source's side, a lower value on the sink's side.
      height: rows of the grid without its padding, >= 1.
      width: columns of the grid without its padding, >= 1.
      deepest: depth at which to give up, at most `DEEPEST`.
      parent: from `workspace`, like the next three.

    Returns:
      The depth of the forest; more than `deepest` if the search gave up, in which case the
      workspace must not be reused.
    """
    stride = width + 2
    steps = np.array([-stride - 1, -stride, 1 - stride, -1, 1, stride - 1, stride, stride + 1])
    grid = Grid(residual, is_open, excess, level, parent, steps, stride)
    queues = Queues(lists[0], scratch[0], lists[1], scratch[1], is_listed)
    lost, settled, masks = scratch[2], scratch[3], scratch[2:4].reshape(-1)
    # There is room for twice the number of nodes, because a node can be raised to the highest level
    # repeatedly. If even this room is full, the whole grid is searched for leaves instead.
    leaves, new_leaves = scratch[4:6].reshape(-1), scratch[6:8].reshape(-1)

    depth = 1
    count = plant(grid, height, width, leaves)
    while True:
        any_active, added = False, 0
        for _ in range(1 + depth // _GROWTH):
            if depth > deepest:
                return depth
            added, new_active = grow(grid, queues, depth, leaves[:count], new_leaves, masks)
            if added == 0:
                break
            depth += 1
            leaves, new_leaves, count = new_leaves, leaves, added
            any_active |= new_active
        if not any_active and added == 0:
            return depth
        while any_active:
            for _ in range(_SWEEPS):
                count, any_active = _sweep(
                    grid, queues, depth, leaves, count, lost, settled, new_leaves
                )
                if not any_active:
                    break
            num_lost, lowest = prune(grid, queues, depth, lost, settled)
            known = lost[:num_lost]
            count = regrow(grid, queues, depth, lowest, known, settled, new_leaves, leaves, count)
            if any_active:
                any_active = list_active_anew(grid, queues, depth, lost)
        if count == len(leaves):
            count = nodes_at(grid, depth, leaves)
