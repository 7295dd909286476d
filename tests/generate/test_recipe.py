"""Tests recipes: a dataset is exported without its pixels, and made again from its pictures."""

import base64
import json
import re
import shutil
import sys
import zlib
from hashlib import md5, sha256
from pathlib import Path
from typing import Any

import mlcroissant
import pyarrow.parquet as pq
import pytest
from foreign_recipes import changed, with_flag, with_library
from PIL import Image
from runs import (
    ONE,
    QUICK,
    SHARDS,
    darken,
    index_of,
    keys,
    manifest_of,
    pictures_of,
    refusal,
    results_of,
    run_here,
    stamps,
)
from shapes import SHAPES

from pipeline.dataset.records import read_image_rows, read_metadata
from pipeline.generate import recipe as recipes
from pipeline.storage.store import Store


def export(dataset: Path, target: Path) -> Path:
    run_here("export", "--dataset", dataset, "--layout", "recipe", "--to", target)
    return target


def making(recipe: Path, source: Path, output: Path, *flags: object) -> tuple[object, ...]:
    """Returns the command that makes a dataset from a recipe."""
    command = ("generate", "--recipe", recipe, "--input", source, "--output", output)
    return (*command, *ONE, *flags)


def again(recipe: Path, source: Path, output: Path, *flags: object) -> str:
    return run_here(*making(recipe, source, output, *flags)).out


