"""Tests that `in9.open_dataset` and other tools read a dataset, and contradictions in it."""

import io
import json
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import webdataset
from gcs import BUCKET
from PIL import Image
from runs import ONE, QUICK, TINY_MODEL, dataset_in, hash_again, run_here, table_of
from soundness import assert_sound, contradictions

import in9
from pipeline.dataset.reading import DatasetReader
from pipeline.errors import JobError, UsageError
from pipeline.storage.store import Store
from transforms.codec import decode_image
from transforms.taxonomy import IN9_NAMES, imagenet9
from transforms.variants import MIXED, PAPER, VariantName


@pytest.mark.parametrize("variant", ["original", "mixed_rand", "fg_mask"])
def test_hugging_face_datasets_reads_each_variant(
    sample_run: Path, variant: str, tmp_path: Path
) -> None:
    dataset = datasets.load_dataset(str(sample_run), variant, split="val", cache_dir=str(tmp_path))
    assert isinstance(dataset.features["image"], datasets.Image)
    assert dataset.features["label"].names == list(imagenet9().names)
    row = dataset[0]
    assert row["image"].size == (224, 224)
    assert imagenet9().label_of(row["wnid"]) == row["label"]
    assert imagenet9().index_of[row["wnid"]] == row["imagenet_index"]
    assert len(row["box"]) == 4
    is_mixed = variant in MIXED
    assert all((row[name] is not None) == is_mixed for name in ("bg_key", "bg_label", "bg_wnid"))
    if variant == "fg_mask":
        mask = np.asarray(row["image"])
        assert set(np.unique(mask)) == {0, 255}
        assert row["fg_fraction"] == pytest.approx((mask == 255).mean())


def test_both_formats_hold_the_same_samples(sample_run: Path) -> None:
    for variant in ("mixed_next", "fg_mask"):
        table = pq.read_table(sample_run / "parquet" / variant / "val-00000-of-00001.parquet")
        tar = sample_run / "webdataset" / variant / "val-000000.tar"
        samples = webdataset.WebDataset([str(tar)], shardshuffle=False)
        for row, sample in zip(table.to_pylist(), samples, strict=True):
            suffix = "png" if variant == "fg_mask" else "jpg"
            assert row["image"]["path"] == f"{row['key']}.{suffix}"
            assert sample[suffix] == row["image"]["bytes"]
            assert int(sample["cls"]) == row["label"]
            fields = json.loads(sample["json"])
            assert fields == {
                name: value for name, value in row.items() if name not in ("key", "image", "label")
            }


def test_column_types_are_the_contracts(sample_run: Path) -> None:
    schema = pq.read_schema(sample_run / "parquet" / "original" / "val-00000-of-00001.parquet")
    assert schema.names == [
        "key", "image", "label", "wnid", "imagenet_index", "fg_key", "bg_key", "bg_label",
        "bg_wnid", "box", "fg_fraction",
    ]  # fmt: skip
    assert schema.field("image").type == pa.struct({"bytes": pa.binary(), "path": pa.string()})


def test_layers_are_webdataset_samples(sample_run: Path) -> None:
    tars = sorted(str(path) for path in (sample_run / "layers").glob("*.tar"))
    samples = list(webdataset.WebDataset(tars, shardshuffle=False))
    assert len(samples) == 70
    for part in ("image.png", "only_bg_t.png", "mask.png"):
        assert Image.open(io.BytesIO(samples[0][part])).size == (224, 224)


@pytest.mark.usefixtures("no_figures")
def test_either_format_alone_can_be_evaluated(tiny_input: Path, tmp_path: Path) -> None:
    tables = []
    for formats in ("parquet", "webdataset"):
        output = tmp_path / formats
        folders = ("--input", tiny_input, "--output", output, *QUICK, *ONE)
        run_here("run", *folders, "--formats", formats, *TINY_MODEL)
        tables.append([{**row, "dataset": ""} for row in table_of(output, "summary")])
        assert_sound(output)
    assert tables[0] == tables[1]


@pytest.fixture
def copy(sample_run: Path, tmp_path: Path) -> Path:
    """A dataset that a test may damage."""
    return Path(shutil.copytree(sample_run, tmp_path / "copy"))


def contradictions_of(output: Path) -> list[str]:
    return list(contradictions(dataset_in(output)))


