"""Pairing: which background each foreground gets in the mixed variants.

Draws are stable: adding or removing one image re-pairs about one foreground in each
variant. Each is a lookup on a hash ring by multi-probe consistent hashing (Appleton and
O'Reilly 2015, "Multi-probe consistent hashing"): a foreground probes the ring at
`PROBES` places and takes the background that lies closest behind one of them. The
probes even out the gaps between backgrounds, so the draw is near-uniform, and each
costs a binary search.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

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
      keys: (n,) keys, unique.
      labels: (n,) int64 superclass labels.
      ring: (n,) uint64, place of each background on the hash ring.
      members: for each present label, positions in ring order, ties by key.
    """

    keys: Sequence[str]
    labels: NDArray[np.int64]
    ring: UInt64Array
    members: dict[int, Positions]

    @classmethod
    def of(cls, keys: Sequence[str], labels: NDArray[np.int64], *, seed: int) -> Pool:
        """Builds the pool. Raises ValueError if a key occurs twice."""
        if len(set(keys)) != len(keys):
            raise ValueError("a pool needs unique keys")
        ring = keyed_hashes(seed, "background", keys)
        by_ring = np.lexsort((np.asarray(keys, object), ring))
        members = {
            int(label): by_ring[labels[by_ring] == label].astype(np.int64)
            for label in np.unique(labels)
        }
        return cls(keys=keys, labels=labels, ring=ring, members=members)


def pair(
    pool: Pool,
    foregrounds: Positions,
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
    hashes = keyed_hashes(seed, f"{stream}/image", [pool.keys[i] for i in foregrounds])
    classes = _background_classes(
        pool, foregrounds, variant, stream, seed, own_background, mixed_rand
    )
    backgrounds = np.full(len(foregrounds), NO_PARTNER, np.int64)
    for label, members in pool.members.items():
        rows = np.flatnonzero(classes == label)
        if len(rows):
            banned = np.full(len(rows), NO_PARTNER) if own_background else foregrounds[rows]
            backgrounds[rows] = _probe(pool.ring, members, hashes[rows], banned)
    return backgrounds


def _background_classes(
    pool: Pool,
    foregrounds: Positions,
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
    keys = [pool.keys[i] for i in foregrounds]
    scores = np.zeros((len(present), len(keys)), np.uint64)
    allowed = np.ones(scores.shape, np.bool_)
    for row, label in enumerate(present):
        scores[row] = keyed_hashes(seed, f"{stream}/class/{label}", keys)
        own = labels == label
        if mixed_rand == "other":
            allowed[row] = ~own
        elif not own_background and len(pool.members[label]) == 1:
            allowed[row] = ~own  # The class holds nothing but the image itself.
    scores[~allowed] = 0
    chosen = np.asarray(present, np.int64)[scores.argmax(axis=0)]
    return np.where(allowed.any(axis=0), chosen, NO_PARTNER)


def _probe(
    ring: UInt64Array, members: Positions, hashes: UInt64Array, banned: Positions
) -> Positions:
    """The member closest behind one of each hash's probes, other than the banned one.

    `ring[members]` is sorted; distances wrap around in uint64, as places do.
    """
    places = ring[members]
    count = len(members)
    best = np.full(len(hashes), NO_PARTNER, np.int64)
    best_distance = np.zeros(len(hashes), np.uint64)
    if count == 0:
        return best
    for index in range(PROBES):
        probes = substream(hashes, index)
        slots = np.searchsorted(places, probes) % count
        slots = np.where(members[slots] == banned, (slots + 1) % count, slots)
        found = members[slots]
        distance = places[slots] - probes
        better = (found != banned) & ((best == NO_PARTNER) | (distance < best_distance))
        best = np.where(better, found, best)
        best_distance = np.where(better, distance, best_distance)
    return best
