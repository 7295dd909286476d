"""Tests that stored bytes are verified where they are read: by page, by file, by layer."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from gcs import BUCKET
from runs import ONE, SHARDS, TINY_MODEL, Printed, dataset_in, keys, results_of, run_here

import in9
from pipeline.dataset import folder
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_image_rows
from pipeline.errors import JobError
from pipeline.storage.state_files import parquet_reader
from pipeline.storage.store import Store
from transforms.codec import UndecodableError, check_png, decode_image, decode_png, encode_png
from transforms.variants import ORIGINAL, VariantName

pytestmark = pytest.mark.usefixtures("no_figures")

MODEL = (*TINY_MODEL, "--pictures", "none")
TARS = ("--formats", "webdataset")
READERS: dict[str, Callable[[Path], tuple[object, ...]]] = {
    "evaluate": lambda out: ("evaluate", "--dataset", out, *MODEL),
    "attack": lambda out: ("attack", "--dataset", out, *MODEL),
    "saliency": lambda out: ("saliency", "--dataset", out, *MODEL),
    "train": lambda out: (
        *("train", "--dataset", out, "--variant", "original", "--arch", "resnet10t"),
        *("--train_split", "val", "--epochs", 1, "--output", out.parent / "trained"),
    ),
    "export": lambda out: ("export", "--dataset", out, "--to", out.parent / "exported"),
    "answers": lambda out: (
        *("export", "--dataset", out, "--layout", "answers", "--to", out.parent / "a.parquet"),
    ),
    "publish": lambda out: (
        *("report", "--dataset", out, "--pictures", "none"),
        *("--publish", out.parent / "published"),
    ),
}
"""Commands that read pictures, by name."""


def make(output: Path, pictures: Path, *flags: object, code: int = 0) -> Printed:
    """Makes a small dataset in several shards in this process, which must exit with `code`."""
    size = ("--segmenter", "box", "--image_size", 64, *keys(resize=64), *SHARDS, *ONE)
    return run_here("generate", "--input", pictures, "--output", output, *size, *flags, code=code)


@pytest.fixture(autouse=True)
def nothing_is_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets each test begin as a new process does."""
    monkeypatch.setattr(folder, "_verified", set())


