"""Tests stages of a dataset alone: what they list and find, the plan, groups, and schemas."""

import dataclasses
import hashlib
import itertools
import os
import random
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import ONE, keys, run_here

from pipeline.dataset.config import ComposeConfig, DatasetConfig, SegmentConfig
from pipeline.dataset.manifest import read_manifest
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    ImageRow,
    Record,
    ShardCounts,
    Staging,
    layer_record,
    layer_tar,
    write_table,
)
from pipeline.errors import JobError, UsageError
from pipeline.generate.cut_source import Cutter
from pipeline.generate.graph import GenerateDataset, list_split
from pipeline.generate.origin import GenerateJob, InputOrigin
from pipeline.generate.plan import Plan, PlanSplit, load_plan, select_images
from pipeline.generate.previous_layers import Survey
from pipeline.generate.shard_elements import OutputShard, SourceShard, SplitTotals, pack_sources
from pipeline.inputs.layout import find_layout
from pipeline.inputs.lists import read_key_list
from pipeline.inputs.location import Location
from pipeline.inputs.source_images import SourceImage
from pipeline.runtime.progress import Progress
from pipeline.storage.store import FileDigest, Store
from transforms.pairing import NO_PARTNER, Pool, pair
from transforms.selection import has_partners
from transforms.taxonomy import imagenet9
from transforms.variants import MIXED, VariantName, with_replicates

IN9 = imagenet9()
BOX = SegmentConfig(image_size=32, resize=36, segmenter="box")
PAIRED = ComposeConfig(("original", "mixed_rand"), ("parquet",), encoding="png")
SMALL = DatasetConfig(images_per_shard=9, segment=BOX, compose=PAIRED)
TAR, RECORD = layer_tar("val", 0), layer_record("val", 0)
TWO = ShardCounts(2, 2)


def job_of(source: Path, output: Path, config: DatasetConfig = SMALL, **more: Any) -> GenerateJob:
    store, options = Store.at(str(output)), {"previous": {}, "taxonomy": IN9, **more}
    layouts = (find_layout(str(source), None, "val", needs_boxes=False),)
    return GenerateJob(config, layouts, store=store, progress=Progress.for_store(store), **options)


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
    table = tmp_path / "input_table.csv"
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
    seed = dataclasses.replace(SMALL, compose=dataclasses.replace(PAIRED, seed=1))
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
    shard = SourceShard(SplitTotals("val", ShardCounts(1, 1), 2, 0, 0), 0)
    expected = next((location for location in tars if location == "b" or record == "a"), None)
    layers = Survey(staging, SMALL, shard).find(["a", "b"])
    assert (layers and layers.locations) == (expected and {TAR: folders[expected] + TAR})
    other = dataclasses.replace(BOX, resize=40)
    for digests, config in (("ac", BOX), (["a", None, "b"], BOX), ("ab", other), ("ba", BOX)):
        dropped = dataclasses.replace(SMALL, layers="drop", segment=config)
        layers = Survey(staging, dropped, shard).find(list(digests))
        assert (layers is not None) == (digests == "ba" and config == BOX)


COUNTS = ShardCounts(4, 2)
CONFIG = ComposeConfig(variants=("original", "mixed_same", "mixed_rand"), replicates=2)
OF_ALL = {"layer_digest": "d", "only_bg_t_offset": 512, "only_bg_t_length": 9, "wnid": "n01",
          "group": None, "object": None}  # fmt: skip


def rows_of(labels: list[int]) -> list[dict[str, Any]]:
    rows = ({"key": f"k{i}", "label": label} for i, label in enumerate(labels))
    return [{**OF_ALL, **row, "status": ACCEPTED} for row in rows]


