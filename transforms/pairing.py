"""Pairing: which background each foreground gets in the mixed variants.

Draws are stable: adding or removing one image re-pairs about one foreground in each
variant. Each is a lookup on a hash ring by multi-probe consistent hashing (Appleton and
O'Reilly 2015, "Multi-probe consistent hashing"): a foreground probes the ring at
`PROBES` places and takes the background that lies closest behind one of them. The
probes even out the gaps between backgrounds, so the draw is near-uniform, and each
costs a binary search.

Images of one group share a scene, so none of them is another's background. A place on the
ring that holds a foreground's own group is passed over in one step, to the next place of
another group: the draw is that on a ring without the group.

Source of the variants: paper section 2, which draws from the same class, a random one or the
next. Whether a random class may be the own one, and a background the image's own, it does not
say: both are arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import UInt64Array, keyed_hashes, substream

PROBES = 32
NO_PARTNER = -1

Positions = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """The images of one split whose backgrounds can be drawn.

    Attributes:
      labels: (n,) int64 superclass labels.
      ring: (n,) uint64, place of each background on the hash ring.
      members: for each present label, positions in ring order, ties by key.
      groups: (n,) int64, the same for images of one group; (n,) different numbers without
        groups.
    """

    labels: NDArray[np.int64]
    ring: UInt64Array
    members: dict[int, Positions]
    groups: Positions

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        labels: NDArray[np.int64],
        *,
        seed: int,
        groups: Positions | None = None,
    ) -> Pool:
        """Builds the pool of (n,) keys; without `groups`, each image is one of its own. Raises
        ValueError if a key occurs twice."""
        if len(set(keys)) != len(keys):
            raise ValueError("a pool needs unique keys")
        order = np.argsort(np.asarray(keys, object), kind="stable")
        return cls.on_ring(labels, ring_places(keys, seed), groups=groups, order=order)

    @classmethod
    def on_ring(
        cls,
        labels: NDArray[np.int64],
        ring: UInt64Array,
        *,
        groups: Positions | None = None,
        order: Positions | None = None,
    ) -> Pool:
        """Builds the pool of images whose places on the ring are known.

        Args:
          labels: (n,) int64.
          ring: (n,) uint64 of `ring_places`.
          groups: as `of`.
          order: (n,) positions in order of the keys, None if the images are in it.
        """
        if groups is None:
            groups = np.arange(len(labels))
        # Stable sorts: ties on the ring stay in order of the key.
        by_ring = np.argsort(ring if order is None else ring[order], kind="stable")
        if order is not None:
            by_ring = order[by_ring]
        members = {
            int(label): by_ring[labels[by_ring] == label].astype(np.int64)
            for label in np.unique(labels)
        }
        return cls(labels=labels, ring=ring, members=members, groups=groups)


def ring_places(keys: Iterable[str], seed: int) -> UInt64Array:
    """Places of backgrounds on the hash ring, (n,) uint64 of (n,) keys."""
    return keyed_hashes(seed, "background", keys)


def pair(
    pool: Pool,
    foregrounds: Positions,
    keys: Sequence[str],
    variant: str,
    *,
    seed: int,
    replicate: int = 0,
    own_background: bool = False,
    mixed_rand: str = "any",
) -> Positions:
    """Draws a background for each foreground.

    Args:
      pool: the selected images of the split.
      foregrounds: (m,) positions in the pool.
      keys: (m,) of the foregrounds.
      variant: `mixed_same` draws from the foreground's class, `mixed_next` from the next
        present class, cyclically; `mixed_rand` draws a present class uniformly, then an
        image of it.
      seed: of the keyed hash; variants draw independently.
      replicate: which of several independent draws.
      own_background: whether an image may get its own background.
      mixed_rand: `any` class, or `other` than the foreground's.

    Returns:
      (m,) positions in the pool, `NO_PARTNER` where there is nothing to draw. The draw of
      one foreground does not depend on the others asked for.

    Raises:
      ValueError: an unknown variant or policy.
    """
    if mixed_rand not in ("any", "other"):
        raise ValueError(f"mixed_rand must be any or other: got {mixed_rand!r}")
    stream = f"{variant}_r{replicate}" if replicate else variant
    hashes = keyed_hashes(seed, f"{stream}/image", keys)
    classes = _background_classes(
        pool, foregrounds, keys, variant, stream, seed, own_background, mixed_rand
    )
    backgrounds = np.full(len(foregrounds), NO_PARTNER, np.int64)
    own = np.full(len(foregrounds), NO_PARTNER) if own_background else pool.groups[foregrounds]
    for label, members in pool.members.items():
        rows = np.flatnonzero(classes == label)
        if len(rows):
            backgrounds[rows] = _probe(pool.ring, members, hashes[rows], own[rows], pool.groups)
    return backgrounds


def draw_scenes(
    scenes: Sequence[str],
    foregrounds: Sequence[str],
    variant: str,
    *,
    seed: int,
    replicate: int = 0,
) -> Positions:
    """Draws a scene, which is no image of the dataset, for each foreground.

    Args:
      scenes: (n,) keys, unique.
      foregrounds: (m,) keys.
      variant, seed, replicate: as `pair`.

    Returns:
      (m,) positions among the scenes, `NO_PARTNER` if there are none; as stable as `pair`.

    Raises:
      ValueError: a scene's key occurs twice.
    """
    pool = Pool.of(scenes, np.zeros(len(scenes), np.int64), seed=seed)
    stream = f"{variant}_r{replicate}" if replicate else variant
    hashes = keyed_hashes(seed, f"{stream}/image", foregrounds)
    members = pool.members.get(0, np.empty(0, np.int64))
    banned = np.full(len(hashes), NO_PARTNER)
    return _probe(pool.ring, members, hashes, banned, pool.groups)


def group_numbers(keys: Sequence[str], groups: Sequence[str | None]) -> Positions:
    """Numbers that tell groups apart, (n,) int64; an image without one is a group of its own.

    >>> group_numbers(["a", "b", "c"], ["x", None, "x"]).tolist()
    [1, 0, 1]
    """
    names = [(bool(group), group or key) for key, group in zip(keys, groups, strict=True)]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return np.asarray([numbers[name] for name in names], np.int64)


def _background_classes(
    pool: Pool,
    foregrounds: Positions,
    keys: Sequence[str],
    variant: str,
    stream: str,
    seed: int,
    own_background: bool,
    mixed_rand: str,
) -> Positions:
    """Class to draw from for each foreground, `NO_PARTNER` for none."""
    labels = pool.labels[foregrounds]
    present = sorted(pool.members)
    if variant == "mixed_same":
        return labels
    if variant == "mixed_next":
        following = dict(zip(present, present[1:] + present[:1], strict=True))
        return np.asarray(
            [NO_PARTNER if following[y] == y else following[y] for y in labels], np.int64
        )
    if variant != "mixed_rand":
        raise ValueError(f"{variant!r} is not a mixed variant")
    if not present:
        return np.full(len(foregrounds), NO_PARTNER, np.int64)
    # The highest hash wins (rendezvous): a class that comes or goes moves only its share.
    scores = np.zeros((len(present), len(keys)), np.uint64)
    allowed = np.ones(scores.shape, np.bool_)
    for row, label in enumerate(present):
        scores[row] = keyed_hashes(seed, f"{stream}/class/{label}", keys)
        if mixed_rand == "other":
            allowed[row] = labels != label
        groups = pool.groups[pool.members[label]]
        if not own_background and (groups == groups[0]).all():
            # The class holds nothing but the image itself, or its group.
            allowed[row] &= pool.groups[foregrounds] != groups[0]
    scores[~allowed] = 0
    chosen = np.asarray(present, np.int64)[scores.argmax(axis=0)]
    return np.where(allowed.any(axis=0), chosen, NO_PARTNER)


def _probe(
    ring: UInt64Array,
    members: Positions,
    hashes: UInt64Array,
    banned: Positions,
    groups: Positions,
) -> Positions:
    """The member closest behind one of each hash's probes, of another group than the banned
    one.

    `ring[members]` is sorted; distances wrap around in uint64, as places do.
    """
    places, member_groups = ring[members], groups[members]
    following = _next_of_others(member_groups)
    count = len(members)
    best = np.full(len(hashes), NO_PARTNER, np.int64)
    best_distance = np.zeros(len(hashes), np.uint64)
    if count == 0:
        return best
    for index in range(PROBES):
        probes = substream(hashes, index)
        slots = np.searchsorted(places, probes) % count
        slots = np.where(member_groups[slots] == banned, following[slots], slots)
        found = members[slots]
        distance = places[slots] - probes
        better = (member_groups[slots] != banned) & (
            (best == NO_PARTNER) | (distance < best_distance)
        )
        best = np.where(better, found, best)
        best_distance = np.where(better, distance, best_distance)
    return best


def _next_of_others(groups: Positions) -> Positions:
    """For each slot of a ring, the next one of another group; itself if there is none."""
    count = len(groups)
    slots = np.arange(count)
    # Twice around: the run of equal groups at the end may go on at the start.
    twice = np.concatenate([groups, groups])
    changes = np.flatnonzero(twice[1:] != twice[:-1]) + 1
    if not len(changes):
        return slots
    found: Positions = changes[np.searchsorted(changes, slots, side="right")] % count
    return found