@pytest.mark.parametrize("only", ["parquet", "webdataset"])
def test_a_shard_with_another_number_of_samples_is_named(copy: Path, only: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    other = {"parquet": "webdataset", "webdataset": "parquet"}[only]
    manifest["config"]["formats"].remove(other)
    manifest["files"] = [f for f in manifest["files"] if not f["path"].startswith(other)]
    (file,) = (f for f in manifest["files"] if f["path"].startswith(f"{only}/no_fg/"))
    file["samples"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    dataset = dataset_in(copy)
    expected = f"{file['path']} cannot be read .it holds 70 samples, but manifest.json says 71"
    with pytest.raises(JobError, match=expected):
        list(dataset.samples("val", 0, VariantName("no_fg")))
    with pytest.raises(JobError, match=expected):
        list(dataset.tables("val", 0, VariantName("no_fg"), ["key"]))
    assert len(list(dataset.samples("val", 0, VariantName("only_fg")))) == 70


def test_a_swapped_background_behind_a_true_checksum_is_a_contradiction(copy: Path) -> None:
    path = "index/val-00000-of-00001.parquet"
    table = pq.read_table(copy / path)
    names = ["mixed_rand_bg_key", "mixed_next_bg_key"]
    swapped = [dict(zip(names, names[::-1], strict=True)).get(n, n) for n in table.column_names]
    pq.write_table(table.rename_columns(swapped), copy / path)
    hash_again(copy, path)
    lines = contradictions_of(copy)
    assert {line.split("/")[1] for line in lines} == {"mixed_rand", "mixed_next"}
    assert all(": differs from the index at " in line for line in lines)


def test_the_index_accounts_for_every_source_image(sample_run: Path, sample: Path) -> None:
    rows = list(dataset_in(sample_run).index("val"))
    assert {row["path"] for row in rows} == {
        str(path.relative_to(sample)) for path in sample.glob("val/*/*.JPEG")
    }
    selected = {row["key"] for row in rows if row["selected"]}
    for row in rows:
        backgrounds = [row[f"{name}_bg_key"] for name in ("mixed_same", "mixed_rand", "mixed_next")]
        if row["selected"]:
            assert set(backgrounds) <= selected
            assert row["key"] not in backgrounds
        else:
            assert backgrounds == [None] * 3
            assert row["status"] != "accepted"


def test_it_is_a_sequence_of_images_labels_and_what_is_known_of_them(one_worker: Path) -> None:
    dataset = in9.open_dataset(one_worker, "mixed_next")
    assert (dataset.variants, dataset.splits, dataset.classes) == (PAPER, ("val",), IN9_NAMES)
    rows = [
        row
        for file in sorted((one_worker / "parquet" / "mixed_next").glob("*.parquet"))
        for row in pq.read_table(file).to_pylist()
    ]
    assert len(dataset) == len(rows) > 10
    for row, (image, label, meta) in zip(rows, dataset, strict=True):
        assert image.shape == (224, 224, 3)
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, decode_image(row.pop("image")["bytes"]))
        assert label == row.pop("label")
        assert meta == row
        assert meta["bg_label"] not in (None, label)
    assert repr(dataset) == f"<{len(rows)} images of val, mixed_next, in {one_worker}>"


@pytest.mark.parametrize("variant", ["original", "fg_mask"])
@pytest.mark.parametrize("dataset", ["one_worker", "in_tars"])
def test_every_image_is_found_by_position_and_by_key(
    dataset: str, variant: str, request: pytest.FixtureRequest
) -> None:
    opened = in9.open_dataset(request.getfixturevalue(dataset), variant)
    items = list(opened)
    for position, (image, label, meta) in enumerate(items):
        for index in (position, position - len(opened), meta["key"]):
            again = opened[index]
            np.testing.assert_array_equal(again[0], image)
            assert again[1:] == (label, meta)
        assert meta["key"] in opened
    assert len({meta["key"] for _, _, meta in items}) == len(opened) > 10
    for index in (len(opened), -len(opened) - 1):
        with pytest.raises(IndexError, match=f"image {index} of {len(opened)}"):
            opened[index]
    for several in (1.5, slice(2), [0, 1]):
        with pytest.raises(TypeError, match="an image has one position or one key"):
            opened[several]  # type: ignore[index]
    with pytest.raises(KeyError, match="no such"):
        opened["no such"]
    assert "no such" not in opened
    assert 0 not in opened


def test_what_is_not_there_is_said(one_worker: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no finished dataset"):
        in9.open_dataset(tmp_path)
    with pytest.raises(ValueError, match="no variant 'mixed'; the dataset has original, only_bg_b"):
        in9.open_dataset(one_worker, "mixed")
    with pytest.raises(ValueError, match="no split 'train'; the dataset has val"):
        in9.open_dataset(one_worker).select(split="train")


@pytest.mark.parametrize("missing", ["key", "image"])
def test_a_table_of_another_form_is_a_broken_file(
    one_worker: Path, tmp_path: Path, missing: str
) -> None:
    output = Path(shutil.copytree(one_worker, tmp_path / "out"))
    key = in9.open_dataset(one_worker, "original")[0][2]["key"]
    for path in (output / "parquet" / "original").iterdir():
        pq.write_table(pq.read_table(path).drop_columns(missing), path)
        hash_again(output, str(path.relative_to(output)))
    broken = in9.open_dataset(output, "original")
    for index in (0, key):
        with pytest.raises(JobError, match=r"parquet/original/\S+ (cannot be read|is damaged)"):
            broken[index]


def test_a_reader_can_be_pickled_after_it_was_used(one_worker: Path) -> None:
    dataset = in9.open_dataset(one_worker)
    expected = dataset[3][2]["key"]
    again = pickle.loads(pickle.dumps(dataset))
    assert isinstance(again, DatasetReader)
    assert again[3][2]["key"] == expected


@pytest.mark.parametrize("dataset", ["one_worker", "in_tars"])
def test_a_bucket_is_read_as_a_folder_is(
    server: str, dataset: str, request: pytest.FixtureRequest
) -> None:
    here = Store(str(request.getfixturevalue(dataset)))
    bucket = Store.at(f"gs://{BUCKET}/{dataset}")
    paths = [path for path in here.walk("") if "layers/" not in path]
    here.copy_into(bucket, [(path, path) for path in paths])
    local, remote = in9.open_dataset(here.root), in9.open_dataset(bucket.root)
    assert len(remote) == len(local)
    for ours, theirs in ((next(iter(local)), next(iter(remote))), (local[-1], remote[-1])):
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]
