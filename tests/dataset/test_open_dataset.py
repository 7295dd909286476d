"""Tests `in9.open_dataset`, which reads a dataset as (image, label, meta) without Beam."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from gcs import BUCKET
from runs import hash_again, run_python

import in9
from pipeline.dataset.reading import DatasetReader
from pipeline.errors import JobError, UsageError
from pipeline.storage.store import Store
from transforms.codec import decode_image
from transforms.taxonomy import IN9_NAMES
from transforms.variants import PAPER


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


def test_all_variants_are_of_the_same_images(in_tars: Path) -> None:
    dataset = in9.open_dataset(in_tars)
    assert dataset.variant == "original"
    keys = [meta["key"] for _, _, meta in dataset]
    for variant in dataset.variants:
        assert [meta["key"] for _, _, meta in dataset.select(variant)] == keys
    foreground = dataset.select("fg_mask")[0][0] == 255
    silhouette = dataset.select("no_fg")[0][0]
    # The silhouette is black except for JPEG artefacts at its edges.
    assert silhouette[foreground].max() < 32 < silhouette[~foreground].max()


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


def test_neither_beam_nor_torch_is_imported(in_tars: Path) -> None:
    code = (
        "import sys, in9\n"
        "light = set(sys.modules)\n"
        f"assert len(list(in9.open_dataset({str(in_tars)!r}))) > 10\n"
        "print('pyarrow' in light, 'apache_beam' in sys.modules, 'torch' in sys.modules)"
    )
    assert run_python(code).stdout == "False False False\n"


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
