"""Tests the plan of a dataset: which images it has, and which background each of them gets."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.dataset.config import ComposeConfig, DatasetConfig
from pipeline.dataset.records import (
    ACCEPTED,
    RECORD_SCHEMA,
    ImageRow,
    Record,
    ShardCounts,
    layer_record,
    layer_tar,
    write_table,
)
from pipeline.errors import JobError
from pipeline.generate.job import GenerateJob
from pipeline.generate.plan import Plan, PlanSplit, load_plan, select_images
from pipeline.generate.shard_elements import OutputShard, SourceShard, SplitTotals, pack_sources
from pipeline.inputs.location import Location
from pipeline.inputs.source_images import SourceImage
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9
from transforms.variants import with_replicates

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
