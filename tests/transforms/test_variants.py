"""Tests the laws of variants, noise and renderings, and their names."""

import dataclasses
import hashlib
from statistics import NormalDist

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.geometry import OutputBox
from transforms.hashing import keyed_hash, substream
from transforms.layers import Layer
from transforms.renderings import (
    RENDERINGS,
    box_hole,
    mask_hole,
    paste_box,
    paste_feathered,
    paste_mask,
)
from transforms.variants import (
    DIAL,
    EXTERNAL,
    FILLED,
    MIXED,
    PAPER,
    SIGMA,
    VARIANTS,
    VariantName,
    add_noise,
    composite,
    gaussian_noise,
    level_table,
    select_variants,
    with_replicates,
)

SIDE = 12
DEVIATION = 255 * SIGMA
NOISE = gaussian_noise(5, (SIDE, SIDE, 3))


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    x0, y0 = draw(st.integers(0, SIDE)), draw(st.integers(0, SIDE))
    x1, y1 = draw(st.integers(x0, SIDE)), draw(st.integers(y0, SIDE))
    return Layer(
        image=rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
        only_bg_t=rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
        mask=rng.random((SIDE, SIDE)) < draw(st.sampled_from([0, 0.3, 1])),
        box=OutputBox(x0, y0, x1, y1),
    )


@given(layers(), layers())
def test_each_variant_shows_what_its_name_says(layer: Layer, other: Layer) -> None:
    layer.image[:3] = 0  # Black pixels are foreground, too.
    mask, box = layer.mask[..., np.newaxis], np.zeros((SIDE, SIDE, 1), np.bool_)
    box[layer.box.y0 : layer.box.y1, layer.box.x0 : layer.box.x1] = True
    expected = {
        "original": layer.image,
        "only_bg_b": np.where(box, 0, layer.image),
        "only_bg_t": layer.only_bg_t,
        "no_fg": np.where(mask, 0, layer.image),
        "only_fg": np.where(mask, layer.image, 0),
        "fg_mask": np.where(layer.mask, 255, 0),
        **dict.fromkeys(MIXED, np.where(mask, layer.image, other.only_bg_t)),
    }
    assert expected.keys() == set(PAPER)
    for name, picture in expected.items():
        shown = VARIANTS[name].compose(layer, other.only_bg_t)
        assert shown.dtype == np.uint8
        np.testing.assert_array_equal(shown, picture, name)
    for name in MIXED:
        with pytest.raises(ValueError, match=name):
            VARIANTS[name].compose(layer)


@given(layers())
def test_composing_changes_no_layer(layer: Layer) -> None:
    before = [layer.image.copy(), layer.only_bg_t.copy(), layer.mask.copy()]
    for variant in VARIANTS.values():
        variant.compose(layer, layer.only_bg_t, NOISE)
    for old, new in zip(before, [layer.image, layer.only_bg_t, layer.mask], strict=True):
        np.testing.assert_array_equal(old, new)


@given(layers())
def test_a_blurred_background_holds_nothing_of_the_foreground(layer: Layer) -> None:
    blurred = VARIANTS["bg_blurred"].compose(layer)
    np.testing.assert_array_equal(blurred[layer.mask], layer.image[layer.mask])
    other = dataclasses.replace(layer, image=composite(~layer.image, layer.mask, layer.image))
    np.testing.assert_array_equal(
        VARIANTS["bg_blurred"].compose(other)[~layer.mask], blurred[~layer.mask]
    )


@given(layers())
def test_noise_stays_on_its_side_of_the_mask(layer: Layer) -> None:
    noisy = add_noise(layer.image, NOISE)
    for name, inside in (("noise_fg", layer.mask), ("noise_bg", ~layer.mask)):
        picture = VARIANTS[name].compose(layer, noise=NOISE)
        np.testing.assert_array_equal(picture[inside], noisy[inside])
        np.testing.assert_array_equal(picture[~inside], layer.image[~inside])
        assert VARIANTS[name].lossless
        assert name not in select_variants(["all"])
        with pytest.raises(ValueError, match=f"{name} needs noise"):
            VARIANTS[name].compose(layer)


