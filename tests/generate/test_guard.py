"""Tests which rebuilds are refused, and which flags accept them."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from runs import Run, darken, everything, keys, pictures_of, run_here, stamps
from soundness import assert_sound

from pipeline.dataset.config import SEGMENT_VERSION, DatasetConfig
from pipeline.dataset.manifest import stage_versions
from pipeline.dataset.records import RECORD_SCHEMA, ShardCounts, Staging, layer_record, write_table
from pipeline.errors import JobError
from pipeline.generate.cut_source import Cutter
from pipeline.generate.previous_layers import check_rebuild
from pipeline.generate.shard_elements import SplitTotals, make_shards
from pipeline.storage.files import LocalFiles
from pipeline.storage.store import Store


def test_a_tenth_of_the_shards_is_made_again_without_being_asked_for(tmp_path: Path) -> None:
    config = DatasetConfig()
    stages = stage_versions(config)
    up_to_date = Cutter(config.segment).identify_shard([])

    def check(count: int, to_make: int) -> None:
        """Checks a rebuild of empty source shards, where `to_make` of them have no record."""
        store = Store(str(tmp_path / f"{count}-{to_make}"))
        totals = SplitTotals("val", ShardCounts(count, count), 0, 0, 0)
        for number in range(to_make, count):
            write_table(store, layer_record("val", number), RECORD_SCHEMA.empty_table(), up_to_date)
        check_rebuild(stages, make_shards((), totals), config, Staging(store, "staging"))

    for count, to_make in ((1, 1), (9, 1), (20, 2), (100, 10), (7, 0)):
        check(count, to_make)
    with pytest.raises(JobError, match=r"3 of 20 source shards .*; files of 3 are missing"):
        check(20, 3)
    stages = {"segment": SEGMENT_VERSION - 1, "segment_fingerprint": "another"}
    with pytest.raises(JobError, match=r"another way now \(segment stage 1, .* has 0\)"):
        check(20, 3)


def test_a_word_of_overwrite_lifts_its_own_guard_alone(
    run_small: Run, small_input: Path, tmp_path: Path
) -> None:
    run_small("generate")
    output = tmp_path / "out"
    before = everything(output)
    others = keys(images_per_shard=6, interpolation="bilinear")
    refused = run_small("generate", *others, "--overwrite", "rebuild", code=2)
    assert " images_per_shard=6 (the dataset has 2), interpolation=bilinear" in refused
    assert "add --overwrite config,rebuild,shards to accept them" in refused
    variants = ("--variants", "original,mixed_next,bg_blurred")
    refused = run_small("generate", *variants, code=2)
    assert "--variants adds mixed_next,bg_blurred and lacks mixed_same,mixed_rand. " in refused
    refused = run_small("generate", *others, "--overwrite", "config", code=2)
    assert " images_per_shard=6" in refused
    assert "interpolation" not in refused
    assert "add --overwrite config,shards to" in refused
    another = str(shutil.copytree(small_input, tmp_path / "another"))
    accepted = ("--overwrite", "config,shards")
    refused = run_small("generate", *others, *accepted, "--input", another, code=1)
    assert "9 of 9 source shards would be made again" in refused
    assert "layers are made in another way now (other flags" in refused
    assert "choose another --output; if that is meant, add --overwrite rebuild" in refused
    refused = run_here(
        "generate", "--output", output, "--overwrite", "config,rebuild,shards", code=2
    ).err
    assert f"was made from {small_input}; " in refused
    assert "add --overwrite input to replace it by the sample" in refused
    for picture in pictures_of(small_input)[1:]:
        picture.unlink()
    size, accepted = keys(images_per_shard=6), ("--overwrite", "shards,config,input")
    refused = run_small("generate", *size, *accepted, code=1)
    assert "17 removed" in refused
    # Refused runs change nothing; the message of one that has begun names its log.
    (output / ".in9" / "generate.log").unlink()
    assert everything(output) == before
    assert "val: 1 image," in run_small("generate", "--overwrite", "rebuild")
    assert_sound(output)


def test_growth_is_not_held_up_and_a_dry_run_tells_what_is(
    run_small: Run, small_input: Path, tmp_path: Path
) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    moved = {picture: aside / picture.name for picture in pictures_of(small_input)[::2]}
    for picture, place in moved.items():
        picture.rename(place)
    run_small("generate")
    for picture, place in moved.items():
        place.rename(picture)
    run_small("generate", "--dry_run")
    grown = run_small("generate")
    assert "val: 18 images" in grown
    made, of = map(int, re.findall(r"shards made: (\d) of (\d) source", grown)[0])
    assert 1 < made > of / 10
    for picture in moved:
        picture.unlink()
    before = stamps(tmp_path / "out")
    told = run_small("generate", "--dry_run", code=1).splitlines()[-1]
    assert "would be made again, more than a tenth: 0 images added, 0 changed, 9 removed" in told
    assert told in run_small("generate", code=1)
    assert stamps(tmp_path / "out") == before


def test_other_pictures_do_not_replace_a_dataset_of_one_shard(
    run_small: Run, small_input: Path
) -> None:
    one_shard = ("generate", *keys(images_per_shard=1024))
    run_small(*one_shard)
    output = small_input.parent / "out"
    before, pictures = stamps(output), pictures_of(small_input)
    renamed = [path.rename(path.with_stem(f"{path.stem}x")) for path in pictures]
    for path in list(small_input.rglob("*.xml")):
        path.rename(path.with_stem(f"{path.stem}x"))
    assert "1 of 1 source shards would be made again" in run_small(*one_shard, code=1)
    assert stamps(output) == before
    # If one of the images remains, it is the same input with many changes.
    renamed[0].rename(pictures[0])
    run_small(*one_shard)
    assert stamps(output) != before


def test_what_may_have_changed_is_told_without_reading_it(
    run_small: Run, small_input: Path, tmp_path: Path
) -> None:
    run_small("generate")
    output, moved = tmp_path / "out", tmp_path / "moved"
    before = stamps(output)
    shutil.copytree(small_input, moved)
    for picture in pictures_of(small_input):
        os.utime(picture)
    assert "18 changed, 0 removed" in run_small("generate", code=1)
    assert stamps(output) == before
    # In another folder, only the sizes of pictures are compared.
    assert "nothing to do" in run_small("generate", "--input", str(moved))
    assert stamps(output) == before
    for picture in pictures_of(small_input)[::4]:
        darken(picture)
    assert "5 changed, 0 removed" in run_small("generate", code=1)
    # Without remembered checksums every picture is read, and found unchanged.
    small_input.rename(tmp_path / "darkened")
    moved.rename(small_input)
    shutil.rmtree(output / ".in9" / "checksums")
    assert "nothing to do" in run_small("generate")
    assert stamps(output) == before
    for record in sorted((output / "layers").glob("*.tar"))[::2]:
        record.unlink()
    assert "0 images added, 0 changed, 0 removed; files of" in run_small("generate", code=1)


def test_a_first_run_reads_each_picture_once(
    run_small: Run, small_input: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def spy(whole: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: LocalFiles, path: str, *limit: int | None) -> Any:
            opened.append(path)
            return whole(self, path, *limit)

        return call

    monkeypatch.setattr(LocalFiles, "read", spy(LocalFiles.read))
    monkeypatch.setattr(LocalFiles, "open", spy(LocalFiles.open))
    pictures = [str(picture) for picture in pictures_of(small_input)]
    run_small("generate", "--direct_num_workers", "1")
    assert sorted(path for path in opened if path in set(pictures)) == pictures
    opened.clear()
    assert "nothing to do" in run_small("generate", "--direct_num_workers", "1")
    assert not set(pictures) & set(opened)


def test_what_a_rebuild_has_finished_is_not_held_up_again(
    run_small: Run, small_input: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_small("generate")
    for picture in pictures_of(small_input)[::4]:
        darken(picture)
    assert "5 changed" in run_small("generate", code=1)

    def move(self: LocalFiles, source: str, target: str) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        # Every shard is segmented and composed, and Commit fails at its first move.
        patch.setattr(LocalFiles, "move", move)
        run_small("generate", "--overwrite", "rebuild", code=1)
    assert "done now: 0 images segmented, 0 composed" in run_small("generate")
