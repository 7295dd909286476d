"""Tests the totals over all shards, and how Commit puts their files in place."""

import dataclasses
import hashlib
import itertools
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest
from runs import manifest_of, stamps

from pipeline.dataset.config import FORMATS, ComposeConfig, DatasetConfig, SegmentConfig
from pipeline.dataset.manifest import MANIFEST, About, Manifest, read_manifest
from pipeline.dataset.records import (
    STAGING,
    Record,
    ShardCounts,
    Staging,
    index_file,
    layer_record,
    layer_tar,
)
from pipeline.dataset.sinks import sample_files
from pipeline.errors import JobError
from pipeline.generate.commit import (
    INPUT_NOTE,
    PREPARE_LOCK,
    PREPARED_MANIFEST,
    MoveFiles,
    commit,
    finish_step,
    merge_shards,
    prepare_step,
    restate,
)
from pipeline.generate.origin import InputOrigin
from pipeline.generate.shard_elements import OutputShard, SourceShard, SplitTotals
from pipeline.runtime.lock import DATASET_LOCK, locked
from pipeline.storage.store import FileDigest, Store
from transforms.hashing import fingerprint
from transforms.taxonomy import imagenet9

IN9, MIX = imagenet9(), "mixed_rand"
SMALL = DatasetConfig(
    images_per_shard=9,
    segment=SegmentConfig(image_size=32, resize=36, segmenter="box"),
    compose=ComposeConfig(("original", MIX), ("parquet",), encoding="png"),
)
TWO = ShardCounts(2, 2)


def made(store: Store, number: int, content: str = "") -> tuple[SourceShard, OutputShard]:
    def staged(*paths: str) -> Record:
        where = {path: f".in9/staging/{path}" for path in paths}
        files = [
            dataclasses.replace(store.write(s, f"{s}{content}".encode()), path=path)
            for path, s in where.items()
        ]
        return Record(f"{number}{content}", where[paths[-1]], tuple(files), where)

    totals, layers = (
        SplitTotals("val", TWO, 6, 1, 2),
        (f"layers/{number}.tar", f"layers/{number}.parquet"),
    )
    source = SourceShard(totals, number, segmented=3, record=staged(*layers))
    row = {"status": "accepted", "label": number, "selected": True}
    rows = [row, {**row, "status": "small_box", "selected": False}, row]
    index = staged(f"index/{number}.parquet")
    return source, OutputShard(totals, number).with_result(index, rows, len(rows))


def assert_whole(store: Store, fingerprint: str) -> None:
    """Checks that the store holds a whole dataset and nothing else."""
    manifest = read_manifest(store)
    assert manifest is not None
    assert manifest.fingerprint == fingerprint
    files = {*(file.path for file in manifest.files), MANIFEST}
    assert set(store.sizes("")) - {INPUT_NOTE} == files
    assert all(store.digest(file.path) == file.sha256 for file in manifest.files)


def manifest_of_shards(*shards: SourceShard | OutputShard) -> Manifest:
    return merge_shards(SMALL, iter(shards), IN9)[0]


def test_the_sample_is_known_by_its_bytes(sample: Path, tmp_path: Path) -> None:
    pictures = sorted(sample.rglob("*.JPEG"))
    digests = [hashlib.md5(path.read_bytes()).hexdigest() for path in pictures[:2]]
    (a, one), (b, two) = (made(Store(str(tmp_path)), number) for number in (0, 1))

    def manifest_with(*md5: str | None) -> Manifest:
        rows = [
            {"label": 0, "status": "accepted", "selected": True, "source_md5": each} for each in md5
        ]
        rows.append({**rows[0], "status": "small_box", "selected": False, "source_md5": "other"})
        return manifest_of_shards(a, b, one.with_result(one.record, rows, 3), sampled)

    sampled = dataclasses.replace(two, of_sample=2)
    # A rejected picture may come from elsewhere, because it is not in the dataset.
    assert manifest_with(*digests).is_sample
    assert manifest_with(*digests).images["val"]["of_sample"] == 4
    for other in ("0" * 32, None):
        assert not manifest_with(digests[0], other).is_sample
    assert "of_sample" not in manifest_of_shards(a, b, one, two).images["val"]


def test_a_commit_waits_for_all_and_leaves_nothing_else(tmp_path: Path) -> None:
    store, drop = Store(str(tmp_path)), dataclasses.replace(SMALL, layers="drop")
    store.write("parquet/obsolete/val.parquet", b"old")
    store.write("notes.txt", b"mine")
    (a, one), (b, two) = (made(store, number) for number in (0, 1))
    fewer = dataclasses.replace(two, images=2), dataclasses.replace(b, segmented=2)
    for lossy in (
        *((), (a, b), (one, two), (a, b, two), (a, one, two), (a, b, one, two, one)),
        *((a, b, one, two, b), (a, b, one, fewer[0]), (a, fewer[1], one, two)),
    ):
        with pytest.raises(JobError, match=r"val: .* arrived.* Run the same command again"):
            manifest_of_shards(*lossy)
    manifest = manifest_of_shards(two, a, one, b)
    assert manifest_of_shards(a, b, one, two) == manifest
    assert list(manifest.images["val"].values()) == [6, 1, 2, 4, 2, 4]
    assert [*manifest.samples["val"][MIX].values()] == [2, 2, *[0] * 7]
    ((target, source),) = two.record.locations.items()
    data = store.read(source)
    for damage in (store.delete, lambda path: store.write(path, data[1:])):
        damage(source)
        before = store.sizes("")
        with pytest.raises(JobError, match=f"{target} is missing .* Run the same command again"):
            commit(drop, store, IN9, [a, b, one, two])
        assert store.sizes("") == before
    store.write(source, data)
    committed = commit(drop, store, IN9, iter([a, b, one, two]))
    paths, times = [file["path"] for file in manifest_of(tmp_path)["files"]], stamps(tmp_path)
    kept = [f"{folder}/{number}.parquet" for folder in ("index", "layers") for number in (0, 1)]
    assert paths == sorted(["README.md", "classes.txt", "croissant.json", *kept])
    assert set(store.sizes("")) == {*paths, "manifest.json", "notes.txt"}
    assert prepare_step((None, iter([two, None, b, one, a])), drop, store, IN9) == [(committed, [])]
    assert MoveFiles(store).process((committed, [])) == [(committed, 0)]
    assert finish_step((committed, [0]), store, IN9, "", InputOrigin()) == committed
    assert stamps(tmp_path) == times