def test_a_blur_keeps_a_plain_background_plain() -> None:
    mask = np.zeros((64, 64), np.bool_)
    mask[10:50, 20:30] = True
    image = np.where(mask[..., None], np.uint8(255), np.uint8([200, 10, 90]))
    layer = Layer(image, image, mask, OutputBox(20, 10, 30, 50))
    np.testing.assert_array_equal(VARIANTS["bg_blurred"].compose(layer), image)


def test_variants_of_the_users_come_last_and_have_names_of_their_own() -> None:
    silhouette = "python:mine:silhouette@2"
    assert select_variants(["all"]) == PAPER
    assert select_variants([silhouette, "bg_blurred", "original"]) == (
        "original",
        "bg_blurred",
        silhouette,
    )
    for variants in (["python:mine:original@1"], [silhouette, "python:other:silhouette@2"]):
        with pytest.raises(ValueError, match="is taken"):
            select_variants(variants)
    with pytest.raises(ValueError, match="is taken"):
        select_variants(["python:mine:mixed_rand_r1@1"])


def test_levels_are_normal_and_no_rounding_is_close() -> None:
    levels = level_table()
    np.testing.assert_array_equal(levels, -levels[::-1])
    assert levels.std() == pytest.approx(DEVIATION, rel=1e-4)
    normal, places = NormalDist(sigma=DEVIATION), np.arange(1_000, 64_000, 97)
    exact = [normal.inv_cdf((position + 0.5) / 65536) for position in places.tolist()]
    np.testing.assert_allclose(levels[places], exact, atol=0.52)
    # A library that differs in the last bits would give the same table.
    starts = [65536 * normal.cdf(k - 0.5) for k in range(-299, 301)]
    assert min(abs(start % 1 - 0.5) for start in starts) > 5e-4
    digest = hashlib.sha256(levels.astype("<i2").tobytes()).hexdigest()
    assert digest == "8e4ff6d94bcbee0bdbcf0f5e45d99fd6345c23e2435d1f8b1a76f7d29ab39328"


def test_noise_is_that_of_the_keyed_hash() -> None:
    draw = keyed_hash(0, "noise", "ILSVRC2012_val_00000355")
    noise = gaussian_noise(draw, (5, 7, 3))
    words = [
        int(substream(np.asarray([draw], np.uint64), index)[0]) >> 16 * part & 0xFFFF
        for index in range(27)
        for part in range(4)
    ]
    assert noise.ravel().tolist() == level_table()[words[:105]].tolist()
    assert noise[0, 0].tolist() == [-57, 10, -66]
    large = gaussian_noise(draw, (224, 224, 3))
    np.testing.assert_array_equal(large.ravel()[:105], noise.ravel())
    assert abs(large.mean()) < 1
    assert large.std() == pytest.approx(DEVIATION, rel=0.01)
    # Pixels, channels and keys are independent.
    other = gaussian_noise(keyed_hash(0, "noise", "another"), large.shape)
    pairs = ((large[1:], large[:-1]), (large[..., 0], large[..., 1]), (large, other))
    assert all(abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.02 for a, b in pairs)


@given(st.integers(0, 2**64 - 1), st.integers(0, 255))
def test_sums_are_clipped(draw: int, level: int) -> None:
    image = np.full((4, 4, 3), level, np.uint8)
    noise = gaussian_noise(draw, image.shape)
    expected = [min(max(level + value, 0), 255) for value in noise.ravel().tolist()]
    assert add_noise(image, noise).ravel().tolist() == expected


def layer_of(seed: int, box: OutputBox, side: int = 32) -> Layer:
    rng = np.random.default_rng(seed)
    mask = np.zeros((side, side), np.bool_)
    mask[box.y0 + 2 : box.y1 - 2, box.x0 + 2 : box.x1 - 2] = True
    images = rng.integers(0, 256, (2, side, side, 3), np.uint8)
    return Layer(*images, mask, box)


boxes = st.builds(
    OutputBox, st.integers(0, 8), st.integers(0, 8), st.integers(16, 32), st.integers(16, 32)
)
built = st.builds(layer_of, st.integers(0, 99), boxes)


@given(built)
def test_a_fill_changes_the_hole_alone_and_takes_nothing_from_it(layer: Layer) -> None:
    for name in ("telea", "hole_telea"):
        rendering = RENDERINGS[name]
        assert rendering.hole is not None
        hole = rendering.hole(layer)
        assert hole[layer.mask].all()
        filled = rendering.fill(layer)
        if hole.all():
            assert filled is None
            continue
        assert filled is not None
        np.testing.assert_array_equal(filled[~hole], layer.image[~hole])
        layer.image[hole] ^= 255
        np.testing.assert_array_equal(rendering.fill(layer), filled)


