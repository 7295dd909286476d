"""Tests groups: images of one scene never get each other's background, and count as one unit."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.generate.plan import group_numbers
from transforms.hashing import keyed_hashes
from transforms.intervals import bootstrap_interval, bootstrap_means
from transforms.pairing import NO_PARTNER, Pool, pair
from transforms.selection import has_partners
from transforms.two_way import Roles, wilson_of_pictures
from transforms.variants import MIXED, VariantName

images = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=40)
"""(class, group) of each image."""


def make_keys(count: int) -> list[str]:
    return [f"image_{i}" for i in range(count)]


def make_pool(drawn: list[tuple[int, int]], seed: int = 0) -> Pool:
    labels, numbers = (np.asarray(column, np.int64) for column in zip(*drawn, strict=True))
    return Pool.from_images(make_keys(len(drawn)), labels, seed=seed, groups=numbers)


@given(images, st.booleans(), st.sampled_from(["any", "other"]))
def test_no_background_is_of_the_same_group(
    drawn: list[tuple[int, int]], own: bool, policy: str
) -> None:
    pool = make_pool(drawn)
    everyone = (np.arange(len(drawn)), make_keys(len(drawn)))
    present = sorted({label for label, _ in drawn})
    for variant in MIXED:
        backgrounds = pair(
            pool, *everyone, VariantName(variant), seed=0, own_background=own, mixed_rand=policy
        )
        for foreground, background in enumerate(backgrounds):
            label, group = drawn[foreground]
            of_next = present[(present.index(label) + 1) % len(present)]
            allowed = [
                index
                for index, (other, of_group) in enumerate(drawn)
                if (own or of_group != group)
                and {
                    "mixed_same": other == label,
                    "mixed_next": other == of_next != label,
                    "mixed_rand": policy == "any" or other != label,
                }[variant]
            ]
            # An image that has a possible partner gets one, whatever the hashes are.
            assert background in allowed if allowed else background == NO_PARTNER


@given(images, st.sets(st.sampled_from(MIXED)), st.booleans(), st.sampled_from(["any", "other"]))
def test_who_stays_has_partners_among_who_stays(
    drawn: list[tuple[int, int]], mixed: set[str], own: bool, policy: str
) -> None:
    labels, numbers = (np.asarray(column, np.int64) for column in zip(*drawn, strict=True))
    keep = has_partners(
        labels, mixed=sorted(mixed), own_background=own, mixed_rand=policy, groups=numbers
    )
    # The reference removes images without a partner until every image in the pool has one.
    remaining = list(range(len(drawn)))
    while remaining:
        pool = make_pool([drawn[i] for i in remaining])
        fine = np.ones(len(remaining), np.bool_)
        for variant in mixed:
            of_variant = pair(
                pool,
                np.arange(len(remaining)),
                make_keys(len(remaining)),
                VariantName(variant),
                seed=0,
                own_background=own,
                mixed_rand=policy,
            )
            fine &= of_variant != NO_PARTNER
        if fine.all():
            break
        remaining = [index for index, stays in zip(remaining, fine, strict=True) if stays]
    assert np.flatnonzero(keep).tolist() == remaining


def test_removing_one_image_repairs_few() -> None:
    drawn = [(i % 3, i // 4) for i in range(600)]
    keys = make_keys(600)

    def pairs(skip: int | None) -> dict[str, str]:
        kept = [i for i in range(600) if i != skip]
        labels, numbers = (np.asarray([drawn[i][c] for i in kept], np.int64) for c in (0, 1))
        names = [keys[i] for i in kept]
        pool = Pool.from_images(names, labels, seed=0, groups=numbers)
        backgrounds = pair(pool, np.arange(len(kept)), names, VariantName("mixed_rand"), seed=0)
        return {names[f]: names[b] for f, b in enumerate(backgrounds)}

    before = pairs(None)
    for skip in range(0, 600, 60):
        after = pairs(skip)
        assert sum(before[key] != background for key, background in after.items()) <= 8


def test_scenes_are_drawn_evenly_and_stay_when_one_is_added() -> None:
    scenes, keys = [f"scene_{i}" for i in range(50)], [f"image_{i}" for i in range(2000)]

    def draw(scenes: list[str], number: int = 0) -> NDArray[np.int64]:
        pool = Pool.from_images(scenes, np.zeros(len(scenes), np.int64), seed=0)
        name = VariantName("mixed_external", draw=number)
        return pair(pool, np.zeros(2000, np.int64), keys, name, seed=0, own_background=True)

    before = draw(scenes)
    assert np.bincount(before, minlength=50).min() > 5
    after = draw([*scenes, "another"])
    changed = after != before
    assert 0 < changed.mean() < 0.08
    assert (draw(scenes, 1) == before).mean() < 0.1


def test_images_without_a_group_are_groups_of_their_own() -> None:
    numbers = group_numbers(pa.array(["b", None, None, "b"]))
    assert numbers is not None
    assert numbers[0] == numbers[3]
    assert len(set(numbers.tolist())) == 3


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans(), st.booleans()), min_size=1, max_size=60)
)
@settings(max_examples=25)
def test_bootstraps_resample_groups(drawn: list[tuple[int, bool, bool]]) -> None:
    units = [f"group_{group}" for group, _, _ in drawn]
    same, rand = (np.asarray([each[column] for each in drawn]) for column in (1, 2))
    values = np.stack([same, rand, same.astype(np.float64) - rand], axis=1).astype(np.float64)
    names = sorted(set(units))
    of_unit = [values[[unit == name for unit in units]] for name in names]
    means = bootstrap_means(
        np.stack([rows.sum(axis=0) for rows in of_unit]),
        np.asarray([len(rows) for rows in of_unit], np.float64),
        keyed_hashes(0, "bootstrap", names),
    )
    np.testing.assert_allclose(means[:, 2], means[:, 0] - means[:, 1], atol=1e-12)
    low, high = bootstrap_interval(values, units)
    for column in range(3) if len(means) else ():
        expected = np.quantile(means[:, column], [0.025, 0.975])
        assert [low[column], high[column]] == pytest.approx(expected, abs=1e-12)


def test_the_interval_of_related_images_covers() -> None:
    """Simulates scenes of ten images that are all right or all wrong, so a scene counts as one."""
    random = np.random.default_rng(0)
    held = plain = 0
    for _ in range(300):
        right = np.repeat(random.random(60) < 0.7, 10)
        low, high = wilson_of_pictures(right, Roles.from_units(np.repeat(np.arange(60), 10)))
        held += low <= 0.7 <= high
        low, high = wilson_of_pictures(right, Roles.from_units(np.arange(600)))
        plain += low <= 0.7 <= high
    assert held / 300 > 0.92
    assert plain / 300 < 0.6
