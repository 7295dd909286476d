"""Tests that records, index and samples each have one schema, whatever the flags are."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import ONE, keys, run_in9

from pipeline.dataset import config
from pipeline.dataset.config import ComposeConfig, DatasetConfig, SegmentConfig

SMALL = ("--image_size", 32, *keys(resize=32), "--limit", 2, "--variants", "original", *ONE)


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
        run_in9("generate", "--input", small_sample, "--output", output, *SMALL, *flags)
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
    monkeypatch.setattr(config, "_FLAGS_ADDED_AFTER_1_0", {name: value})
    # This is the fingerprint from before the flag existed.
    without = kind().fingerprint()
    assert without != before
    monkeypatch.setattr(config, "_FLAGS_ADDED_AFTER_1_0", {name: "another"})
    assert kind().fingerprint() == before
