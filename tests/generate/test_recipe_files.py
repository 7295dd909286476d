"""Tests which recipes, flags beside one, and exports of one are refused, and why."""

import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from foreign_recipes import Change, changed, parts_of, rejected_rows, sealed, with_flag
from runs import ONE, QUICK, keys, refusal, run_here
from shapes import SHAPES

from pipeline.errors import UsageError
from pipeline.generate.recipe import Recipe


@pytest.fixture(scope="module")
def recipe(three_draws: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe of a small dataset in one shard. Tests must not change it."""
    target = tmp_path_factory.mktemp("recipe") / "r"
    run_here("export", "--dataset", three_draws, "--layout", "recipe", "--to", target)
    return target


def without(name: str) -> Change:
    return lambda content: {key: value for key, value in content.items() if key != name}


HOSTILE: dict[str, tuple[dict[str, Change], Change | None]] = {
    "its split is unknown": ({"split": lambda old: "other"}, None),
    "its path leads out": ({"path": lambda old: f"../../{old}"}, None),
    "a text is too long": ({"detail": lambda old: "x" * 1000}, None),
    "not printable": ({"group": lambda old: "\x1b[31m"}, None),
    "its status is unknown": ({"status": lambda old: "fine"}, None),
    "its class is unknown": ({"wnid": lambda old: "n00000000"}, None),
    "impossible size": ({"width": lambda old: 2**31 - 1, "height": lambda old: 2**31 - 1}, None),
    "its picture is too narrow": (
        {"width": lambda _: 1, "height": lambda _: 10**7, "native_box": lambda _: [0, 0, 1, 1]},
        None,
    ),
    "its box is not in its picture": ({"native_box": lambda old: [0, 0, 10**6, 10**6]}, None),
    "no four corners": ({"native_box": lambda old: [0] * 1000}, None),
    "its runs have": ({"mask": lambda old: old + old}, None),
    "of 4096": ({"mask": lambda old: b"\xff" * 1000}, None),
    "it has no mask": ({"mask": lambda old: None}, None),
    "not finite": ({"mask_over_box": lambda old: float("nan")}, None),
    "lacks what that needs": ({"layer_digest": lambda old: None}, None),
    "no such number": ({"object": lambda old: 3}, None),
    "share keys": (
        {},
        lambda of: {**of, "images": {"val": {**of["images"]["val"], "listed": 10**9}}},
    ),
    "missing required field": ({}, without("shards")),
    "image_size": ({}, with_flag("image_size", 10**9)),
    "Expected `int`": ({}, with_flag("seed", "zero")),
    "its classes are not": ({}, with_flag("taxonomy", "2 superclasses")),
    "is not the path of": ({}, lambda of: {**of, "files": [{**of["files"][0], "path": "../x"}]}),
    "it was made by stages": ({}, lambda of: {**of, "stages": {"segment": 99}}),
    "without masks": ({}, with_flag("origin", "imported")),
}


def fault_of(recipe: Path) -> str:
    """Returns why a recipe cannot be used."""
    with pytest.raises(UsageError) as caught:
        Recipe.open(str(recipe / "recipe.parquet"))
    prefix, is_named, fault = str(caught.value).partition("recipe.parquet cannot be used: ")
    assert is_named, prefix
    return fault


@pytest.mark.parametrize("fault", HOSTILE)
def test_hostile_recipes_are_refused(recipe: Path, tmp_path: Path, fault: str) -> None:
    columns, metadata = HOSTILE[fault]
    assert fault in fault_of(changed(recipe, tmp_path / "recipe", columns, metadata))


@pytest.mark.parametrize("options", [{}, {"use_dictionary": True}])
@pytest.mark.parametrize("objects", ["one", "each"])
def test_few_bytes_for_many_rows_are_refused_before_they_are_read(
    recipe: Path, tmp_path: Path, options: dict[str, Any], objects: str
) -> None:
    table, content = parts_of(recipe)
    content["config"]["objects"] = objects
    recipe = sealed(table.take(pa.array([0] * 30_000)), content, tmp_path / "recipe", **options)
    assert re.match("its [0-9]{4,6} bytes are too few for its rows", fault_of(recipe))


def test_dictionaries_are_refused(recipe: Path, tmp_path: Path) -> None:
    recipe = sealed(*parts_of(recipe), tmp_path / "recipe", use_dictionary=["status"])
    assert fault_of(recipe) == "it has dictionaries"


def test_rows_that_are_like_each_other_are_read(recipe: Path, tmp_path: Path) -> None:
    """Rows of one picture under short names have the fewest bytes that a dataset's rows can."""
    table, content = parts_of(recipe)
    content["images"]["val"]["listed"] = 5000
    rows = rejected_rows(table, 5000)
    recipe = sealed(rows, content, tmp_path / "recipe") / "recipe.parquet"
    assert recipe.stat().st_size < 20 * len(rows)
    assert len(Recipe.open(str(recipe)).images()["val"]) == 5000
    sealed(pa.concat_tables([rows[1:], rows[7:8]]), content, tmp_path / "recipe")
    with pytest.raises(UsageError, match=r"two images of val have the path val/k7\.JPEG$"):
        Recipe.open(str(recipe))


def test_each_region_of_the_file_is_sealed(recipe: Path, tmp_path: Path) -> None:
    whole, path = (recipe / "recipe.parquet").read_bytes(), tmp_path / "recipe" / "recipe.parquet"
    path.parent.mkdir()
    places = [*range(0, len(whole), len(whole) // 60), *range(-70, 0)]
    damaged = [whole[:n] + bytes([whole[n] ^ 4]) + whole[n + 1 or len(whole) :] for n in places]
    for data in (*damaged, whole[:-1], whole[: len(whole) // 2], whole + b"x", b"", b"PAR1"):
        path.write_bytes(data)
        assert fault_of(path.parent)
    command = ("generate", "--output", tmp_path / "out", "--recipe")
    for named in (path.parent, path):
        assert "recipe.parquet cannot be used: " in refusal(*command, named)
    missing = refusal(*command, tmp_path / "none")
    assert "none/recipe.parquet; make one with: in9 export --layout recipe" in missing


def test_flags_that_contradict_a_recipe_are_refused_by_name(
    recipe: Path, small_sample: Path, tmp_path: Path
) -> None:
    folders = ("--input", small_sample, "--output", tmp_path / "out")
    command = ("generate", "--recipe", recipe, *folders)
    line = refusal(*command, *keys(jpeg_quality=90), "--formats", "parquet")
    assert "jpeg_quality=90 (the recipe has 95)" in line
    assert "--formats" not in line
    assert "--overwrite config" in line
    # The default of a flag is a value like any other if it is given.
    size = ("--image_size", 224, *keys(resize=256))
    line = refusal(*command, *size, "--overwrite", "config")
    assert "--image_size=224 (the recipe has 64)" in line
    assert "--overwrite config" not in line
    assert "--annotations" in refusal(*command, "--annotations", small_sample)
    alone = refusal("generate", "--output", tmp_path / "out", "--allow_partial")
    assert "--recipe" in alone


def test_an_export_that_no_job_could_read_replaces_nothing(
    recipe: Path, tiny_input: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "table", tmp_path / "recipe"
    source.mkdir()
    SHAPES["table_csv"](tiny_input, source)
    elsewhere = shutil.copytree(source, tmp_path / "elsewhere")
    head, *lines = (source / "input_table.csv").read_text().splitlines()
    paths = [head, *(str(elsewhere / line) for line in lines)]
    (source / "input_table.csv").write_text("\n".join(paths))
    make = ("generate", "--input", source, *QUICK, *ONE, "--variants", "original,fg_mask")
    run_here(*make, "--output", tmp_path / "out")
    shutil.copytree(recipe, target)
    command = ("export", "--dataset", tmp_path / "out", "--layout", "recipe", "--to")
    for folder in (target, tmp_path / "new"):
        line = refusal(*command, folder)
        assert line.startswith("in9 export: --layout recipe: the recipe of ")
        assert "its path leads out of the input" in line


def test_what_has_no_recipe_is_refused(three_draws: Path, tiny_input: Path, tmp_path: Path) -> None:
    dropped, target, make = tmp_path / "dropped", tmp_path / "r", ("--input", tiny_input, *QUICK)
    run_here("generate", *make, "--layers=drop", "--variants=original", *ONE, "--output", dropped)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for dataset, flags, said in (
        (dropped, ("--to", target), "fg_mask"),
        (three_draws, ("--to", tmp_path / "full"), "is not empty"),
        (three_draws, ("--to", three_draws / "r"), "lies inside"),
        (three_draws, ("--to", target, "--split", "val"), "leave --split out"),
    ):
        assert said in refusal("export", "--dataset", dataset, "--layout", "recipe", *flags)
