"""Tests that other tools read a dataset as it is, and that `in9 verify` finds its faults."""

import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image
from runs import TINY_MODEL, dataset_in, hash_again, run_in9, table_of
from soundness import assert_sound, contradictions

from pipeline.errors import JobError
from transforms.taxonomy import imagenet9
from transforms.variants import MIXED, PAPER, VariantName


def keys_of(output: Path, variant: str) -> list[str]:
    files = sorted(str(path) for path in (output / "parquet" / variant).glob("*.parquet"))
    keys: list[str] = pyarrow.dataset.dataset(files).to_table(columns=["key"])["key"].to_pylist()
    return keys


def test_every_variant_has_the_same_keys_in_the_same_order(sample_run: Path) -> None:
    original = keys_of(sample_run, "original")
    assert len(original) == 70
    for variant in PAPER:
        assert keys_of(sample_run, variant) == original
        tars = sorted(str(path) for path in (sample_run / "webdataset" / variant).glob("*.tar"))
        samples = webdataset.WebDataset(tars, shardshuffle=False)
        assert [sample["__key__"] for sample in samples] == original


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
    assert imagenet9().index_of(row["wnid"]) == row["imagenet_index"]
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


def test_either_format_alone_can_be_evaluated(tiny_input: Path, tmp_path: Path) -> None:
    tables = []
    for formats in ("parquet", "webdataset"):
        output = tmp_path / formats
        folders = ("--input", tiny_input, "--output", output)
        run_in9("run", *folders, "--formats", formats, *TINY_MODEL)
        tables.append([{**row, "dataset": ""} for row in table_of(output, "summary")])
        assert_sound(output)
    assert tables[0] == tables[1]


@pytest.fixture
def copy(sample_run: Path, tmp_path: Path) -> Path:
    """A dataset that a test may damage."""
    return Path(shutil.copytree(sample_run, tmp_path / "copy"))


def faults(output: Path) -> list[str]:
    done = run_in9("verify", "--dataset", output, check=1)
    lines = done.stdout.splitlines()
    assert f"in9 verify: {len(lines)} fault" in done.stderr
    return lines


def test_verify_finds_missing_and_strange_files_and_run_mends_them(copy: Path) -> None:
    (copy / "webdataset" / "only_fg" / "val-000000.tar").unlink()
    (copy / "layers" / "stray.tar").write_bytes(b"?")
    assert faults(copy) == [
        "webdataset/only_fg/val-000000.tar: missing",
        "layers/stray.tar: not in the manifest",
    ]
    run_in9("generate", "--output", copy, "--pictures", "none")
    run_in9("verify", "--dataset", copy)


def contradictions_of(output: Path) -> list[str]:
    return list(contradictions(dataset_in(output)))


def test_wrong_counts_are_contradictions(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["images"]["val"]["accepted"] += 1
    manifest["rejections"]["val"]["undecodable"] = 4
    manifest["samples"]["val"]["no_fg"]["dog"] += 1
    for file in manifest["files"]:
        if file["path"].startswith(
            ("parquet/only_fg/", "webdataset/only_fg/", "layers/val-00000.")
        ):
            file["samples"] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    lines = contradictions_of(copy)
    assert "index of val: 70 images accepted, the manifest says 71" in lines
    assert any(line.startswith("index of val: rejections") for line in lines)
    assert any(line.startswith("no_fg of val:") for line in lines)
    assert "parquet/only_fg/val-00000-of-00001.parquet: 70 samples, the manifest says 71" in lines
    assert "webdataset/only_fg/val-000000.tar: 70 samples, the manifest says 71" in lines
    assert any(line.startswith("layers/val-00000.parquet:") for line in lines)
    assert any(line.startswith("layers/val-00000.tar:") for line in lines)


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


def test_a_lost_sample_behind_a_true_checksum_is_a_contradiction(copy: Path) -> None:
    path = "parquet/only_bg_t/val-00000-of-00001.parquet"
    pq.write_table(pq.read_table(copy / path).slice(1), copy / path)
    hash_again(copy, path)
    assert "agree" in run_in9("verify", "--dataset", copy).stdout
    assert contradictions_of(copy) == [f"{path}: 69 samples, the index selects 70"]


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