def segmented(
    folder: Path, rows: list[dict[str, Any]], sources: dict[str, SourceImage] | None = None
) -> list[SourceShard]:
    totals, shards = SplitTotals("val", COUNTS, len(rows), 0, 0), []
    for i in range(COUNTS.source):
        own = [row for row in rows if COUNTS.source_shard(row["key"]) == i]
        locations = {} if sources else {layer_tar("val", i): f"tar {i}"}
        record = Record(str(i), layer_record("val", i), locations=locations)
        table = pa.Table.from_pylist([{**row, "path": row["key"]} for row in own], RECORD_SCHEMA)
        write_table(Store(str(folder)), record.path, table, record.fingerprint)
        own_rows = [ImageRow(**row) for row in table.to_pylist()]
        packed = pack_sources(own_rows, lambda r: sources[r.source_key]) if sources else b""
        shards.append(SourceShard(totals, i, (), len(own), record, packed))
    return shards


def planned(folder: Path, shards: list[SourceShard]) -> tuple[list[OutputShard], Plan]:
    store = Store(str(folder))
    config = DatasetConfig(compose=CONFIG)
    job = GenerateJob(config, (), imagenet9(), store, Progress.for_store(store), previous={})
    outputs = PlanSplit(job).process(("val", iter(shards)))
    return outputs, load_plan(store, outputs[0].plan, CONFIG, outputs[0].plan_digest)


def test_a_plan_has_the_accepted_rows_and_what_they_are_cut_from(tmp_path: Path) -> None:
    picture, boxes = map(Location, (os.fsdecode(b"/in/\xff.JPEG"), "/in/a.xml"))
    source = SourceImage("street", picture, "", "n01", 0, boxes)
    rows = [{**row, "key": f"street_{n}", "object": n} for n, row in enumerate(rows_of([2] * 9), 1)]
    rows += [{**row, "key": f"bad_{row['key']}", "status": "undecodable"} for row in rows[:3]]
    for sources in (None, {"street": source}):
        plan = planned(tmp_path, segmented(tmp_path, rows, sources))[1]
        assert sorted(plan.keys.to_pylist()) == [f"street_{n}" for n in range(1, 10)]
        (row,) = plan.find(["street_2"])
        assert (row.label, row.only_bg_t_offset, row.only_bg_t_length, row.object) == (2, 512, 9, 2)
        files = [row.source, row.annotation, row.mask, row.tar]
        tar = f"tar {COUNTS.source_shard('street_2')}"
        assert files == (
            [b"/in/\xff.JPEG", b"/in/a.xml", None, None] if sources else [None] * 3 + [tar]
        )


def test_objects_of_a_picture_share_a_group_and_others_have_their_own(tmp_path: Path) -> None:
    rows = [{**row, "group": group} for row, group in zip(rows_of([0] * 4), "abab", strict=True)]
    rows += [{**row, "key": row["group"], "group": None} for row in rows[:2]]
    plan = planned(tmp_path, segmented(tmp_path, rows))[1]
    group_numbers = {row["key"]: row["group_number"] for row in plan.table.to_pylist()}
    assert group_numbers["k0"] == group_numbers["k2"] != group_numbers["k1"] == group_numbers["k3"]
    assert len(set(group_numbers.values())) == 4


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.randoms())
def test_a_plan_does_not_depend_on_order_nor_a_background_on_who_else_is_asked_for(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int], chance: random.Random
) -> None:
    folder, rows = tmp_path_factory.getbasetemp() / "plans", rows_of(labels)
    expected = planned(folder, segmented(folder, rows))[0]
    outputs, plan = planned(folder, chance.sample(segmented(folder, rows), COUNTS.source))
    assert [output.plan_digest for output in outputs] == [o.plan_digest for o in expected]
    assert [[s.fingerprint for s in output.sources] for output in outputs] == [[*"02"], [*"13"]]
    # An image alone in its class cannot be put on a background of the same class.
    keys = [row["key"] for row in rows if labels.count(row["label"]) > 1]
    drawn = plan.backgrounds(keys)
    same, _, rand, rand_again = drawn
    assert tuple(drawn) == with_replicates(("mixed_same", "mixed_rand"), 2)
    assert len(keys) < 9 or drawn[rand] != drawn[rand_again]
    for position, key in enumerate(keys):
        (own,) = plan.find([key])
        assert (own.key, own.tar) == (key, f"tar {COUNTS.source_shard(key)}")
        assert own.label == drawn[same][position].label
        for name, (background,) in plan.backgrounds([key]).items():
            assert background == drawn[name][position] != own
            assert background.selected