@given(built, st.integers(0, 99))
def test_an_edge_is_the_masks_the_boxs_or_soft(layer: Layer, seed: int) -> None:
    background = np.random.default_rng(seed).integers(0, 256, layer.image.shape, np.uint8)
    sharp, box, soft = (
        paste(layer, background) for paste in (paste_mask, paste_box, paste_feathered)
    )
    np.testing.assert_array_equal(box[box_hole(layer)], layer.image[box_hole(layer)])
    np.testing.assert_array_equal(box[~box_hole(layer)], background[~box_hole(layer)])
    pictures = np.stack([layer.image, background])
    assert (pictures.min(axis=0) <= soft).all()
    assert (soft <= pictures.max(axis=0)).all()
    # Beyond 4 standard deviations, 0.86 pixels at this side, nothing is soft.
    edge = cv2.dilate(layer.mask.astype(np.uint8), np.ones((3, 3))) != cv2.erode(
        layer.mask.astype(np.uint8), np.ones((3, 3)), borderValue=1
    )
    np.testing.assert_array_equal(soft[~edge], sharp[~edge])


def test_sizes_are_shares_of_the_side() -> None:
    for side, margin in ((224, 2), (112, 1), (448, 4), (16, 0)):
        mask = np.zeros((side, side), np.bool_)
        mask[side // 2, side // 2] = True
        layer = Layer(*np.zeros((2, side, side, 3), np.uint8), mask, OutputBox(0, 0, side, side))
        assert mask_hole(layer).sum() == (2 * margin + 1) ** 2


@given(st.sampled_from(sorted(VARIANTS)), st.integers(1, 9))
def test_a_name_is_a_base_a_rendering_and_a_draw(name: str, replicates: int) -> None:
    variant = VariantName.parse(name)
    assert variant.draw == 0
    assert name == "_".join(filter(None, (variant.base, variant.rendering)))
    assert VARIANTS[name].rendering.name == variant.rendering
    drawn = with_replicates([name], replicates)
    assert len(drawn) == (replicates if variant.base in (*MIXED, *DIAL, EXTERNAL) else 1)
    assert tuple(one.pairs for one in drawn) == with_replicates([variant.base], replicates)
    assert {(one.base, one.variant) for one in drawn} == {(variant.base, variant)}
    assert tuple(VariantName.parse(str(one)) for one in drawn) == drawn


parts = st.sampled_from(["mixed_same", "only_bg_t", "original", "telea", "mine", "r0", "r1", "r"])
functions = st.lists(parts, min_size=1, max_size=3).map("_".join)


@given(functions, st.sampled_from(["", *FILLED]), st.integers(0, 99))
def test_a_custom_name_reads_as_what_it_names_or_is_refused(
    function: str, base: str, draw: int
) -> None:
    entry = f"{base}{base and '='}python:mine:{function}@1"
    variant = VariantName.parse(entry)
    assert variant == (VariantName(base, function) if base else VariantName(function))
    if str(variant) in VARIANTS or VariantName.parse(str(variant)) != variant:
        with pytest.raises(ValueError, match="is taken"):
            select_variants([entry])
        return
    assert select_variants([entry]) == (entry,)
    name = dataclasses.replace(variant, draw=draw)
    assert VariantName.parse(str(name)) == name
    assert (name.variant, name.pairs) == (variant, dataclasses.replace(name, rendering=""))


@given(st.one_of(functions, st.text()).filter(lambda text: "python:" not in text))
def test_a_name_is_written_as_it_was_read(text: str) -> None:
    assert str(VariantName.parse(text)) == text


def test_names_of_renderings_are_theirs_alone() -> None:
    assert select_variants(["method"])[:3] == ("only_bg_t", "mixed_same", "mixed_rand")
    assert len(select_variants(["method"])) == 12
    assert not any(VariantName.parse(name).rendering for name in select_variants(["all"]))
    with pytest.raises(ValueError, match="mixed_external has no renderings"):
        select_variants(["mixed_external_telea"])
    with pytest.raises(
        ValueError, match="dial, python:MODULE:FUNCTION; did you mean mixed_same_telea"
    ):
        select_variants(["mixed_next_telea"])
