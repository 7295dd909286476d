"""Tests each stage alone, except planning: what it finds, refuses and leaves behind."""

import dataclasses
import hashlib
import itertools
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest

from pipeline.dataset.config import ComposeConfig, DatasetConfig, SegmentConfig
from pipeline.dataset.folder import read_parquet
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.records import (
    RECORD_SCHEMA,
    ShardCounts,
    Staging,
    layer_record,
    layer_tar,
    read_image_rows,
    write_table,
)
from pipeline.errors import JobError, UsageError
from pipeline.generate.compose import ComposeShard
from pipeline.generate.cut_source import Cutter
from pipeline.generate.graph import GenerateDataset, ListSplits, list_split
from pipeline.generate.job import GenerateJob
from pipeline.generate.origin import InputOrigin
from pipeline.generate.pictures import LayerSource, SelectedImage
from pipeline.generate.plan import PlanSplit, load_plan
from pipeline.generate.previous_layers import PreviousLayers, Survey
from pipeline.generate.segment import SegmentShard
from pipeline.generate.shard_elements import OutputShard, SourceShard, SplitTotals
from pipeline.inputs.layout import find_layout
from pipeline.inputs.lists import read_key_list
from pipeline.runtime.progress import Progress, Tally
from pipeline.storage.store import FileDigest, Store
from transforms.codec import decode_image
from transforms.renderings import paste_mask
from transforms.taxonomy import imagenet9
from transforms.variants import ORIGINAL, VariantName

IN9, MIX = imagenet9(), VariantName("mixed_rand")
BOX = SegmentConfig(image_size=32, resize=36, segmenter="box")
MIXED = ComposeConfig(("original", "mixed_rand"), ("parquet",), encoding="png")
SMALL = DatasetConfig(images_per_shard=9, segment=BOX, compose=MIXED)
TAR, RECORD = layer_tar("val", 0), layer_record("val", 0)
ONE, TWO = ShardCounts(1, 1), ShardCounts(2, 2)


def job_of(source: Path, output: Path, config: DatasetConfig = SMALL, **more: Any) -> GenerateJob:
    store, options = Store.at(str(output)), {"previous": {}, "taxonomy": IN9, **more}
    layouts = (find_layout(str(source), None, "val", needs_boxes=False),)
    return GenerateJob(config, layouts, store=store, progress=Progress.for_store(store), **options)


def planned(job: GenerateJob) -> tuple[OutputShard, list[SelectedImage]]:
    stage = SegmentShard(job)
    segmented = [
        result for shard in ListSplits(job).process(None) for result in stage.process(shard)
    ]
    first = PlanSplit(job).process(("val", segmented))[1]
    plan = load_plan(job.store, first.plan, MIXED, first.plan_digest)
    rows = read_image_rows(job.store, first.sources[0].path)
    keys = [row.key for row in rows]
    found = zip(rows, plan.find(keys), plan.backgrounds(keys)[MIX], strict=True)
    return first, [SelectedImage(row, image, {MIX: other}) for row, image, other in found]


def test_only_what_the_segmenter_uses_is_listed(sample: Path, tmp_path: Path) -> None:
    def listed(segment: SegmentConfig, source: Path = sample, **more: Any) -> set[Any]:
        config = DatasetConfig(segment=segment, compose=ComposeConfig(("original",)))
        job = job_of(source, tmp_path, config, **more)
        images, _ = list_split(job, *job.layouts)
        return {(image.annotation is not None, image.mask is not None) for image in images}

    masks = SegmentConfig(segmenter="masks")
    assert listed(masks, origin=InputOrigin(str(sample / "masks"))) == {(True, True)}
    assert listed(BOX) == {(True, False)}
    assert listed(SegmentConfig(selection="in9l")) == {(False, False)}
    (tmp_path / "a.JPEG").write_bytes(b"a")
    table = tmp_path / "manifest.csv"
    table.write_text("image,class,xmin,ymin,xmax,ymax,mask\na.JPEG,n02085620,1,1,2,2,a.JPEG\n")
    assert listed(BOX, tmp_path) == {(True, False)}
    for wnid, segment, message in (
        ("n02085620", masks, f"--segmenter masks: no image of {table} has a mask; name PNGs in"),
        ("n02085620", BOX, f"no image of {table} has a box: .* add --segmenter masks"),
        ("n09", BOX, f"no image of an ImageNet-9 class in {table}: .*lacks: 'n09' .1.*--taxonomy"),
    ):
        table.write_text(f"image,class\na.JPEG,{wnid}\n")
        with pytest.raises(UsageError, match=message):
            listed(segment, tmp_path)