@pytest.fixture(scope="module")
def recipe(one_worker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of 18 pictures in several shards."""
    return export(one_worker, tmp_path_factory.mktemp("recipe") / "r")


@pytest.fixture(scope="module")
def quick(quick_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A small dataset that is made quickly, and its recipe. Tests must not change them."""
    return quick_shards, export(quick_shards, tmp_path_factory.mktemp("quick") / "recipe")


def test_every_file_is_the_same_without_segmenting(
    recipe: Path, one_worker: Path, small_sample: Path, tmp_path: Path
) -> None:
    """Makes it from the validation set as downloaded, without boxes, so without classes, too."""
    (tmp_path / "input").mkdir()
    SHAPES["val_tar"](small_sample, tmp_path / "input")
    for boxes in (tmp_path / "input").glob("*bbox*"):
        boxes.unlink()
    printed = again(recipe, tmp_path / "input", tmp_path / "out")
    assert results_of(tmp_path / "out") == results_of(one_worker)
    files = len(manifest_of(one_worker)["files"])
    assert f"recipe: all {files} files and the manifest are the recipe's, byte for byte" in printed


def test_what_the_maker_states_is_in_the_recipe_and_comes_back(
    quick: tuple[Path, Path], small_sample: Path, tmp_path: Path
) -> None:
    shutil.copytree(quick[0], tmp_path / "stated")
    stated = keys(creator="Ann", contact="https://example.org", terms="CC BY 4.0")
    make = ("generate", "--input", small_sample, *QUICK, *SHARDS, *ONE, "--output")
    # A recipe holds masks, and no picture.
    run_here(*make, tmp_path / "stated", *keys(terms="masks: CC BY 4.0"))
    of_masks = export(tmp_path / "stated", tmp_path / "of_masks") / "croissant.json"
    assert json.loads(of_masks.read_text())["license"] == "CC BY 4.0"
    run_here(*make, tmp_path / "stated", *stated)
    recipe = export(tmp_path / "stated", tmp_path / "recipe")
    card = (recipe / "README.md").read_text()
    assert "\nTerms stated by its maker: CC BY 4.0\n" in card
    assert "Made by Ann. Contact: https://example.org\n" in card
    croissant = json.loads((recipe / "croissant.json").read_text())
    assert (croissant["creator"]["name"], croissant["license"]) == ("Ann", "CC BY 4.0")
    checked = mlcroissant.Dataset(jsonld=str(recipe / "croissant.json"))
    assert checked.metadata.issues.errors == set()
    again(recipe, small_sample, tmp_path / "out")
    assert results_of(tmp_path / "out") == results_of(tmp_path / "stated")
    told = "recipe: all pictures are equal; the card differs, because creator was set\n"
    assert told in again(recipe, small_sample, tmp_path / "out", *keys(creator="Bob"))
    printed = again(recipe, small_sample, tmp_path / "out", *keys(terms="none"))
    assert "differs, because creator and terms were set\n" in printed
    again(recipe, small_sample, tmp_path / "out", *keys(terms="CC BY 4.0"))
    # Bob stays, although a recipe is another source of the name.
    again(recipe, small_sample, tmp_path / "out")
    expected = {"creator": "Bob", "contact": "https://example.org", "terms": "CC BY 4.0"}
    assert manifest_of(tmp_path / "out")["about"] == expected


def test_a_recipe_holds_no_pixel_and_is_small(recipe: Path, one_worker: Path) -> None:
    names = {path.name for path in recipe.iterdir()}
    assert names == {"README.md", "croissant.json", "recipe.parquet"}
    table = pq.read_table(recipe / "recipe.parquet")
    assert not {"image", "image_offset", "only_bg_t_offset"} & set(table.column_names)
    card = json.loads((recipe / "croissant.json").read_text())
    digest = sha256((recipe / "recipe.parquet").read_bytes()).hexdigest()
    assert [file["sha256"] for file in card["distribution"]] == [digest]
    metadata = pq.ParquetFile(recipe / "recipe.parquet").metadata
    packed = zlib.decompress(base64.b64decode(metadata.metadata[b"in9"]))
    assert json.loads(packed) == manifest_of(one_worker)
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    columns = [group.column(n) for group in groups for n in range(group.num_columns)]
    masks = [c for c in columns if c.path_in_schema == "mask"]
    assert sum(c.total_compressed_size for c in masks) < 350 * table["mask"].drop_null().length()
    assert len(groups) == manifest_of(one_worker)["shards"]["val"]["output"]


def test_a_repeated_run_and_later_ones_go_by_the_copy(
    quick: tuple[Path, Path], small_sample: Path, small_input: Path, tmp_path: Path
) -> None:
    shutil.rmtree(small_input / "Annotations")
    output = tmp_path / "out"
    own = ("--layers", "drop", "--overwrite", "config")
    again(quick[1], small_input, output, *own)
    assert not list(output.glob("layers/*.tar"))
    before = stamps(output)
    later = ("generate", "--input", small_input, "--output", output, *ONE, *own)
    assert "nothing to do" in run_here(*later).out
    assert stamps(output) == before
    assert "dataset: up to date" in run_here(*later, "--dry_run").out
    # There are no layers, so Compose cuts along the masks of the copy.
    printed = run_here(*later, "--seed", 5).out
    assert "this is a dataset of its own, from the recipe's masks" in printed
    segment = ("generate", "--input", small_sample, *QUICK, *SHARDS, *ONE, "--seed", 5)
    run_here(*segment, "--output", tmp_path / "other")
    for path in sorted((tmp_path / "other").glob("parquet/*/*")):
        same = output / path.relative_to(tmp_path / "other")
        assert same.read_bytes() == path.read_bytes()
    copy = output / ".in9" / "recipe.parquet"
    copy.write_bytes(copy.read_bytes()[:-1])
    assert "cannot be used" in refusal(*later)
    copy.unlink()
    assert "no annotations" in refusal(*later)


def add_boxes(source: Path) -> None:
    """Adds a second box, which begins in line 3, to each picture of an input."""
    for xml in sorted((source / "Annotations" / "val").iterdir()):
        text = xml.read_text()
        (box,) = re.findall(r"<object>.*</object>", text, re.DOTALL)
        second = re.sub(r"(?<=<ymin>)\d+", "3", box)
        xml.write_text(text.replace(box, box + second))


def test_layers_of_another_library_are_made_again(
    tiny_input: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segmenter that changes without another version stands for another library.

    Only the second of the two objects of each picture has another mask.
    """
    update = tmp_path / "update"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "library_of_masks.py").write_text(
        "import pathlib\n\nimport numpy as np\n\n\n"
        "def cut(image, box):\n    mask = np.zeros(image.shape[:2], bool)\n"
        "    mask[box.ymin : box.ymax, box.xmin : box.xmax] = True\n"
        f"    if box.ymin <= 3 and pathlib.Path({str(update)!r}).exists():\n"
        "        mask[:, (box.xmin + box.xmax) // 2 :] = False\n"
        "    return mask\n"
    )
    add_boxes(tiny_input)
    own = ("--segmenter", "python:library_of_masks:cut")
    # Backgrounds do not tell Compose that a foreground has another layer.
    flags = (*QUICK[2:], *ONE, *own, "--objects", "each", "--variants", "only_fg,original")
    command = ("generate", "--input", tiny_input, *flags, "--output")
    run_here(*command, tmp_path / "right")
    recipe = export(tmp_path / "right", tmp_path / "recipe")
    update.touch()
    run_here(*command, tmp_path / "out")
    right, wrong = results_of(tmp_path / "right"), results_of(tmp_path / "out")
    differ = {path.partition("/")[0] for path in right if right[path] != wrong[path]}
    assert {"layers", "parquet"} <= differ
    again(recipe, tiny_input, tmp_path / "out", *own)
    assert results_of(tmp_path / "out") == right


def test_a_duplicate_stays_one_if_its_shard_is_made_again(
    small_input: Path, tmp_path: Path
) -> None:
    first, *_ = pictures_of(small_input)
    shutil.copy(first, first.with_suffix(".png"))
    output = tmp_path / "out"
    run_here("generate", "--input", small_input, *QUICK, *SHARDS, *ONE, "--output", output)
    before = sorted((row["key"], row["status"]) for row in index_of(output))
    assert (first.stem, "duplicate_key") in before
    recipe = export(output, tmp_path / "recipe")
    again(recipe, small_input, output, *keys(images_per_shard=4), "--overwrite", "config,shards")
    assert sorted((row["key"], row["status"]) for row in index_of(output)) == before


def test_without_layers_there_are_masks_of_selected_images_only(
    small_input: Path, tmp_path: Path
) -> None:
    flags = (*QUICK, *SHARDS, *ONE, "--layers", "drop", "--output")
    out, dataset = tmp_path / "out", tmp_path / "dataset"
    run_here("generate", "--input", small_input, *flags, dataset)
    recipe = export(dataset, tmp_path / "recipe")
    command = making(recipe, small_input, out)
    others = changed(recipe, tmp_path / "others", {}, with_flag("per_class", "1"))
    line = refusal(*making(others, small_input, out, "--allow_partial"))
    assert "masks of the selected images only" in line
    no_mask = changed(recipe, tmp_path / "no_mask", {"mask": lambda old: None})
    printed = run_here(*making(no_mask, small_input, out), code=1).err
    assert "is selected, and the recipe has no mask of it" in printed

    # Existing shards of other numbers do not matter for the tars that the records name.
    shutil.copytree(small_input, tmp_path / "few")
    for picture in pictures_of(tmp_path / "few")[3:]:
        picture.unlink()
    shutil.rmtree(out)
    run_here("generate", "--input", tmp_path / "few", *flags, out, "--own_background")
    recipes.row_group.cache_clear()
    run_here(*command, "--overwrite", "config,input,rebuild,shards")
    assert results_of(out) == results_of(dataset)
    # No stage opens the file again for each image.
    assert recipes.row_group.cache_info().misses == manifest_of(dataset)["shards"]["val"]["output"]

    first, *_ = pictures_of(small_input)
    first.unlink()
    run_here(*command, "--allow_partial")
    store = Store(str(out))
    shards: dict[str, list[str]] = {}
    for path in sorted(out.glob("layers/*.parquet")):
        metadata = read_metadata(store, f"layers/{path.name}")
        assert metadata is not None
        rows = read_image_rows(store, f"layers/{path.name}")
        has_all = all(row.status != "missing_source" for row in rows)
        assert bool(metadata.files) == has_all
        shards[path.name] = [row.status for row in rows]
    assert sum(statuses.count("missing_source") for statuses in shards.values()) == 1


@pytest.mark.parametrize("layers", ["keep", "drop"])
def test_objects_splits_and_replicates(tiny_input: Path, tmp_path: Path, layers: str) -> None:
    """The input has two boxes in each picture, two splits, a broken picture and a repeated key."""
    add_boxes(tiny_input)
    first, second, *others = pictures_of(tiny_input)
    second.write_bytes(second.read_bytes()[:500])
    shutil.copy(first, others[-1].parent / first.name)
    for folder in ("", "Annotations"):
        shutil.copytree(tiny_input / folder / "val", tiny_input / folder / "train")
    flags = (*QUICK, *keys(images_per_shard=3), "--split", "val,train", "--objects", "each")
    flags += ("--replicates", 2, "--layers", layers, "--per_class", 1, "--own_background")
    run_here("generate", "--input", tiny_input, "--output", tmp_path / "out", *flags, *ONE)
    statuses = {row["status"] for row in index_of(tmp_path / "out")}
    assert {"accepted", "duplicate_key", "undecodable"} <= statuses
    used = {row["source_md5"] for row in index_of(tmp_path / "out") if row["selected"]}
    recipe = export(tmp_path / "out", tmp_path / "recipe")
    # Only accepted pictures must be there, and without layers only selected ones.
    shutil.rmtree(tiny_input / "Annotations")
    second.unlink()
    unused = [
        path for path in pictures_of(tiny_input) if md5(path.read_bytes()).hexdigest() not in used
    ]
    assert unused
    for path in unused if layers == "drop" else ():
        path.unlink()
    again(recipe, tiny_input, tmp_path / "again")
    assert results_of(tmp_path / "again") == results_of(tmp_path / "out")


def comment(picture: Path) -> None:
    """Adds a comment to a JPEG, whose pixels stay as they are."""
    data = picture.read_bytes()
    picture.write_bytes(data[:2] + b"\xff\xfe\x00\x07hello" + data[2:])


def as_png(picture: Path) -> None:
    """Encodes a picture again, without loss."""
    with Image.open(picture) as decoded:
        decoded.load()
    decoded.save(picture, "PNG")


def test_other_files_of_the_same_pixels_pass(
    quick: tuple[Path, Path], small_input: Path, tmp_path: Path
) -> None:
    dataset, recipe = quick
    first, second, *_ = pictures_of(small_input)
    comment(first)
    as_png(second)
    shutil.copy(first, first.with_stem("extra"))
    printed = again(recipe, small_input, tmp_path / "out")
    assert "recipe: 2 pictures in other files, with the same pixels" in printed
    assert "recipe: 1 picture of the input not in the recipe: ignored" in printed
    assert results_of(tmp_path / "out") == results_of(dataset)


@pytest.fixture
def lacking(small_input: Path) -> tuple[Path, Path, Path]:
    """An input with one picture missing and one with other pixels, and these two paths."""
    first, second, *_ = pictures_of(small_input)
    first.unlink()
    darken(second)
    return small_input, first, second


def test_what_is_missing_or_differs_ends_the_job(
    quick: tuple[Path, Path], lacking: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    source, first, second = lacking
    command = making(quick[1], source, tmp_path / "out")
    line = refusal(*command)
    assert "of 18 pictures of the recipe, 1 missing and 1 with other pixels: " in line
    for picture, status in ((first, "missing_source"), (second, "source_differs")):
        assert f"{picture.relative_to(source)} ({status})" in line
    assert "1 missing" in run_here(*command, "--dry_run", code=2).err
    for picture in pictures_of(source)[1:]:
        picture.unlink()
    line = refusal(*command)
    assert "of 18 pictures of the recipe, 17 missing and 1 with other pixels: " in line
    assert line.count("(missing_source)") + line.count("(source_differs)") == 3
    assert "), .... No dataset was written" in line
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_a_part_of_a_recipe_is_completed_later(
    quick: tuple[Path, Path], small_sample: Path, lacking: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    (dataset, recipe), (source, first, second), output = quick, lacking, tmp_path / "out"
    printed = again(recipe, source, output, "--allow_partial")
    assert "this is not the recipe's dataset: it lacks 2 images" in printed
    assert "This is not the recipe's dataset" in (output / "README.md").read_text()
    rejected = {row["key"]: row["status"] for row in index_of(output) if not row["selected"]}
    assert rejected == {first.stem: "missing_source", second.stem: "source_differs"}
    assert manifest_of(output)["fingerprint"] != manifest_of(dataset)["fingerprint"]
    before = stamps(output)
    again(recipe, source, output, "--allow_partial")
    assert stamps(output) == before
    # The guard watches the input of a recipe, too.
    for picture in pictures_of(source):
        picture.unlink()
    printed = run_here(*making(recipe, source, output, "--allow_partial"), code=1).err
    assert "source shards would be made again" in printed
    assert stamps(output) == before
    # Once all pictures are there, the copy makes the recipe's dataset of it.
    shutil.rmtree(source / "val")
    shutil.copytree(small_sample / "val", source / "val")
    run_here("generate", "--input", source, "--output", output, *ONE, "--overwrite", "rebuild")
    assert results_of(output) == results_of(dataset)


@pytest.mark.parametrize("pillow", [Image.__version__, "1.0"])
def test_a_decoder_that_gives_other_layers_ends_the_job(
    quick: tuple[Path, Path], small_sample: Path, tmp_path: Path, pillow: str
) -> None:
    """A recipe with a wrong digest stands for a library that decodes in another way."""
    wrong = {"layer_digest": lambda old: bytes(8)}
    recipe = changed(quick[1], tmp_path / "recipe", wrong, with_library("pillow", pillow))
    error = run_here(*making(recipe, small_sample, tmp_path / "out"), code=1).err
    same = "gives another layer than the recipe's. The libraries are the same" in error
    assert same == (pillow == Image.__version__)
    assert same or re.search(r"Here is .*; the recipe was made with .*pillow 1\.0", error)
    assert f"pillow {Image.__version__}" in error
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_files_of_other_libraries_are_named(
    quick: tuple[Path, Path], small_sample: Path, tmp_path: Path
) -> None:
    """Other digests in the recipe stand for a library that encodes in another way."""

    def encoded(content: dict[str, Any]) -> dict[str, Any]:
        for file in content["files"]:
            if file["path"].startswith(("index/", "parquet/original/")):
                file["sha256"] = "0" * 64
        return with_library("pyarrow", "1.0")(content)

    recipe = changed(quick[1], tmp_path / "recipe", {}, encoded)
    printed = again(recipe, small_sample, tmp_path / "out")
    shards = manifest_of(quick[0])["shards"]["val"]["output"]
    line = f"recipe: {2 * shards + 1} files are not the recipe's, byte for byte ({shards} index, "
    assert f"{line}{shards} parquet, 1 manifest.json): index/val-00000-of-" in printed
    assert ", ...\nrecipe: made with pyarrow " in printed
    assert ", the recipe with 1.0\n" in printed


def test_code_that_a_recipe_names_is_not_imported(
    quick: tuple[Path, Path], small_sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_to_run.py").write_text(
        "import numpy as np\n\n\ndef left(image, box):\n"
        "    mask = np.zeros(image.shape[:2], bool)\n    mask[:, : box.xmax] = True\n"
        "    return mask\n\n\ndef plain(layer):\n    return layer.image\n\n\n"
        "def black(image, hole):\n    return image * ~hole[..., None]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = ("--segmenter", "python:mine_to_run:left", "--variants", "all,python:mine_to_run:plain")
    own = (*own, "--renderings", "python:mine_to_run:black")
    output = tmp_path / "out"
    small = (*QUICK[2:], *SHARDS, *ONE, "--limit", 1, "--own_background")
    run_here("generate", "--input", small_sample, "--output", output, *small, *own)
    recipe = export(output, tmp_path / "recipe")
    command = making(recipe, small_sample, tmp_path / "again")
    sys.modules.pop("mine_to_run")
    assert " ".join(["OUTPUT", *own[:2]]) in (recipe / "README.md").read_text()
    flags = ",python:mine_to_run:plain --renderings python:mine_to_run:black\n"
    assert flags in (recipe / "README.md").read_text()
    assert "python:mine_to_run:plain" in refusal(*command)
    assert "mine_to_run" not in sys.modules
    for number, missing in enumerate(("segmenter", "variants", "renderings")):
        others = own[: 2 * number] + own[2 * number + 2 :]
        assert f"give --{missing}" in refusal(*command, *others)
    run_here(*command, *own)
    assert results_of(tmp_path / "again") == results_of(output)


def test_scenes_must_be_named(tiny_input: Path, tmp_path: Path) -> None:
    scenes, output = tmp_path / "scenes", tmp_path / "out"
    scenes.mkdir()
    first, *others = pictures_of(tiny_input)[:3]
    for picture in (first, *others):
        shutil.copy(picture, scenes)
    few = (*QUICK, *ONE, "--variants", "original", "--backgrounds", scenes)
    run_here("generate", "--input", tiny_input, "--output", output, *few)
    recipe = export(output, tmp_path / "recipe")
    command = making(recipe, tiny_input, tmp_path / "again")
    assert "--backgrounds" in refusal(*command)
    assert "--backgrounds SCENES" in (recipe / "README.md").read_text()
    own = ("--overwrite", "config", "--variants", "only_fg")
    again(recipe, tiny_input, tmp_path / "own", *own)
    assert not list((tmp_path / "own").glob("parquet/mixed*"))
    darken(scenes / first.name)
    assert "--backgrounds=3 pictures" in refusal(*command, "--backgrounds", scenes)
    shutil.copy(first, scenes)
    run_here(*command, "--backgrounds", scenes)
    assert results_of(tmp_path / "again") == results_of(output)
