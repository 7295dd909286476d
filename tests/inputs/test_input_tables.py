"""Tests tables that people write: their rows, COCO's entries, and the images that they name."""

import csv
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapes import listed

from pipeline.errors import UsageError
from pipeline.inputs.annotations import coco_objects, is_coco, mask_text
from pipeline.inputs.input_table import (
    InputTable,
    content_of_coco,
    images_of_coco,
    named_columns,
    path_from,
    tells_splits,
)
from pipeline.inputs.layout import find_layout
from pipeline.inputs.location import NOWHERE, read_location
from pipeline.inputs.tables import TableRow, column_names, read_rows
from transforms.annotations import Box, parse_annotation
from transforms.masks import read_mask
from transforms.taxonomy import imagenet9

Rows = list[dict[str, Any]]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
SQUARE, SIZE = [[0, 0, 2, 0, 2, 2, 0, 2]], {"width": 6, "height": 4}
COCO: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "b.png", "group": "hall", **SIZE},
               {"id": "x", "file_name": "a.png", **SIZE}, {"id": 1, "file_name": "c.png", **SIZE}],
    "annotations": [{"image_id": "x", "category_id": 2, "bbox": [1, 2, 3, 4.5]},
                    {"image_id": 7, "category_id": 2, "bbox": [0, 0, 2, 2], "segmentation": SQUARE},
                    {"image_id": "x", "category_id": 5, "bbox": None, "segmentation": SQUARE}],
    "categories": [{"id": 5, "name": "fork"}, {"id": 2, "name": "cup"}],
}  # fmt: skip
OBJECTS: Rows = [
    {"image": "a.png", "class": "fork", "boxes": [[0, 0, 5, 5]], "split": "val"},
    {"image": "a.png", "class": "cup", "boxes": [[0, 0, 5, 6]], "mask": "m.png"},
    {"image": "b.c.png", "class": "cup", "group": "hall", "split": "validation"},
    {"image": "d.png", "class": "cup", "split": "train"},
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tables")
    for name in ("a.png", "b.png", "b.c.png", "c.png", "d.png", "m.png"):
        (folder / name).touch()
    return folder


def put(path: Path, content: object) -> str:
    """Writes JSON or JSON lines; returns the path."""
    is_lines = path.suffix == ".jsonl" and isinstance(content, list)
    path.write_text("\n \n".join(map(json.dumps, content)) if is_lines else json.dumps(content))
    return str(path)


@settings(max_examples=30)
@given(st.lists(st.tuples(TEXT.filter(str.strip), TEXT), min_size=1, max_size=9))
def test_rows_are_the_same_in_every_kind_of_table(root: Path, cells: list[Any]) -> None:
    rows = [{"image": image, "a, b": other} for image, other in cells]
    with (root / "t.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([("image ", " a, b"), (" ", ""), *cells, (" ", "")])
    pq.write_table(pa.Table.from_pylist(rows), root / "t.PARQUET")
    for path, step in ((f"{root}/t.csv", 0), (put(root / "t.json", rows), 1),
                       (put(root / "t.jsonl", rows), 2), (f"{root}/t.PARQUET", 1)):  # fmt: skip
        table_rows = list(read_rows(path, "--input"))
        assert [row.values for row in table_rows] == rows
        with warnings.catch_warnings(record=True) as unclosed:
            warnings.simplefilter("always")
            assert column_names(path, "--input") == ("image", "a, b")
        assert not unclosed
        assert not step or [row.number for row in table_rows] == [
            1 + step * n for n in range(len(rows))
        ]


def test_what_is_wrong_with_a_table_or_a_value_is_told_by_line(tmp_path: Path) -> None:
    columns = pa.table([[1], [2], [3]], ["a", "b", "b"])
    pq.write_table(columns, tmp_path / "twins.parquet")
    twins = (tmp_path / "twins.parquet").read_bytes()
    for name, data, why in (
        ("t.jsonl", b'{"a": 1}\n\n[1]', "t.jsonl, line 3: not an object"),
        ("t.jsonl", b'{"a": 1}\n{"a": 1, "b": 2, "b": 3}', "line 2: .* two fields 'b'"),
        ("t.csv", b"a,b,b\n1,2,3\n", "t.csv has two columns 'b'"),
        ("t.parquet", twins, "t.parquet has two columns 'b'"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UsageError, match=why):
            list(read_rows(f"{tmp_path}/{name}", "--input"))
    row = TableRow(
        "/t.csv", 3, {"a": " 7 ", "b": 8.0, "c": float("nan"), "d": None, "e": "7.5"}, "line"
    )
    assert [row.text(name) for name in "abcdz"] == ["7", "8.0", "", "", ""]
    assert (row.integer("a"), row.integer("b")) == (7, 8)
    for name in "cdez":
        with pytest.raises(UsageError, match=rf"^/t.csv, line 3, column {name}: .* not a whole"):
            row.integer(name)


def test_objects_of_coco_are_tied_to_their_images() -> None:
    assert [is_coco(x) for x in (COCO, [COCO], {**COCO, "images": {}})] == [True, False, False]
    pairs = list(coco_objects("/c.json", COCO))
    assert [image for image, _ in pairs] == COCO["images"]
    assert [[(each.name, each.box) for each in objects] for _, objects in pairs] == [
        [("cup", (0, 0, 2, 2))], [("cup", (1, 2, 4, 6.5)), ("fork", None)], []
    ]  # fmt: skip
    with pytest.raises(UsageError, match=r"^/c.json: two images have the id 7"):
        list(coco_objects("/c.json", {**COCO, "images": COCO["images"] * 2}))


def test_cocos_content_is_told_from_other_json_and_is_never_stale(tmp_path: Path) -> None:
    for moment, content in enumerate((COCO, {**COCO, "images": COCO["images"][::-1]}, COCO)):
        path = put(tmp_path / "m.json", content)
        os.utime(path, (moment, moment))
        assert content_of_coco(path) == content
    rows = put(tmp_path / "rows.json", OBJECTS)
    assert (tells_splits(path, {}), tells_splits(rows, {})) == (False, True)
    assert content_of_coco(rows) is content_of_coco("/none.csv") is None
    assert path_from("/in", "gs://bucket/a") == "gs://bucket/a"
    assert path_from("gs://bucket/in", "../a") == "gs://bucket/a"


def test_images_of_coco_have_masks_if_all_their_objects_have(root: Path) -> None:
    first, _, _ = images_of_coco("/c.json", "/in", COCO)
    assert (first.path, first.columns["group"]) == ("/in/b.png", "hall")
    put(root / "c.json", COCO)
    images = [image for image in listed(InputTable(), root, "c.json") if image]
    assert [image.name + image.wnid for image in images] == ["b.pngcup", "a.pngcup", "c.png"]
    mask = read_mask(read_location(images[0].mask or NOWHERE)).mask
    assert (mask.shape, mask.sum(), mask[:2, :2].all()) == ((4, 6), 4, True)
    assert images[1].mask is images[2].mask is images[2].annotation is None
    runs = {"size": [4, 6], "counts": [24]}
    assert mask_text(4, 6, [runs]) == mask_text(4, 6, [dict(reversed(runs.items()))])


@given(st.permutations(OBJECTS))
def test_the_order_of_rows_is_that_of_images_and_says_nothing_else(root: Path, rows: Rows) -> None:
    put(root / "t.jsonl", rows)
    images = {image.name: image for image in listed(InputTable(), root, "t.jsonl") if image}
    assert list(images) == [n for n in dict.fromkeys(row["image"] for row in rows) if n != "d.png"]
    a, b = images["a.png"], images["b.c.png"]
    assert a.mask is not None
    assert (a.wnid, a.mask.path, a.key, a.group) == ("cup", f"{root}/m.png", "a", "")
    assert a.annotation is not None
    boxes = parse_annotation(read_location(a.annotation)).boxes
    assert sorted(boxes) == [Box(0, 0, 5, 5), Box(0, 0, 5, 6)]
    assert (b.wnid, b.mask, b.key, b.group, b.annotation) == ("cup", None, "b.c", "hall", None)
    put(root / "t.jsonl", {"image": "a.png", "class": "", "mask": "lost.png"})
    with pytest.raises(UsageError, match=rf"line 1, column mask: there is no file {root}/lost.png"):
        listed(InputTable(), root, "t.jsonl")


COLUMNS = ("image", "class", "boxes", "mask", "key", "group", "split", "width", "height")


@settings(max_examples=30)
@given(st.permutations([*COLUMNS, "Größe", "a b"]))
def test_columns_of_other_names_hold_the_same(root: Path, names: list[str]) -> None:
    """A table may even call one column as another is usually called."""
    called = {ours: theirs for ours, theirs in zip(COLUMNS, names, strict=False) if ours != theirs}
    columns = named_columns([f"{ours} = {theirs}" for ours, theirs in called.items()])
    assert columns == called
    assert named_columns(["image=filename", "label=class"]) == {
        "image": "filename", "class": "class"
    }  # fmt: skip
    tables = {"usual": (OBJECTS, {}), "other": (OBJECTS, columns)}
    images = {}
    for folder, (rows, renamed) in tables.items():
        full = [{renamed.get(c, c): row.get(c, "") for c in COLUMNS} for row in rows]
        path = put(root / f"{folder}.jsonl", full)
        layout = find_layout(path, None, "val", columns=renamed)
        images[folder] = list(InputTable().list_images(layout, imagenet9()))
    assert images["usual"] == images["other"]
    assert len(images["usual"]) == 2
