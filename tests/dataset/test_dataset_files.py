"""Tests the files of a dataset: writing, finding, reading, verification, holdout and versions."""

import dataclasses
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from runs import dataset_in, run_here

from pipeline.dataset import manifest as latest
from pipeline.dataset import records
from pipeline.dataset import sinks as files
from pipeline.dataset.config import ComposeConfig, DatasetConfig
from pipeline.dataset.folder import Dataset, read_parquet, selected_rows
from pipeline.dataset.manifest import MANIFEST, Manifest
from pipeline.dataset.records import ShardCounts, layer_record, layer_tar
from pipeline.dataset.sinks import TarWriter
from pipeline.errors import JobError, UsageError
from pipeline.storage.store import FileDigest, Store
from transforms.geometry import OutputBox
from transforms.layers import Layer
from transforms.variants import ORIGINAL


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def layer(seed: int) -> Layer:
    rng = np.random.default_rng(seed)
    image, only_bg_t = rng.integers(0, 256, (2, 9, 9, 3), np.uint8)
    return Layer(image, only_bg_t, rng.random((9, 9)) < 0.5, OutputBox(1, 2, 5, 9))


def test_layers_are_found_in_their_tar_as_they_were(store: Store, three_draws: Path) -> None:
    layers = {f"key.{seed}": layer(seed) for seed in range(3)}
    with store.create("a.tar") as file:
        tar = TarWriter(file)
        rows = {k: files.add_layer(tar, k, files.encode_layer(v)) for k, v in layers.items()}
    for key, each in reversed(layers.items()):
        encoded = files.read_layer(store, "a.tar", rows[key])
        read = files.decode_layer(*encoded.values(), box=[1, 2, 5, 9])
        for name in (*files.LAYER_FILES, "box"):
            assert np.array_equal(getattr(read, name), getattr(each, name))
    one, two = layers["key.0"], layers["key.1"]
    changed = [dataclasses.replace(one, **{name: getattr(two, name)}) for name in files.LAYER_FILES]
    changed.append(dataclasses.replace(one, box=one.box._replace(x1=6)))
    assert len({each.digest for each in (one, *changed)}) == 5
    # The digest in a record matches the layer in the tar.
    store = Store(str(three_draws))
    row = next(r for r in records.read_rows(store, layer_record("val", 0)) if r["layer_digest"])
    encoded = files.read_layer(store, layer_tar("val", 0), row)
    read = files.decode_layer(*encoded.values(), box=row["box"])
    assert read.digest == row["layer_digest"]


def test_rows_of_objects_are_of_one_image() -> None:
    keys = (("a", 0), ("b_1", 1), ("b_2", 2))
    rows = [records.ImageRow(key, "", "accepted", object=number) for key, number in keys]
    assert records.count_sources(rows) == 2
    assert [row.source_key for row in rows] == ["a", "b", "b"]


def test_a_shard_is_found_where_its_record_and_files_lie(store: Store) -> None:
    staging, record, tar = records.Staging(store, ".in9/x"), "layers/r.parquet", "layers/a.tar"

    def found(**how: bool) -> tuple[str, dict[str, str]] | None:
        shard = staging.find(record, "f", **how)
        return shard and (shard.path, shard.locations)

    store.write(staging.staged(tar), b"abc")
    files = [FileDigest(tar, 3, store.digest(staging.staged(tar)), 1)]
    assert found() is None  # Files that a killed run staged without a record do not count.
    written = staging.write(record, pa.table({"key": ["a", "b"]}), "f", files)
    assert staging.find(record, "g") is None
    store.write(staging.staged(tar), b"xyz")
    assert found() is None
    store.write(staging.staged(tar), b"abc")
    shard = staging.find(record, "f")
    assert shard is not None
    assert staging.with_record(shard, record, 2) == written
    assert [file.path for file in written.files] == [tar, record]
    assert found() == (staging.staged(record), {tar: staging.staged(tar)})
    store.move(staging.staged(tar), tar)
    assert found() == (staging.staged(record), {tar: tar})
    store.move(staging.staged(record), record)
    assert found() == (record, {tar: tar})
    store.write(tar, b"ab")
    assert (found(), found(need_files=False)) == (None, (record, {}))


def test_each_fault_of_a_dataset_is_a_line(three_draws: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(three_draws, tmp_path / "out"))
    gone, shorter, other = (file.path for file in dataset_in(output).manifest.files[-3:])
    (output / gone).unlink()
    content = (output / shorter).read_bytes()
    (output / shorter).write_bytes(content[:-1])
    flipped = (output / other).read_bytes()
    (output / other).write_bytes(flipped[:-1] + b"?")
    (output / "results").mkdir()
    for extra in ("parquet/extra", "results/extra"):  # Folders without shards may hold other files.
        (output / extra).write_text("")
    printed = run_here("verify", "--dataset", output, code=1)
    assert "in9 verify: 4 faults" in printed.err
    assert printed.out.splitlines() == [
        f"{gone}: missing",
        f"{shorter}: {len(content) - 1} bytes, the manifest says {len(content)}",
        f"{other}: the content has changed (sha256 differs)",
        "parquet/extra: not in the manifest",
    ]