@pytest.mark.parametrize(("again", "after"), itertools.combinations_with_replacement(range(4), 2))
def test_a_step_that_is_started_again_late_does_no_harm(
    store: Store, again: int, after: int
) -> None:
    """Repeats each of the four steps after itself or after a later one.

    A step on a machine that the runner has lost may end when the job is further on.
    """
    shards = [shard for number in (0, 1) for shard in made(store, number)]
    commit(SMALL, store, IN9, shards)
    # The new dataset replaces one whose records have the same names but other content.
    shards = [shard for number in (0, 1) for shard in made(store, number, "new")]
    committed, moves = prepare_step((None, shards), SMALL, store, IN9)[0]
    first, second = moves[:2], moves[2:]
    steps: list[Callable[[], object]] = [
        lambda: prepare_step((None, shards), SMALL, store, IN9),
        lambda: MoveFiles(store).process((committed, first)),
        lambda: MoveFiles(store).process((committed, second)),
        lambda: finish_step((committed, []), store, IN9, "", InputOrigin()),
    ]
    for number, step in enumerate(steps):
        step()
        if number == after:
            steps[again]()
    assert_whole(store, committed)


def test_lost_moves_are_noticed_and_what_they_have_left_is_replaced(store: Store) -> None:
    for content, moved in (("", 6), ("new", 0), ("newer", 2), ("newest", 6)):
        shards = [shard for number in (0, 1) for shard in made(store, number, content)]
        ((committed, moves),) = prepare_step((None, shards), SMALL, store, IN9)
        MoveFiles(store).process((committed, moves[:moved]))
        assert store.exists(MANIFEST) is False
        if moved == len(moves):
            finish_step((committed, []), store, IN9, "", InputOrigin())
            assert_whole(store, committed)
            continue
        with pytest.raises(JobError, match=r"is missing .* Run the same command again"):
            finish_step((committed, []), store, IN9, "", InputOrigin())
        assert not store.exists(MANIFEST)


def test_a_dataset_is_committed_over_another_one_while_its_lock_is_held(store: Store) -> None:
    with locked(store, DATASET_LOCK) as locked_store:
        for content in ("", "new"):
            assert locked_store.exists(MANIFEST) == bool(content)
            shards = [shard for number in (0, 1) for shard in made(locked_store, number, content)]
            committed = commit(SMALL, locked_store, IN9, shards)
        manifest = read_manifest(store)
        assert manifest is not None
        restate(locked_store, IN9, dataclasses.replace(manifest, about=About("Ann")))
        shards = [dataclasses.replace(shard, record=in_place(shard.record)) for shard in shards]
        for about in (About("Ann"), About("Bob")):
            before = store.read(MANIFEST)
            assert commit(SMALL, locked_store, IN9, shards, about) == committed
            assert (store.read(MANIFEST) == before) == (about == About("Ann"))
    assert_whole(store, committed)


def in_place(record: Record) -> Record:
    """Returns a record whose files have been moved into place."""
    return dataclasses.replace(record, locations={path: path for path in record.locations})


def test_old_records_step_aside_in_one_worker_at_a_time(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    shards = [shard for number in (0, 1) for shard in made(store, number)]
    with ThreadPoolExecutor(1) as other:
        with locked(store, PREPARE_LOCK):
            waiting = other.submit(prepare_step, (None, shards), SMALL, store, IN9)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            assert not store.exists(PREPARED_MANIFEST)
        ((_, moves),) = waiting.result(60)
    assert store.exists(PREPARED_MANIFEST)
    assert len(moves) == 6


def test_what_travels_is_small(tmp_path: Path) -> None:
    """Measures the elements of a shard of a thousand images in all variants and formats."""
    config, store = DatasetConfig(), Store(str(tmp_path))
    totals = SplitTotals("val", ShardCounts.for_images(1000, 1000), 1000, 0, 0)
    staging = Staging(store, f"{STAGING}/{config.compose.fingerprint()}")

    def record_of(*paths: str) -> Record:
        files = [FileDigest(each, 10**8, fingerprint(each) * 2, 1000) for each in paths[:-1]]
        return staging.write(paths[-1], pa.table({"key": ["a"]}), fingerprint(paths), files)

    sources = [
        SourceShard(totals, n, (), 33, record_of(layer_tar("val", n), layer_record("val", n)))
        for n in range(totals.counts.source)
    ]
    records = tuple(source.for_plan().record for source in sources)
    planned = OutputShard(totals, 0, f"{staging.folder}/plan/val.parquet", "0" * 64, records)
    files = sample_files(config.compose.composed, FORMATS, "val", 0, 1)
    rows = [{"status": "accepted", "selected": True, "label": n % 9} for n in range(1000)]
    composed = planned.with_result(record_of(*files, index_file("val", 0, 1)), rows, len(rows))
    for element in (composed, planned):
        assert len(pickle.dumps(element)) < 8000
    for source in sources:
        assert len(pickle.dumps(source.for_plan())) < 1000
        assert len(pickle.dumps(source)) < 1100
