"""Tests the rules, uniformity and stability of selection and pairing."""

import collections
import itertools
import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from transforms.pairing import NO_PARTNER, Pool, pair
from transforms.selection import has_partners, lowest_hashes, select
from transforms.variants import DIAL_VARIANTS, VariantName, with_replicates

MIXED = ("mixed_same", "mixed_rand", "mixed_next")

labelled = st.lists(st.integers(0, 8), min_size=1, max_size=60)


def make_pool(labels: list[int], seed: int = 0, skip: int | None = None) -> Pool:
    kept = np.asarray([label for i, label in enumerate(labels) if i != skip])
    return Pool.from_images(make_keys(labels, skip), kept, seed=seed)


def make_keys(labels: list[int], skip: int | None = None) -> list[str]:
    return [f"image_{i}" for i in range(len(labels)) if i != skip]


def everyone(labels: list[int]) -> tuple[np.ndarray, list[str]]:
    """Returns positions and keys of a whole pool, all as foregrounds."""
    return np.arange(len(labels)), make_keys(labels)


def drawn(pool: Pool, keys: list[str], variant: str, **policy: object) -> dict[str, str]:
    """Maps foreground keys to background keys; foregrounds without a partner are left out."""
    partners = pair(pool, np.arange(len(keys)), keys, VariantName(variant), seed=0, **policy)  # type: ignore[arg-type]
    return {key: keys[b] for key, b in zip(keys, partners, strict=True) if b != NO_PARTNER}


@given(labelled, st.booleans(), st.sampled_from(["any", "other"]))
def test_backgrounds_obey_the_rules(labels: list[int], own: bool, policy: str) -> None:
    pool = make_pool(labels)
    present = sorted(set(labels))
    following = dict(zip(present, present[1:] + present[:1], strict=True))
    keys = make_keys(labels)
    label_of = dict(zip(keys, labels, strict=True))
    for variant in MIXED:
        pairs = drawn(pool, keys, variant, own_background=own, mixed_rand=policy)
        for foreground, background in pairs.items():
            y, background_label = label_of[foreground], label_of[background]
            assert own or foreground != background
            if variant == "mixed_same":
                assert background_label == y
            elif variant == "mixed_next":
                assert background_label == following[y] != y
            elif policy == "other":
                assert background_label != y
    candidates = np.asarray(labels)
    partners = has_partners(candidates, mixed=MIXED, own_background=own, mixed_rand=policy)
    kept = list(candidates[partners])
    pool, keys = make_pool(kept), make_keys(kept)
    for variant in MIXED:
        assert len(drawn(pool, keys, variant, own_background=own, mixed_rand=policy)) == len(kept)


@given(labelled)
def test_a_draw_does_not_depend_on_the_others_asked_for(labels: list[int]) -> None:
    pool = make_pool(labels)
    some, keys = np.arange(0, len(labels), 3), make_keys(labels)
    for variant in MIXED:
        everything = pair(pool, *everyone(labels), VariantName(variant), seed=0)
        partners = pair(pool, some, keys[::3], VariantName(variant), seed=0)
        np.testing.assert_array_equal(partners, everything[some])


def test_the_order_of_the_pool_does_not_matter() -> None:
    labels = [i % 5 for i in range(50)]
    keys = make_keys(labels)
    order = np.random.default_rng(0).permutation(50)
    reordered = [keys[i] for i in order]
    shuffled = Pool.from_images(reordered, np.asarray(labels)[order], seed=0)
    for variant in MIXED:
        expected = drawn(make_pool(labels), keys, variant)
        assert drawn(shuffled, reordered, variant) == expected


def test_another_seed_draws_other_pairs() -> None:
    labels = [i % 3 for i in range(300)]
    first = pair(make_pool(labels, seed=0), *everyone(labels), VariantName("mixed_same"), seed=0)
    second = pair(make_pool(labels, seed=1), *everyone(labels), VariantName("mixed_same"), seed=1)
    assert (first == second).mean() < 0.1


def test_removing_one_image_repairs_few() -> None:
    labels = [i % 9 for i in range(900)]
    for variant in MIXED:
        before = drawn(make_pool(labels), make_keys(labels), variant)
        moved = []
        for removed in range(0, 900, 30):
            after = drawn(make_pool(labels, skip=removed), make_keys(labels, removed), variant)
            moved.append(sum(before[key] != background for key, background in after.items()))
        assert np.mean(moved) < 2.5
        assert max(moved) <= 8