@pytest.mark.parametrize(
    "members",
    [
        {"jpg": b"", "json": b"{}"},
        {"jpg": b"", "cls": b"1", "json": b"{}"},
        {"jpg": b"", "cls": b"1", "json": b"[]"},
        {"jpg": b"", "cls": b"1", "json": b"[" * 200_000},
        {"cls": b"1", "json": b"{}"},
    ],
)
def test_samples_of_another_form_are_a_broken_tar(store: Store, members: dict[str, bytes]) -> None:
    path = "webdataset/original/val-000000.tar"
    with store.create(path) as file:
        tar = TarWriter(file)
        for suffix, data in members.items():
            tar.add(f"key.{suffix}", data)
        tar.close()
    with pytest.raises(JobError, match=rf"{path} cannot be read \((?!it holds).*; see: in9 verify"):
        list(without_files(store, "webdataset").samples("val", 0, ORIGINAL))


@pytest.mark.parametrize("image", [None, {"path": "key.jpg"}, "key.jpg"])
def test_samples_of_another_form_are_a_broken_table(store: Store, image: object) -> None:
    path = "parquet/original/val-00000-of-00001.parquet"
    with store.create(path) as file:
        pq.write_table(pa.Table.from_pylist([{"key": "key", "image": image}]), file)
    dataset = without_files(store, "parquet")
    for read in (
        lambda: dataset.samples("val", 0, ORIGINAL),
        lambda: dataset.tables("val", 0, ORIGINAL, ["key", "label", "image"]),
    ):
        with pytest.raises(JobError, match=rf"{path} cannot be read \((?!it holds)"):
            list(read())


def test_samples_come_back_whole_from_several_row_groups(store: Store) -> None:
    (path,) = files.sample_files([ORIGINAL], ["parquet"], "val", 0, 1)
    fields = dict.fromkeys(field.name for field in files.SAMPLE_FIELDS)
    sizes = (1, files.ROW_GROUP_BYTES, 5, files.ROW_GROUP_BYTES - 6, 1, 7)
    samples = [
        files.Sample(f"k{n}", bytes([n]) * size, "jpg", fields) for n, size in enumerate(sizes)
    ]
    with files.ParquetSink.open(store, path, path, files.sample_schema(["a"])) as sink:
        for sample in samples:
            sink.add(sample)
    assert list(read_parquet(store, path)) == samples
    metadata = pq.read_metadata(store.path(path))
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [2, 3, 1]


def test_a_tar_of_an_empty_shard_has_no_file(store: Store) -> None:
    dataset = without_files(store, "webdataset")
    assert list(dataset.samples("val", 0, ORIGINAL)) == []
    assert list(dataset.tables("val", 0, ORIGINAL, ["key"])) == []


def without_files(store: Store, form: str) -> Dataset:
    """Returns a dataset whose manifest lists no files; the folder may hold some."""
    config = DatasetConfig(compose=ComposeConfig(formats=(form,)))
    shards = {"val": ShardCounts(1, 1)}
    empty: dict[str, dict[str, int]] = {"val": {}}
    return Dataset(store, Manifest(config, "0" * 32, {}, shards, empty, empty, {"val": {}}, (), {}))


def test_groups_are_held_out_as_a_whole_and_shards_as_the_split(
    one_worker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = dataset_in(one_worker)
    for holdout in (0.0, 0.5):
        shards = (selected_rows(dataset, "val", holdout, n) for n in dataset.shards("val"))
        selected = selected_rows(dataset, "val", holdout)
        assert list(itertools.chain(*shards)) == selected
        assert all(row["selected"] for row in selected)
    rows = [
        {"key": str(n), "group": f"g{n % 20}" if n % 2 else None, "selected": True}
        for n in range(200)
    ]
    monkeypatch.setattr(Dataset, "index", lambda *_: iter(rows))
    tested = selected_rows(dataset, "val", 0.4)
    groups = {row["group"] for row in tested if row["group"]}
    assert sum(row["group"] in groups for row in tested) == 10 * len(groups) > 0
    assert tested != selected_rows(dataset, "val") == rows


def test_the_newest_whole_version_is_read_and_none_is_written_into(store: Store) -> None:
    newest, broken, unlisted = (f"v-{number:012x}" for number in (3, 1, 2))
    assert latest.reading_store(store.root) == latest.writing_store("output", store.root) == store
    for age, name in enumerate((newest, unlisted, "v-unlike")):
        store.write(f"{name}/{MANIFEST}", b"{}")
        os.utime(store.path(f"{name}/{MANIFEST}"), (age, age))
    version_list = latest.Latest("f" * 32, (newest, broken))
    store.write(latest.LATEST, version_list.to_json())
    assert latest.read_latest(store) == version_list
    # A version that is older than the list was removed from the list on purpose.
    assert latest.finished_versions(store) == [newest]
    os.utime(store.path(latest.LATEST), (0, 0))
    assert latest.finished_versions(store) == [newest, unlisted]
    assert latest.reading_store(store.root).root == store.path(newest)
    with pytest.raises(UsageError, match=f"{newest} is a published version, .* name the dataset"):
        latest.writing_store("output", store.path(newest))
    store.write(latest.LATEST, b"")
    assert latest.reading_store(store.root).root == store.path(unlisted)
    store.write(
        latest.LATEST, version_list.to_json().replace(b'"manifest": "v-', b'"manifest": "w-')
    )
    with pytest.raises(UsageError, match="parts do not belong together"):
        latest.reading_store(store.root)