@pytest.fixture(scope="module")
def unchecked(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose Parquet files have no page checksums, so that others must find damage."""

    class Writer(pq.ParquetWriter):  # type: ignore[misc]
        def __init__(self, *arguments: Any, write_page_checksum: bool, **options: Any) -> None:
            super().__init__(*arguments, **options)

    output = tmp_path_factory.mktemp("before") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pq, "ParquetWriter", Writer)
        make(output, small_sample)
    return output


def line_of(printed: Printed) -> str:
    """Returns the text on standard error as one line."""
    return " ".join(printed.err.split())


def flip(path: Path, at: float = 0.5) -> Path:
    """Flips a bit of two bytes of a file."""
    data = bytearray(path.read_bytes())
    for place in (int(len(data) * at), int(len(data) * at) + 9):
        data[place] ^= 0x10
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("reader", "dataset", "layout"),
    [
        *((reader, "unchecked", "parquet") for reader in READERS),
        *((reader, "in_tars", "webdataset") for reader in ("evaluate", "train", "export")),
    ],
)
def test_no_command_takes_a_picture_that_has_changed(
    reader: str, dataset: str, layout: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(request.getfixturevalue(dataset), tmp_path / "out"))
    shutil.rmtree(output / "results", ignore_errors=True)
    victim = flip(sorted((output / layout / "original").iterdir())[-1])
    said = line_of(run_here(*READERS[reader](output), code=1))
    assert f"{victim} is missing or has changed since it was committed; remove it, and run" in said
    # Nothing is stored under the digest of bytes that were not read.
    assert not list(output.glob("results/*/*/val-00002.parquet"))


def test_a_changed_picture_is_no_work_and_removing_it_is(
    in_tars: Path, small_sample: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(in_tars, tmp_path / "out"))
    victim = flip(output / "webdataset" / "mixed_rand" / "val-000001.tar")
    assert "nothing to do" in make(output, small_sample, *TARS).out
    victim.unlink()
    make(output, small_sample, *TARS)
    assert results_of(output) == results_of(in_tars)


def test_what_was_damaged_and_mended_is_published_whole(
    in_tars: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    output = Path(shutil.copytree(in_tars, tmp_path / "out"))
    # No report reads layers, so publishing alone can find this.
    victim = sorted((output / "layers").glob("*.tar"))[-1]
    sound = victim.read_bytes()
    flip(victim)
    run_here(*READERS["publish"](output), code=1)
    victim.unlink()
    victim.write_bytes(sound)
    monkeypatch.setattr(folder, "_verified", set())
    run_here(*READERS["publish"](output))
    printed = run_here("verify", "--dataset", tmp_path / "published").out
    assert "files agree with manifest.json" in printed


def test_every_parquet_file_has_page_checksums(small_run: Path, tmp_path: Path) -> None:
    of_run = ("export", "--dataset", small_run, "--layout")
    run_here(*of_run, "recipe", "--to", tmp_path / "recipe")
    run_here(*of_run, "answers", "--to", tmp_path / "answers.parquet")
    paths = [path for path in small_run.rglob("*.parquet") if pq.read_metadata(path).num_rows]
    kinds = {path.relative_to(small_run).parts[0] for path in paths}
    paths += tmp_path.rglob("*.parquet")
    assert kinds >= {"index", "layers", "parquet", "results"}
    for path in paths:
        chunk = pq.read_metadata(path).row_group(0).column(0)
        data = bytearray(path.read_bytes())
        data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 1
        end = chunk.data_page_offset + chunk.total_compressed_size
        data[end - 1 if chunk.dictionary_page_offset is None else chunk.data_page_offset - 1] ^= 1
        with (
            pytest.raises(OSError, match=r"CRC|page header"),
            parquet_reader(io.BytesIO(bytes(data))) as file,
        ):
            file.read()


def test_access_by_position_and_key_and_of_labels_alone_is_verified(
    unchecked: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(unchecked, tmp_path / "out"))
    for path in (output / "parquet" / "original").iterdir():
        flip(path)
    reader = in9.open_dataset(output, "original")
    key = next(iter(in9.open_dataset(output, "fg_mask")))[2]["key"]
    labels = reader.dataset.tables("val", 0, ORIGINAL, ("key", "label"))
    reads = (lambda: reader[0], lambda: reader[key], lambda: next(iter(reader)))
    for read in (*reads, lambda: next(labels)):
        with pytest.raises(JobError, match=r"original/\S+ is missing or has changed since"):
            read()


def test_an_object_is_verified_while_it_is_downloaded(server: str, unchecked: Path) -> None:
    here, bucket = Store(str(unchecked)), Store.at(f"gs://{BUCKET}/verified")
    here.copy_into(bucket, [(path, path) for path in here.walk("") if "results/" not in path])
    dataset, local = Dataset.open(bucket), dataset_in(unchecked)
    for _ in range(2):
        assert list(dataset.samples("val", 0, VariantName("only_fg"))) == list(
            local.samples("val", 0, VariantName("only_fg"))
        )
    (file,) = dataset.shard_files("val", 1, (VariantName("only_fg"),))
    data = bytearray(bucket.read(file.path))
    data[len(data) // 2] ^= 1
    bucket.write(file.path, bytes(data))
    with pytest.raises(JobError, match=r"verified/parquet/only_fg/\S+ is missing or has changed"):
        next(dataset.samples("val", 1, VariantName("only_fg")))


def test_checksums_of_a_png_find_what_decoding_does_not() -> None:
    y, x = np.mgrid[:24, :24]
    pixels = np.stack([x * 9, y * 9, x + y], axis=2).astype(np.uint8)
    png, silent = encode_png(pixels), 0
    check_png(png)
    np.testing.assert_array_equal(decode_png(png), pixels)
    for place in range(8 * len(png)):
        data = bytearray(png)
        data[place // 8] ^= 1 << place % 8
        with contextlib.suppress(UndecodableError):
            if not np.array_equal(decode_image(bytes(data)), pixels):
                silent += 1
                for checked in (check_png, decode_png):
                    with pytest.raises(UndecodableError):
                        checked(bytes(data))
    assert silent, "decoding alone finds every changed bit"


@pytest.mark.parametrize(("at", "flag"), [(0.03, "--seed"), (0.31, "--replicates")])
def test_compose_takes_no_layer_that_has_changed(
    at: float, flag: str, in_tars: Path, small_sample: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(in_tars, tmp_path / "out"))
    victim = flip(sorted((output / "layers").glob("*.tar"))[-1], at)
    before = results_of(output)
    flags = (*TARS, flag, 2, "--overwrite", "config")
    said = line_of(make(output, small_sample, *flags, code=1))
    assert f"{victim} is damaged" in said
    assert "Remove it and run the same command again" in said
    assert results_of(output) == before


def test_another_layer_of_the_same_size_is_found(
    in_tars: Path, small_sample: Path, tmp_path: Path
) -> None:
    """Tests a whole layer that takes the place of another one, with true checksums in its PNGs."""
    output = Path(shutil.copytree(in_tars, tmp_path / "out"))
    record = sorted((output / "layers").glob("*.parquet"))[-1]
    row = next(
        row for row in read_image_rows(Store(str(output)), f"layers/{record.name}") if row.box
    )
    tar, start, end = (
        record.with_suffix(".tar"),
        row.image_offset,
        row.image_offset + row.image_length,
    )
    data = tar.read_bytes()
    pixels = decode_image(data[start:end])
    others = (pixels ^ (np.arange(pixels.size) == n).reshape(pixels.shape) for n in range(999))
    other = next(png for png in map(encode_png, others) if len(png) == end - start)
    tar.write_bytes(data[:start] + other + data[end:])
    flags = (*TARS, "--seed", 1, "--overwrite", "config")
    said = line_of(make(output, small_sample, *flags, code=1))
    assert f"{tar} is damaged (its layer of {row.key} is another)" in said
