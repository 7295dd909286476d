"""Tests recipes: a dataset is exported without its pixels, and made again from its pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import (
    ONE,
    QUICK,
    SHARDS,
    manifest_of,
    pictures_of,
    refusal,
    results_of,
    run_here,
    stamps,
)
from shapes import SHAPES


def export(dataset: Path, target: Path) -> Path:
    run_here("export", "--dataset", dataset, "--layout", "recipe", "--to", target)
    return target


def flat(source: Path, target: Path) -> None:
    """Copies the pictures of an input into one folder, without classes and boxes."""
    (target / "val").mkdir(parents=True)
    for picture in pictures_of(source):
        shutil.copy(picture, target / "val")


def again(recipe: Path, source: Path, output: Path, *flags: object) -> None:
    command = ("generate", "--recipe", recipe, "--input", source, "--output", output)
    run_here(*command, *ONE, *flags)


@pytest.fixture(scope="module")
def recipe(one_worker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of 18 pictures in several shards."""
    return export(one_worker, tmp_path_factory.mktemp("recipe") / "r")


@pytest.fixture(scope="module")
def quick(small_sample: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small dataset that is made quickly, and its recipe. Tests must not change them."""
    folder = tmp_path_factory.mktemp("quick")
    command = ("generate", "--input", small_sample, *QUICK, *SHARDS, *ONE, "--output")
    run_here(*command, folder / "out")
    return folder / "out", export(folder / "out", folder / "recipe")


def test_every_file_is_the_same_without_segmenting(
    recipe: Path, one_worker: Path, small_sample: Path, tmp_path: Path
) -> None:
    flat(small_sample, tmp_path / "input")
    again(recipe, tmp_path / "input", tmp_path / "out")
    assert results_of(tmp_path / "out") == results_of(one_worker)


@pytest.mark.parametrize("shape", ["val_tar", "webdataset", "parquet"])
def test_every_file_is_the_same_from_any_layout(
    quick: tuple[Path, Path],
    small_sample: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    shape: str,
) -> None:
    dataset, recipe = quick
    (tmp_path / "input").mkdir()
    SHAPES[shape](small_sample, tmp_path / "input")
    for boxes in (tmp_path / "input").glob("*bbox*"):
        boxes.unlink()
    again(recipe, tmp_path / "input", tmp_path / "out")
    assert results_of(tmp_path / "out") == results_of(dataset)
    files = len(manifest_of(dataset)["files"]) + 1
    assert f"recipe: all {files} files are the recipe's, byte for byte" in capsys.readouterr().out


def test_a_recipe_holds_no_pixel_and_is_small(recipe: Path, one_worker: Path) -> None:
    assert sorted(path.name for path in recipe.iterdir()) == [
        "README.md",
        "croissant.json",
        "recipe.parquet",
    ]
    table = pq.read_table(recipe / "recipe.parquet")
    assert not {"image", "image_offset", "only_bg_t_offset"} & set(table.column_names)
    metadata = pq.ParquetFile(recipe / "recipe.parquet").metadata
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    columns = [group.column(n) for group in groups for n in range(group.num_columns)]
    masks = [c for c in columns if c.path_in_schema == "mask"]
    assert sum(c.total_compressed_size for c in masks) < 350 * table["mask"].drop_null().length()
    assert len(groups) == manifest_of(one_worker)["shards"]["val"]["output"]


def test_a_repeated_run_and_later_ones_go_by_the_copy(
    quick: tuple[Path, Path],
    small_input: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset, recipe = quick
    shutil.rmtree(small_input / "Annotations")
    output = tmp_path / "out"
    again(recipe, small_input, output)
    before = stamps(output)
    capsys.readouterr()
    later = ("generate", "--input", small_input, "--output", output, *ONE)
    run_here(*later)
    assert "nothing to do" in capsys.readouterr().out
    assert stamps(output) == before
    run_here(*later, "--dry_run")
    assert "dataset: up to date" in capsys.readouterr().out
    run_here("verify", "--dataset", output)
    run_here(*later, "--layers", "drop", "--overwrite", "config")
    assert not list(output.glob("layers/*.tar"))
    capsys.readouterr()
    # Compose cuts again, along the masks of the copy; these are the pictures that GrabCut... made.
    run_here(*later, "--layers", "drop", "--seed", 5, "--overwrite", "config")
    assert "a dataset of its own, from the recipe's masks" in capsys.readouterr().out
    other = tmp_path / "other"
    run_here(
        "generate",
        "--input",
        dataset_input(dataset),
        *QUICK,
        *SHARDS,
        *ONE,
        "--seed",
        5,
        "--output",
        other,
    )
    for path in sorted(other.glob("parquet/*/*")):
        assert (output / path.relative_to(other)).read_bytes() == path.read_bytes()
    copy = output / ".in9" / "recipe.parquet"
    copy.write_bytes(copy.read_bytes()[:-1])
    assert "cannot be used" in refusal(capsys, *later)
    copy.unlink()
    assert "no annotations" in refusal(capsys, *later)


def dataset_input(dataset: Path) -> str:
    """Returns the input that a dataset was made from."""
    return (dataset / ".in9" / "input.json").read_text().strip('"')
