"""Pairs each foreground of the mixed variants with a background.

Draws are fair: all backgrounds of the class are equally likely, independently for each foreground,
variant and draw. Draws are stable: adding or removing an image re-pairs about two foregrounds in
each variant. Rendezvous hashing (Thaler and Ravishankar 1998) has both properties. It works on two
levels, so that a draw examines only a small part of a large class. A hash divides the class into
`BUCKETS` buckets. A foreground first takes the best bucket, where buckets are weighted by their
size (the logarithmic method of Schindelhauer and Schomaker 2005), and then the best background in
this bucket.

Images of one group share a scene, so no image of the group is the background of another, unless
`own_background` allows it: a foreground draws as if the images of its own group did not exist.

Source of the variants: paper section 2, which draws from the same class, a random class or the
next class. It does not say whether the random class may be the foreground's own class, nor whether
the background may be the image's own background, so both are arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import UInt64Array, are_below, keyed_hashes, substream, substreams
from transforms.variants import VariantName

BUCKETS = 256
"""Number of buckets of a class, formed by the highest bits of its backgrounds' hashes."""
NO_PARTNER = -1
"""Value that stands for no background."""

_AT_ONCE = 1 << 22
"""Number of hashes that are processed at once. A hash takes 8 bytes, and each intermediate result
for it takes 8 bytes more."""

Positions = NDArray[np.int64]


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
    """The images of one split whose backgrounds can be drawn.

    Attributes:
      labels: (n,) int64, superclass label of each image.
      hashes: (n,) uint64, hash of each image, from `background_hashes`.
      members: maps each label that occurs to the positions of its images, in order of their hashes;
        of equal hashes, in order of the keys.
      groups: (n,) int64 >= 0, number of each image's group. Without groups, all numbers differ.
    """

    labels: NDArray[np.int64]
    hashes: UInt64Array
    members: dict[int, Positions]
    groups: Positions

    @classmethod
    def from_images(
        cls,
        keys: Sequence[str],
        labels: NDArray[np.int64],
        *,
        seed: int,
        groups: Positions | None = None,
    ) -> Pool:
        """Builds the pool of (n,) different keys; without `groups`, each is a group of its own."""
        order = np.argsort(np.asarray(keys, object), kind="stable")
        return cls.from_hashes(labels, background_hashes(keys, seed), groups=groups, order=order)

    @classmethod
    def from_hashes(
        cls,
        labels: NDArray[np.int64],
        hashes: UInt64Array,
        *,
        groups: Positions | None = None,
        order: Positions,
    ) -> Pool:
        """Builds the pool of images whose hashes are known, with the attributes of `Pool`.

        Without `groups`, each image is a group of its own. `order` are the (n,) positions of the
        images in order of their keys.
        """
        if groups is None:
            groups = np.arange(len(labels))
        # The sort is stable, so equal hashes stay in order of the key.
        by_hash = order[np.argsort(hashes[order], kind="stable")]
        members = {
            int(label): by_hash[labels[by_hash] == label].astype(np.int64)
            for label in np.unique(labels)
        }
        return cls(labels=labels, hashes=hashes, members=members, groups=groups)


def background_hashes(keys: Iterable[str], seed: int) -> UInt64Array:
    """Hashes the (n,) keys of backgrounds to (n,) uint64."""
    return keyed_hashes(seed, "background", keys)


def pair(
    pool: Pool,
    foregrounds: Positions,
    keys: Sequence[str],
    variant: VariantName,
    *,
    seed: int,
    own_background: bool = False,
    mixed_rand: str = "any",
) -> Positions:
    """Draws a background for each foreground.

    Args:
      pool: the selected images of the split.
      foregrounds: (m,) positions in the pool.
      keys: (m,) keys of the foregrounds.
      variant: `mixed_same` draws from the foreground's class, `mixed_next` from the next
        present class, cyclically; `mixed_rand` draws a present class uniformly, then an
        image of it; one of the dial has the draw of `mixed_same` with its strength as the chance,
        else that of `mixed_rand` from an `other` class.
      seed: seed of the keyed hash. Variants, and draws of one, draw independently.
      own_background: whether an image may get its own background, or one of its group. Then only
        the class of a foreground's position counts, so foregrounds from outside the pool can have
        the position of any image of their class.
      mixed_rand: `any` class, or a class `other` than the foreground's.

    Returns:
      (m,) position of each foreground's background in the pool, `NO_PARTNER` if there is no
      background to draw. The draw of one foreground does not depend on the other foregrounds.
    """
    if variant.strength is not None:
        same, other = (
            pair(
                pool,
                foregrounds,
                keys,
                dataclasses.replace(variant, base=base),
                seed=seed,
                own_background=own_background,
                mixed_rand="other",
            )
            for base in ("mixed_same", "mixed_rand")
        )
        # One hash for all strengths, so that a greater one only adds images of the own class.
        chance = keyed_hashes(seed, str(dataclasses.replace(variant, base="dial")), keys)
        return np.where(are_below(chance, variant.strength), same, other)
    hashes = keyed_hashes(seed, f"{variant}/image", keys)
    classes = _background_classes(
        pool, foregrounds, keys, variant, seed, own_background, mixed_rand
    )
    backgrounds = np.full(len(foregrounds), NO_PARTNER, np.int64)
    banned = np.full(len(foregrounds), NO_PARTNER) if own_background else pool.groups[foregrounds]
    for label, members in pool.members.items():
        rows = np.flatnonzero(classes == label)
        if len(rows):
            backgrounds[rows] = _draw(pool, members, hashes[rows], banned[rows])
    return backgrounds