@pytest.mark.parametrize("size", [20, 100, 1000, 5000])
def test_each_background_gets_its_fair_share(size: int) -> None:
    """Checks that shares over foregrounds, variants and draws spread as in a uniform draw."""
    spread = []
    for seed in range(max(1, 2000 // size)):
        keys = [f"{seed}_{i}" for i in range(size)]
        pool = Pool.from_images(keys, np.zeros(size, np.int64), seed=seed)
        draws = [
            pair(pool, np.arange(size), keys, variant, seed=seed)
            for variant in with_replicates(("mixed_same", "mixed_rand"), 4)
        ]
        counts = np.bincount(np.concatenate(draws), minlength=size)
        spread.append(counts.var() / (counts.sum() * (1 / size) * (1 - 1 / size)))
    assert 0.9 < np.sqrt(np.mean(spread)) < 1.15


@pytest.mark.parametrize("sizes", [(3, 1), (40, 8), (500, 20)])
def test_shares_are_fair_without_the_own_group(sizes: tuple[int, int]) -> None:
    """Checks that the own group is not drawn, and leaves its share to all others alike."""
    others, group = sizes
    labels, groups = np.zeros(others + group, np.int64), np.arange(others + group)
    groups[others:] = others
    keys = make_keys(list(labels))
    pool = Pool.from_images(keys, labels, seed=1, groups=groups)
    counts = np.zeros(others)
    of_group = np.arange(others, others + group)
    for variant in with_replicates(("mixed_same",), 4000 // group):
        partners = pair(pool, of_group, keys[others:], variant, seed=1)
        counts += np.bincount(partners, minlength=others)
    expected = counts.sum() / others
    assert ((counts - expected) ** 2 / expected).sum() < others + 4 * np.sqrt(2 * others)


@given(labelled, st.integers(0, 2))
def test_a_dial_has_one_of_two_draws_and_a_greater_strength_only_adds(
    labels: list[int], draw: int
) -> None:
    pool, them = make_pool(labels), everyone(labels)
    same, other = (
        pair(pool, *them, VariantName(base, draw=draw), seed=3, mixed_rand="other")
        for base in ("mixed_same", "mixed_rand")
    )
    was_same = np.zeros(len(labels), np.bool_)
    for name in DIAL_VARIANTS:
        shown = pair(pool, *them, VariantName(name, draw=draw), seed=3)
        assert ((shown == same) | (shown == other)).all()
        is_same = (shown == same) & (same != other)
        assert (is_same >= was_same).all()
        was_same = is_same
    assert (shown == same).all()
    np.testing.assert_array_equal(
        pair(pool, *them, VariantName("mixed_p00", draw=draw), seed=3), other
    )


def test_the_strength_of_a_dial_is_the_share_of_the_own_class() -> None:
    labels = [i % 9 for i in range(1800)]
    counts = []
    for draw in range(2):
        names = [VariantName(name, draw=draw) for name in DIAL_VARIANTS]
        drawn_labels = [
            np.asarray(labels)[pair(make_pool(labels), *everyone(labels), name, seed=0)]
            for name in names
        ]
        counts.append([int((one == labels).sum()) for one in drawn_labels])
        low, high = scipy.stats.binom.interval(
            0.999, len(labels), [name.strength for name in names]
        )
        assert ((low <= counts[-1]) & (counts[-1] <= high)).all()
    assert counts[0] != counts[1]


def test_mixed_rand_draws_classes_uniformly_whatever_their_size() -> None:
    labels = [0] * 1000 + [1] * 200 + [2] * 50
    background = pair(make_pool(labels), *everyone(labels), VariantName("mixed_rand"), seed=0)
    shares = np.bincount(np.asarray(labels)[background]) / 1250
    assert shares == pytest.approx([1 / 3] * 3, abs=0.05)


@pytest.mark.parametrize(
    ("labels", "mixed", "own", "policy", "expected"),
    [
        ([0, 0, 1], ("mixed_same",), True, "any", [True, True, True]),
        ([0, 0], ("mixed_rand",), False, "other", [False, False]),
        ([0, 0], ("mixed_p100",), False, "any", [False, False]),
        ([0, 0, 1, 1, 2], ("mixed_p00",), False, "any", [True] * 4 + [False]),
        # Class 1 drops out because of mixed_same, so class 0 has no next class any more.
        ([0, 0, 1], ("mixed_same", "mixed_next"), False, "any", [False] * 3),
    ],
)
def test_images_without_a_partner_are_found(
    labels: list[int], mixed: tuple[str, ...], own: bool, policy: str, expected: list[bool]
) -> None:
    actual = has_partners(np.asarray(labels), mixed=mixed, own_background=own, mixed_rand=policy)
    assert actual.tolist() == expected


@given(labelled, st.sampled_from(["all", "min", "3"]))
def test_selection_balances_classes(labels: list[int], per_class: str) -> None:
    keys = [f"image_{i}" for i in range(len(labels))]
    chosen = select(keys, np.asarray(labels), per_class=per_class, seed=0)
    before, after = collections.Counter(labels), collections.Counter()
    after.update(label for label, keep in zip(labels, chosen, strict=True) if keep)
    wanted = {"all": len(labels), "min": min(before.values()), "3": 3}[per_class]
    assert after == {label: min(count, wanted) for label, count in before.items()}


def test_selection_is_stable() -> None:
    keys = [f"image_{i}" for i in range(100)]
    labels = np.zeros(100, np.int64)
    chosen = lowest_hashes(keys, labels, 10, seed=0, purpose="test")
    fewer = lowest_hashes(keys[1:], labels[1:], 10, seed=0, purpose="test")
    assert (chosen[1:] != fewer).sum() <= 1


def test_replicates_draw_independently() -> None:
    keys = [f"key{i}" for i in range(600)]
    pool = Pool.from_images(keys, np.arange(600, dtype=np.int64) % 3, seed=0)
    them = (np.arange(600), keys)
    draws = [pair(pool, *them, name, seed=0) for name in with_replicates(("mixed_rand",), 4)]
    for first, second in itertools.combinations(draws, 2):
        # Two independent draws from 600 agree for one foreground on average.
        assert (first == second).sum() < 10
        agreement = (pool.labels[first] == pool.labels[second]).mean()
        assert 0.25 < agreement < 0.42


def test_large_groups_take_no_more_memory_than_small_ones() -> None:
    n = 6_000
    keys = [str(i) for i in range(n)]
    peaks = []
    for members in (1, n // 2):
        groups = np.arange(n) // members
        pool = Pool.from_images(keys, np.zeros(n, np.int64), seed=0, groups=groups)
        tracemalloc.start()
        try:
            backgrounds = pair(pool, np.arange(n), keys, VariantName("mixed_same"), seed=0)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert (groups[backgrounds] != groups).all()
    assert peaks[1] <= peaks[0]
