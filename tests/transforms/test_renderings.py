"""Tests how holes are filled, how foregrounds are put on backgrounds, and the names of both."""

import dataclasses

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transforms.geometry import OutputBox
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
    EXTERNAL,
    FILLED,
    MIXED,
    VARIANTS,
    VariantName,
    select_variants,
    with_replicates,
)


def layer_of(seed: int, box: OutputBox, side: int = 32) -> Layer:
    rng = np.random.default_rng(seed)
    mask = np.zeros((side, side), np.bool_)
    mask[box.y0 + 2 : box.y1 - 2, box.x0 + 2 : box.x1 - 2] = True
    images = rng.integers(0, 256, (2, side, side, 3), np.uint8)
    return Layer(*images, mask, box)


boxes = st.builds(
    OutputBox, st.integers(0, 8), st.integers(0, 8), st.integers(16, 32), st.integers(16, 32)
)
layers = st.builds(layer_of, st.integers(0, 99), boxes)


@given(layers)
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


@given(layers, st.integers(0, 99))
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


def test_a_hole_that_is_the_whole_picture_is_not_filled() -> None:
    layer = layer_of(0, OutputBox(0, 0, 32, 32))
    assert RENDERINGS["telea"].fill(layer) is None
    assert RENDERINGS["hole_telea"].fill(layer) is not None


@given(st.sampled_from(sorted(VARIANTS)), st.integers(1, 9))
def test_a_name_is_a_base_a_rendering_and_a_draw(name: str, replicates: int) -> None:
    variant = VariantName.parse(name)
    assert variant.draw == 0
    assert name == "_".join(filter(None, (variant.base, variant.rendering)))
    assert VARIANTS[name].rendering.name == variant.rendering
    drawn = with_replicates([name], replicates)
    assert len(drawn) == (replicates if variant.base in (*MIXED, EXTERNAL) else 1)
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
    for taken in ("mixed_same_mine", "only_bg_t_telea", "mixed_rand_telea_r1"):
        with pytest.raises(ValueError, match="is taken"):
            select_variants([f"python:mine:{taken}@1"])
    with pytest.raises(ValueError, match="mixed_external has no renderings"):
        select_variants(["mixed_external_telea"])
    with pytest.raises(
        ValueError, match="method, python:MODULE:FUNCTION; did you mean mixed_same_telea"
    ):
        select_variants(["mixed_next_telea"])