def test_a_job_finds_what_it_left_and_refuses_a_list_that_has_changed(
    sample: Path, tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    config = DatasetConfig(include=read_key_list(str(names), "--include").summary)
    origin = InputOrigin(include=str(names))
    (keys,) = origin.key_lists(config)
    assert [keys.excludes(key, "n01") for key in "abc"] == [False, False, True]
    names.write_text("a\nc\n")
    with pytest.raises(UsageError, match=f"--include {names} has changed since this run"):
        origin.key_lists(config)
    seed = dataclasses.replace(SMALL, compose=dataclasses.replace(MIXED, seed=1))
    size = dataclasses.replace(SMALL, segment=dataclasses.replace(BOX, image_size=30))
    first, second, third = (job_of(sample, tmp_path, each) for each in (SMALL, seed, size))
    assert first.layer_staging() == second.layer_staging() != third.layer_staging()
    assert first.output_staging() == third.output_staging() != second.output_staging()


def test_the_graph_gives_the_fingerprint_once(small_sample: Path, tmp_path: Path) -> None:
    job, target = job_of(small_sample, tmp_path / "out"), tmp_path / "told"
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        start = pipeline | beam.Create(["work may begin"])
        start | GenerateDataset(job) | beam.io.WriteToText(str(target), shard_name_template="")
    manifest = read_manifest(job.store)
    assert manifest is not None
    assert target.read_text().split() == [manifest.fingerprint]
    smaller = dataclasses.replace(SMALL, images_per_shard=3)
    for reshard, counts in ((False, TWO), (True, ShardCounts(6, 6))):
        options = {"previous": manifest.shards, "reshard": reshard}
        more = job_of(small_sample, tmp_path / "out", smaller, **options)
        assert list_split(more, *more.layouts)[1].counts == counts


@pytest.mark.parametrize(("record", "tars"), itertools.product("ab", ("", "a", "b", "ab")))
def test_layers_are_found_if_all_is_whole(tmp_path: Path, record: str, tars: str) -> None:
    """Writes record and whole tars as staged (a) or in place (b); other tars are cut short."""
    staging, folders = Staging(Store(str(tmp_path)), "staging"), {"a": "staging/", "b": ""}
    for location, folder in folders.items():
        staging.store.write(folder + TAR, b"tar"[: 2 + (location in tars)])
    digest = FileDigest(TAR, 3, hashlib.sha256(b"tar").hexdigest())
    checksum, files = Cutter(BOX).identify_shard(["a", "b"]), [digest]
    table = RECORD_SCHEMA.empty_table()
    write_table(staging.store, folders[record] + RECORD, table, checksum, files)
    shard = SourceShard(SplitTotals("val", ONE, 2, 0, 0), 0)
    expected = next((location for location in tars if location == "b" or record == "a"), None)
    layers = Survey(staging, SMALL, shard).find(["a", "b"])
    assert (layers and layers.locations) == (expected and {TAR: folders[expected] + TAR})
    other = dataclasses.replace(BOX, resize=40)
    for digests, config in (("ac", BOX), (["a", None, "b"], BOX), ("ab", other), ("ba", BOX)):
        dropped = dataclasses.replace(SMALL, layers="drop", segment=config)
        layers = Survey(staging, dropped, shard).find(list(digests))
        assert (layers is not None) == (digests == "ba" and config == BOX)


Stored = tuple[GenerateJob, OutputShard, list[SelectedImage], list[Any]]


@pytest.fixture
def stored(small_input: Path, tmp_path: Path) -> Stored:
    """A job whose layers are staged, an output shard with its images, and these images' layers."""
    job = job_of(small_input, tmp_path)
    output, images = planned(job)
    return job, output, images, list(LayerSource(job.store, Cutter(BOX)).layers(images))


def test_samples_are_made_of_layers(stored: Stored) -> None:
    job, output, images, before = stored
    staging, compose = job.output_staging(), ComposeShard(job)
    compose.setup()
    tally, source = Tally(job.progress, "compose", "x"), LayerSource(job.store, Cutter(BOX))
    digests = compose.write_variants(output, source, images[1:], tally)
    for variant, file in zip((ORIGINAL, MIX), digests, strict=True):
        assert file == staging.digest_of(staging.staged(file.path), file.path, len(images) - 1)
        samples = read_parquet(job.store, staging.staged(file.path))
        for sample, (image, layer, tiles) in zip(samples, before[1:], strict=True):
            on = tiles[MIX].tiled if variant == MIX else None
            expected = layer.image if on is None else paste_mask(layer, on)
            assert np.array_equal(decode_image(sample.image), expected)
            other, names = image.backgrounds[MIX], ("key", "label", "wnid")
            drawn = {f"bg_{n}": None if on is None else getattr(other, n) for n in names}
            assert sample.fields | {"label": image.row.label, **drawn} == sample.fields
            assert sample.key == image.row.key


def test_layers_are_the_same_from_tars_and_cut_again(stored: Stored) -> None:
    job, _, images, before = stored
    folder, tar = job.store.below(job.layer_staging().folder), layer_tar("val", 1)
    own = {image.row.key: layer for image, layer, _ in before}
    previous = PreviousLayers(folder, "val", TWO)
    for image, layer, _ in before:
        row = image.row
        assert previous.rows(row.key, row.source_digest) == [row]
        assert np.array_equal(decode_image(previous.layer(row)["image"]), layer.image)
    assert previous.rows(row.key, "another") == []
    whole = folder.read(TAR)
    folder.write(TAR, bytes(len(whole)))
    with pytest.raises(JobError, match=rf"{TAR} is damaged .* Remove it and run the same"):
        list(LayerSource(job.store, Cutter(BOX)).layers(images))
    folder.write(TAR, whole)
    folder.write(tar, bytes(folder.size(tar) or 0))
    alone = [dataclasses.replace(image, backgrounds={}) for image in images]
    with pytest.raises(JobError, match=rf"{tar} is damaged .* Remove it and run the same"):
        next(LayerSource(job.store, Cutter(BOX)).layers(alone))
    folder.delete_all([TAR, tar])
    assert PreviousLayers(folder, "val", TWO).rows(row.key, row.source_digest) == []
    dropped = dataclasses.replace(SMALL, layers="drop")
    images = planned(dataclasses.replace(job, config=dropped))[1]
    again = LayerSource(job.store, Cutter(BOX)).layers(images)
    for (_, layer, tiles), (image, cut, cut_tiles) in zip(before, again, strict=True):
        tiled, key = tiles[MIX].tiled, image.backgrounds[MIX].key
        assert np.array_equal([layer.image, tiled], [cut.image, cut_tiles[MIX].tiled])
        assert key not in own or np.array_equal(tiled, own[key].only_bg_t)
