"""Tests datasets with renderings: the pairs of their bases, and pictures from the layers alone."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from runs import ONE, QUICK, dataset_in, index_of, keys, pixels_of, results_of, run_here

from pipeline.dataset.config import COMPOSE_VERSION, ComposeConfig
from pipeline.dataset.folder import training_pictures
from pipeline.generate.composed import ComposedDataset
from pipeline.generate.pictures import Background, Fills
from pipeline.jobs.messages import describe_dataset
from transforms.geometry import OutputBox
from transforms.layers import Layer
from transforms.renderings import RENDERINGS
from transforms.variants import METHOD, VariantName


def samples_of(output: Path, variant: str) -> dict[str, dict[str, Any]]:
    samples = dataset_in(output).samples("val", 0, variant)
    return {sample.key: sample.fields for sample in samples}


def test_other_variants_and_layers_keep_their_bytes(rendered: Path, three_draws: Path) -> None:
    assert (COMPOSE_VERSION, ComposeConfig().fingerprint()) == (
        *(1, "b95ec4088c027c0259d046d564ffd13c"),
    )
    new, old = results_of(rendered), results_of(three_draws)
    both = [path for path in old if path.startswith(("parquet/", "layers/")) and path in new]
    assert {path.split("/")[1] for path in both} >= {"mixed_next_r1", "only_bg_t", "fg_mask"}
    assert all(new[path] == old[path] for path in both)


def test_a_rendering_shows_the_pairs_of_its_base(
    rendered: Path, small_sample: Path, tmp_path: Path
) -> None:
    rows = {row["key"]: row for row in index_of(rendered) if row["selected"]}
    names = [name for name in dataset_in(rendered).variants if name.rendering]
    assert len(names) == 9 + 8
    for name in names:
        shown = {key: one["bg_key"] for key, one in samples_of(rendered, name).items()}
        assert shown == {key: row.get(f"{name.pairs}_bg_key") for key, row in rows.items()}
    # So does a dataset without the base.
    flags = ("--variants", "mixed_rand_hole_telea", *QUICK, *ONE, "--output", tmp_path)
    run_here("generate", "--input", small_sample, *flags)
    (alone,) = dataset_in(tmp_path).variants
    assert samples_of(tmp_path, alone) == samples_of(rendered, alone)


def test_pictures_follow_from_the_layers(small_sample: Path, tmp_path: Path) -> None:
    flags = ("--variants", "original,fg_mask,method", *keys(encoding="png"), *QUICK, *ONE)
    run_here("generate", "--input", small_sample, *flags, "--output", tmp_path)
    pixels = {name: pixels_of(tmp_path, name) for name in ("original", "fg_mask", *METHOD)}
    for row in (row for row in index_of(tmp_path) if row["selected"]):
        key, other = row["key"], row["mixed_rand_bg_key"]
        boxes = {row["key"]: row["box"] for row in index_of(tmp_path)}
        foreground, background = pixels["original"][key], pixels["original"][other]
        holes = np.zeros((2, 64, 64), np.uint8)
        for hole, (x0, y0, x1, y1) in zip(holes, (boxes[key], boxes[other]), strict=True):
            hole[y0:y1, x0:x1] = 1
        known = background * (1 - holes[1])[..., None]
        painted = cv2.inpaint(known, holes[1], 5 * 64 / 224, cv2.INPAINT_TELEA)
        for name, mask, on in (
            ("mixed_rand", pixels["fg_mask"][key] > 0, pixels["only_bg_t"][other]),
            ("mixed_rand_telea", pixels["fg_mask"][key] > 0, painted),
            ("mixed_rand_box", holes[0] > 0, pixels["only_bg_t"][other]),
        ):
            expected = np.where(mask[..., None], foreground, on)
            np.testing.assert_array_equal(pixels[name][key], expected)
        np.testing.assert_array_equal(pixels["only_bg_t_telea"][other], painted)


def test_a_background_is_painted_once_and_a_whole_hole_stays_tiled(rendered: Path) -> None:
    tile, image = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    mask = np.zeros((16, 16), np.bool_)
    fills = Fills(io.BytesIO())
    whole = Layer(image, tile, mask, OutputBox(0, 0, 16, 16))
    part = Layer(image, tile, mask, OutputBox(0, 0, 9, 16))
    first = [
        fills.fill(RENDERINGS["telea"], Background(key, tile, layer))
        for key, layer in (("a", whole), ("b", part))
    ]
    # What was painted is found by its key, whatever the layer.
    again = [fills.fill(RENDERINGS["telea"], Background(key, tile, part)) for key in ("a", "b")]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first[0], tile)
    assert not np.array_equal(first[1], tile)
    assert fills.tiled == 1
    manifest = dataset_in(rendered).manifest
    counters = {"output_shards_made": 1, "fill_fallbacks": fills.tiled}
    said = describe_dataset(manifest, counters, 1.0)
    assert "1 of the filled backgrounds is tiled, because the " in said


def test_held_out_backgrounds_are_those_of_the_base(rendered: Path) -> None:
    dataset, holdout = dataset_in(rendered), 0.3
    based, of_rendering = (
        training_pictures(dataset, "val", variant, holdout)
        for variant in ("mixed_rand", "mixed_rand_telea")
    )
    assert {key: name.pairs for key, name in of_rendering.items()} == based
    assert set(map(str, of_rendering.values())) == {"mixed_rand_telea", "mixed_rand_telea_r1"}


def test_both_ways_through_the_released_layout(rendered: Path, tmp_path: Path) -> None:
    run_here("export", "--dataset", rendered, "--to", tmp_path / "released")
    run_here("import", "--from", tmp_path / "released", "--output", tmp_path / "back")
    assert dataset_in(tmp_path / "back").variants == dataset_in(rendered).variants
    for name in (VariantName("mixed_same", "telea", 1), VariantName("mixed_rand", "box")):
        shown, of_base = (samples_of(tmp_path / "back", one) for one in (name, name.pairs))
        assert {key: one["bg_key"] for key, one in shown.items()} == {
            key: one["bg_key"] for key, one in of_base.items()
        }
        assert None not in {one["bg_key"] for one in shown.values()}
        before, after = (pixels_of(folder, name) for folder in (rendered, tmp_path / "back"))
        np.testing.assert_array_equal(
            *(sorted(one.tobytes() for one in each.values()) for each in (before, after))
        )


def test_composed_pictures_are_the_stored_bytes(rendered: Path, three_draws: Path) -> None:
    whole, part = dataset_in(rendered), dataset_in(three_draws)
    compose = whole.manifest.config.compose
    more = ComposedDataset(part.store, part.manifest, "val", compose)
    names = [name for name in whole.variants if name.rendering and name.is_mixed]
    assert len(names) == 16
    columns = ("key", "label", "fg_key", "bg_key", "image")
    for name in names:
        (expected,), (made,) = (each.tables("val", 0, name, columns) for each in (whole, more))
        assert made.to_pylist() == expected.to_pylist()
        (bare,) = more.tables("val", 0, name, columns[:-1])
        assert bare.to_pylist() == expected.select(columns[:-1]).to_pylist()
        assert more.shard_files("val", 0, (name,))[0].samples == len(bare)
    # Their digests depend on no other stored variant.
    config = part.manifest.config
    mixed = dataclasses.replace(config.compose, variants=("mixed_same", "mixed_rand"))
    manifest = dataclasses.replace(part.manifest, config=dataclasses.replace(config, compose=mixed))
    fewer = dataclasses.replace(more, manifest=manifest)
    digests, others = (each.shard_files("val", 0, tuple(names)) for each in (more, fewer))
    assert digests == others
    assert len({digest.sha256 for digest in digests}) == len(names)