def test_classes_are_balanced_after_those_without_partners_have_left() -> None:
    labels, keys = np.asarray([0] * 5 + [1] * 4 + [2]), pa.array([f"k{i}" for i in range(10)])
    counts = {"all": [5, 4, 0, 1], "min": [4, 4, 0, 1], "3": [3, 3, 0, 1], "1": [0, 0, 0, 3]}
    for per_class, expected in counts.items():
        config = ComposeConfig(variants=("mixed_same",), per_class=per_class)
        chosen, without = select_images(keys, labels, config)
        assert [*np.bincount(labels[chosen], minlength=3), without.sum()] == expected


def test_lost_work_is_no_plan_and_a_lost_key_is_called_a_bug(tmp_path: Path) -> None:
    more = segmented(tmp_path, rows_of([0, 0, 1, 1]))
    shards = segmented(tmp_path, rows_of([0, 0, 1]))
    for arrived in (shards[:3], [*shards, shards[0]], [more[0], *shards[1:]]):
        with pytest.raises(JobError, match=r"val: \d of 4 shards .* Run the same command again"):
            planned(tmp_path, arrived)
    plan = planned(tmp_path, shards)[1]
    for key in ("", "k00", "z"):
        with pytest.raises(JobError, match=f"{key} is accepted and not in the plan"):
            plan.find([key])


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


def test_scenes_are_drawn_evenly_and_stay_when_one_is_added() -> None:
    scenes, keys = [f"scene_{i}" for i in range(50)], [f"image_{i}" for i in range(2000)]

    def draw(scenes: list[str], number: int = 0) -> np.ndarray:
        pool = Pool.from_images(scenes, np.zeros(len(scenes), np.int64), seed=0)
        name = VariantName("mixed_external", draw=number)
        return pair(pool, np.zeros(2000, np.int64), keys, name, seed=0, own_background=True)

    before = draw(scenes)
    assert np.bincount(before, minlength=50).min() > 5
    changed = draw([*scenes, "another"]) != before
    assert 0 < changed.mean() < 0.08
    assert (draw(scenes, 1) == before).mean() < 0.1


TWO_EACH = ("--image_size", 32, *keys(resize=32), "--limit", 2, "--variants", "original", *ONE)


def schemas(output: Path) -> dict[str, list[tuple[str, str]]]:
    """Reads (name, type) of the columns for each kind of file."""
    by_kind = {}
    for kind in ("layers", "index", "parquet/original"):
        (path, *_) = sorted((output / kind).glob("*.parquet"))
        by_kind[kind] = [(field.name, str(field.type)) for field in pq.read_schema(path)]
    return by_kind


def test_flags_do_not_change_schemas(small_sample: Path, tmp_path: Path) -> None:
    ways = {
        "plain": ("--segmenter", "box"),
        "whole": ("--selection", "in9l"),
        "objects": ("--segmenter", "box", "--objects", "each"),
    }
    by_way = {}
    for name, flags in ways.items():
        output = tmp_path / name
        run_here("generate", "--input", small_sample, "--output", output, *TWO_EACH, *flags)
        by_way[name] = schemas(output)
    assert by_way["plain"] == by_way["whole"] == by_way["objects"]
    assert {dict(columns)["label"] for columns in by_way["plain"].values()} == {"int64"}


@pytest.mark.parametrize("kind", [SegmentConfig, ComposeConfig, DatasetConfig])
def test_a_flag_that_is_new_and_changes_nothing_makes_nothing_again(
    kind: type[SegmentConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value = {
        SegmentConfig: ("crop", "center"),
        ComposeConfig: ("replicates", 1),
        DatasetConfig: ("taxonomy", None),
    }[kind]
    before = kind().fingerprint()
    monkeypatch.setattr("pipeline.dataset.config._FLAGS_ADDED_AFTER_1_0", {name: value})
    # This is the fingerprint from before the flag existed.
    without = kind().fingerprint()
    assert without != before
    monkeypatch.setattr("pipeline.dataset.config._FLAGS_ADDED_AFTER_1_0", {name: "another"})
    assert kind().fingerprint() == before