def _background_classes(
    pool: Pool,
    foregrounds: Positions,
    keys: Sequence[str],
    variant: VariantName,
    seed: int,
    own_background: bool,
    mixed_rand: str,
) -> Positions:
    """Chooses the class to draw from for each foreground, `NO_PARTNER` if there is none."""
    labels = pool.labels[foregrounds]
    present = sorted(pool.members)
    if variant.base == "mixed_same":
        return labels
    if variant.base == "mixed_next":
        following = dict(zip(present, present[1:] + present[:1], strict=True))
        return np.asarray(
            [NO_PARTNER if following[y] == y else following[y] for y in labels], np.int64
        )
    if not present:
        return np.full(len(foregrounds), NO_PARTNER, np.int64)
    # The class with the highest hash wins (rendezvous hashing), so adding or removing a class
    # changes only the foregrounds that draw from this class.
    scores = np.zeros((len(present), len(keys)), np.uint64)
    allowed = np.ones(scores.shape, np.bool_)
    for row, label in enumerate(present):
        scores[row] = keyed_hashes(seed, f"{variant}/class/{label}", keys)
        if mixed_rand == "other":
            allowed[row] = labels != label
        groups = pool.groups[pool.members[label]]
        if not own_background and (groups == groups[0]).all():
            # The class holds a single image or group, which must not draw from itself.
            allowed[row] &= pool.groups[foregrounds] != groups[0]
    scores[~allowed] = 0
    chosen = np.asarray(present, np.int64)[scores.argmax(axis=0)]
    return np.where(allowed.any(axis=0), chosen, NO_PARTNER)


def _draw(pool: Pool, members: Positions, hashes: UInt64Array, banned: Positions) -> Positions:
    """Draws a member of a class for each of m foregrounds: (m,) positions in the pool.

    It never is of the foreground's banned group (`NO_PARTNER` bans none); `NO_PARTNER` if no other
    member is left. The members are in order of their hashes.
    """
    class_hashes, groups = pool.hashes[members], pool.groups[members]
    # Members are in order of their hash, so the backgrounds of a bucket are contiguous.
    bucket_of = (class_hashes >> np.uint64(64 - BUCKETS.bit_length() + 1)).astype(np.int64)
    starts = np.searchsorted(bucket_of, np.arange(BUCKETS))
    sizes = np.bincount(bucket_of, minlength=BUCKETS)
    drawn = np.full(len(hashes), NO_PARTNER, np.int64)
    step = max(1, _AT_ONCE // (BUCKETS + int(sizes.max())))
    for first in range(0, len(hashes), step):
        part = slice(first, first + step)
        banned_groups, group_of_row = np.unique(banned[part], return_inverse=True)
        group_of_banned, banned_positions = _members_of_groups(groups, banned_groups)
        weights_by_group = np.tile(sizes, (len(banned_groups), 1))
        np.subtract.at(weights_by_group, (group_of_banned, bucket_of[banned_positions]), 1)
        weights = weights_by_group[group_of_row]
        rows = np.flatnonzero(weights.any(axis=1))
        bucket = _best_buckets(weights[rows], hashes[part][rows])
        # Concatenates the backgrounds of all foregrounds' buckets.
        row_of, positions = _spread(starts[bucket], sizes[bucket])
        scores = substream(
            substream(hashes[part], BUCKETS)[rows][row_of] ^ class_hashes[positions], 0
        )
        # Allowed scores are never 0, so every banned background loses.
        is_banned = groups[positions] == banned[part][rows][row_of]
        scores = np.where(is_banned, 0, scores | np.uint64(1))
        best = np.maximum.reduceat(scores, np.cumsum(sizes[bucket]) - sizes[bucket])
        winning = np.flatnonzero(scores == best[row_of])
        winners, first_winning = np.unique(row_of[winning], return_index=True)
        drawn[first + rows[winners]] = members[positions[winning[first_winning]]]
    return drawn


def _best_buckets(weights: NDArray[np.int64], hashes: UInt64Array) -> Positions:
    """Draws a bucket for each foreground, in proportion to its row of (m, BUCKETS) weights."""
    bits = substreams(hashes, range(BUCKETS)).T >> np.uint64(11)
    # Uniform in (0, 1), with the full precision of a double. Only 53 ones are rounded to 1.
    uniform = (bits.astype(np.float64) + 0.5) * 2.0**-53
    return np.asarray((weights / -np.log(uniform)).argmax(axis=1))


def _members_of_groups(groups: Positions, wanted: Positions) -> tuple[Positions, Positions]:
    """Finds all pairs (i, j) with wanted[i] == groups[j]; returns the arrays of i and of j."""
    order = np.argsort(groups, kind="stable")
    low, high = (np.searchsorted(groups[order], wanted, side) for side in ("left", "right"))
    rows, positions = _spread(low, high - low)
    return rows, order[positions]


def _spread(starts: Positions, counts: Positions) -> tuple[Positions, Positions]:
    """Concatenates ranges of numbers; returns the index of each number's range, and the numbers.

    >>> _spread(np.asarray([5, 0]), np.asarray([2, 1]))
    (array([0, 0, 1]), array([5, 6, 0]))
    """
    rows = np.repeat(np.arange(len(starts)), counts)
    ends = np.cumsum(counts)
    return rows, np.arange(len(rows)) + np.repeat(starts - (ends - counts), counts)
