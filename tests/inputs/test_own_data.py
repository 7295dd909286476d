"""Tests images from outside ImageNet: input tables, taxonomies, and the datasets made from them."""

import csv
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from runs import ONE, dataset_in, keys, manifest_of, refusal, run_here, run_in9, stamps, table_of
from soundness import assert_sound

from pipeline.errors import UsageError
from pipeline.inputs.layout import find_layout, list_images
from pipeline.inputs.lists import read_taxonomy
from pipeline.inputs.location import read_location
from pipeline.inputs.source_images import SourceImage
from transforms.annotations import AnnotationError, Box, parse_annotation
from transforms.scoring import classes_of_outputs, labels_of_outputs
from transforms.taxonomy import OUTSIDE, Taxonomy, imagenet9

SMALL = ("--image_size", 32, *keys(resize=32, images_per_shard=8), "--segmenter", "box")
CLASSES = {"cup": "dishes", "plate": "dishes", "fork": "cutlery", "lamp": "lights"}


def write_csv(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    """Writes rows to a CSV with the columns of all of them; returns its path."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_picture(path: Path, number: int, side: int = 48) -> tuple[int, int, int, int]:
    """Writes a picture of a blob on noise; returns the blob's box."""
    generator = np.random.default_rng(number)
    pixels = generator.integers(0, 128, (side, side, 3), np.uint8)
    x, y = (int(value) for value in generator.integers(8, 20, 2))
    pixels[y : y + 18, x : x + 18] = generator.integers(128, 256, 3, np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return x, y, x + 18, y + 18


def toy_rows(folder: Path, each: int = 3) -> list[dict[str, object]]:
    """Writes pictures to a folder; returns rows that describe them."""
    rows: list[dict[str, object]] = []
    for name in CLASSES:
        for _ in range(each):
            file = f"pictures/{name}{len(rows)}.png"
            box = write_picture(folder / file, len(rows))
            corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
            rows.append({"image": file, "class": name, **corners})
    return rows


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with pictures, their table and taxonomy, and models; tests must not change it.

    There are twelve pictures of four classes in three superclasses.
    """
    folder = tmp_path_factory.mktemp("toy")
    write_csv(folder / "input_table.csv", toy_rows(folder))
    write_csv(folder / "kinds.csv", ({"class": c, "superclass": s} for c, s in CLASSES.items()))
    (folder / "toy_models.py").write_text(
        "import torch\n"
        "def _model(outputs):\n"
        "    torch.manual_seed(0)\n"
        "    pool = torch.nn.AdaptiveAvgPool2d(2)\n"
        "    return torch.nn.Sequential(pool, torch.nn.Flatten(), torch.nn.Linear(12, outputs))\n"
        "three, four, five, many = (lambda n=n: _model(n) for n in (3, 4, 5, 140))\n"
    )
    return folder


@pytest.fixture(scope="module")
def toy_run(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of the main job on `toy`, with models of three, four and five outputs.

    Tests must not change it.
    """
    output = tmp_path_factory.mktemp("toy_run") / "out"
    models = ",".join(f"python:toy_models:{name}" for name in ("three", "four", "five"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(toy))
        run_in9("run", "--input", toy, "--output", output, "--taxonomy", toy / "kinds.csv",
                "--models", models, *SMALL, *ONE)  # fmt: skip
    return output


def listed(
    path: Path, taxonomy: Taxonomy | None = None, split: str = "val"
) -> dict[str, SourceImage]:
    """Lists the images of a table by key."""
    layout = find_layout(str(path), None, split)
    assert layout.kind == "input table"
    own = taxonomy or Taxonomy(("all",), tuple(CLASSES), (0,) * 4, tuple(CLASSES))
    return {image.key: image for image in list_images(layout, own)[0]}


def boxes_of(image: SourceImage) -> tuple[Box, ...]:
    assert image.annotation is not None
    return parse_annotation(read_location(image.annotation)).boxes


def test_a_file_says_superclasses_labels_and_outputs(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"class": "a", "superclass": "two", "label": 1, "index": 7, "name": "An A"},
        {"class": "b", "superclass": "one", "label": 0, "index": 5, "name": ""},
        {"class": "c", "superclass": "", "label": "", "index": 2, "name": ""},
        {"class": "d", "superclass": "two", "label": "", "index": 9, "name": ""},
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    taxonomy = read_taxonomy(str(write_csv(tmp_path / "t.csv", rows)))
    assert taxonomy is not None
    assert taxonomy.names == ("one", "two")
    assert taxonomy.labels == (1, 0, OUTSIDE, 1)
    assert taxonomy.class_names == ("An A", "b", "c", "d")
    assert taxonomy.outputs == (7, 5, 2, 9)
    for name in ("t.json", "t.jsonl"):
        assert read_taxonomy(str(tmp_path / name)) == taxonomy
    # Without labels, superclasses are numbered in the order of the rows.
    plain = [{"class": row["class"], "superclass": row["superclass"]} for row in rows]
    bare = read_taxonomy(str(write_csv(tmp_path / "plain.csv", plain)))
    assert bare is not None
    assert (bare.names, bare.outputs) == (("two", "one"), None)
    assert bare.description != taxonomy.description
    assert labels_of_outputs(4, bare).tolist() == [0, 1, OUTSIDE, 0]
    assert labels_of_outputs(2, bare).tolist() == labels_of_outputs(2, taxonomy).tolist() == [0, 1]
    assert (classes_of_outputs(10, taxonomy) or ())[7] == "An A"
    with pytest.raises(ValueError, match="a head of 7 outputs fits neither the outputs that"):
        labels_of_outputs(7, taxonomy)
    with pytest.raises(ValueError, match="the 4 classes nor the 2 superclasses; a column index"):
        labels_of_outputs(999, bare)
    # The class outside all superclasses needs no output.
    with pytest.raises(ValueError, match="no output for 'a' and 2 more; a column index"):
        labels_of_outputs(1000, bare)


def test_classes_that_are_imagenets_get_its_outputs(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"class": "n01440764", "superclass": "fish"},
        {"class": "Coffee Mug", "superclass": "dishes"},
        {"class": "soup bowl", "superclass": "dishes"},
        {"class": "anything", "superclass": ""},
    ]
    path = write_csv(tmp_path / "t.csv", rows)
    taxonomy = read_taxonomy(str(path))
    assert taxonomy is not None
    labels = labels_of_outputs(1000, taxonomy)
    assert {n: label for n, label in enumerate(labels) if label != OUTSIDE} == {
        0: 0,
        504: 1,
        809: 1,
    }
    assert (classes_of_outputs(1000, taxonomy) or ())[809] == imagenet9().class_names[809]
    # A head that fits the taxonomy itself is not taken for ImageNet's.
    assert labels_of_outputs(4, taxonomy).tolist() == [0, 1, 1, OUTSIDE]
    assert labels_of_outputs(2, taxonomy).tolist() == [0, 1]
    with pytest.raises(ValueError, match="neither the 4 classes, ImageNet's 1000 nor the 2 super"):
        labels_of_outputs(999, taxonomy)
    # "crane" names two classes; "tench" is a second name of a class in the table.
    for more in ("crane", "tench"):
        write_csv(path, [*rows, {"class": more, "superclass": "dishes"}])
        other = read_taxonomy(str(path))
        assert other is not None
        missing = re.escape("'crane'" if more == "crane" else "'n01440764' and 1 more")
        with pytest.raises(ValueError, match=f"ImageNet has no output for {missing}; a column"):
            labels_of_outputs(1000, other)


def test_an_index_that_is_empty_is_imagenets(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"class": "crane", "superclass": "bird", "index": 134},
        {"class": "goldfish", "superclass": "fish", "index": ""},
        {"class": "n01440764", "superclass": "fish", "index": 7},
    ]
    path = write_csv(tmp_path / "t.csv", rows)
    taxonomy = read_taxonomy(str(path))
    assert taxonomy is not None
    assert taxonomy.outputs == (134, 1, 7)
    write_csv(path, [*rows, {"class": "fork", "superclass": "cutlery", "index": ""}])
    with pytest.raises(UsageError, match="line 5, column index: '' is not a whole number"):
        read_taxonomy(str(path))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("class,superclass\na,x\na,y\n", "line 3, column class: 'a' is in line 2 too"),
        ("class,superclass\n,x\n", "line 2, column class: is empty"),
        ("class,superclass\na,\n", "and so are all others"),
        ("class,superclass\na,x,y\n", "line 2: 3 values for 2 columns"),
        ("class,superclass\na,x/y\n", "cannot be the name of a folder"),
        (f"class,superclass\na,{'x' * 201}\n", "cannot be the name of a folder"),
        ('class,superclass\na,"x\ny"\n', "line 3, column superclass: 'x\\ny' is not printable"),
        ('class,superclass\n"a\u202e",x\n', "column class: 'a\\u202e' is not printable"),
        ("class,superclass,name\na,x,b\x1b[1m\n", "column name: 'b\\x1b[1m' is not printable"),
        ("class,superclass,label\na,x,2\n", "line 2, column label: 2 is not between 0 and 0"),
        ("class,superclass,label\na,x,0\nb,y,0\n", "must give each of the 2 superclasses"),
        ("class,superclass,label\na,x,0\nb,x,1\nc,y,1\n", "line 3, column label: 1 differs"),
        ("class,superclass,index\na,x,one\n", "column index: 'one' is not a whole number"),
        ("class,superclass,index\na,x,5\nb,y,5\n", "line 3, column index: 5 is in line 2"),
        ("class,superclass,index\na,x,1\nb,y,0\n", "is not the label of"),
    ],
)
def test_a_wrong_taxonomy_is_one_line(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UsageError, match=re.escape(why)) as caught:
        read_taxonomy(str(tmp_path / "t.csv"))
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "t.csv") in str(caught.value)


@pytest.mark.parametrize("name", ["bird\ud800", "a\u202eb"])
def test_names_of_classes_are_printable_wherever_they_come_from(tmp_path: Path, name: str) -> None:
    for row in ({"class": "a", "superclass": name}, {"class": name, "superclass": "x"}):
        (tmp_path / "t.json").write_text(json.dumps([row]))
        with pytest.raises(UsageError, match="is not printable"):
            read_taxonomy(str(tmp_path / "t.json"))
    for forged in ((name, "b", "c"), ("a", name, "c"), ("a", "b", name)):
        label, wnid, class_name = ((each,) for each in forged)
        with pytest.raises(ValueError, match="not printable"):
            Taxonomy(label, wnid, (0,), class_name)


@given(st.data())
def test_outputs_that_are_named_have_their_labels_and_others_none(data: st.DataObject) -> None:
    outputs = data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=20, unique=True))
    labels = data.draw(st.lists(st.integers(-1, 3), min_size=len(outputs), max_size=len(outputs)))
    names = tuple(f"class {output}" for output in outputs)
    taxonomy = Taxonomy(tuple("abcd"), names, tuple(labels), names, tuple(outputs))
    size = data.draw(st.integers(max(outputs) + 1, 80))
    output_labels = labels_of_outputs(size, taxonomy)
    assert len(output_labels) == size
    assert [output_labels[output] for output in outputs] == labels
    assert set(np.delete(output_labels, outputs)) <= {OUTSIDE}


def test_an_input_table_says_all_there_is_to_say_of_an_image(tmp_path: Path) -> None:
    """Other forms of tables are in test_input_tables."""
    for name in ("a.png", "b.png", "deep/c.png", "d.png"):
        write_picture(tmp_path / name, 0)
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere.png"
    write_picture(elsewhere, 1)
    rows = [
        {"image": "a.png", "class": "cup", "boxes": "[[1, 2, 9, 9], [1, 1, 40, 40]]",
         "split": "train", "group": "kitchen", "width": 48, "height": 48},
        {"image": "b.png", "class": "fork", "boxes": "[1, 2, 3, 4]", "split": "validation"},
        {"image": "deep/c.png", "class": "umbrella", "boxes": "[[5, 6, 20, 20]]", "split": "val"},
        {"image": "./deep/../d.png", "class": "cup", "boxes": "[[5, 6, 7, 8]]", "split": "val"},
        {"image": "d.png", "class": "fork", "boxes": "[[1, 1, 30, 30]]", "split": "val",
         "key": "named", "group": "hall"},
        {"image": elsewhere, "class": "lamp", "boxes": "", "split": "val"},
    ]  # fmt: skip
    path = write_csv(tmp_path / "table.csv", rows)
    images = listed(path)
    assert sorted(images) == sorted(["b", "named", elsewhere.stem])
    assert boxes_of(images["b"]) == (Box(1, 2, 3, 4),)
    # An image has two rows here; the larger box tells its class.
    named = images["named"]
    assert (named.wnid, named.group, named.name) == ("fork", "hall", "d.png")
    assert boxes_of(named) == (Box(5, 6, 7, 8), Box(1, 1, 30, 30))
    assert images[elsewhere.stem].annotation is None
    assert images[elsewhere.stem].location.path == str(elsewhere)
    layout = find_layout(str(path), None, "val")
    assert list_images(layout, imagenet9())[1]["outside"] == 4
    (train,) = listed(path, split="train").values()
    assert (train.key, train.group, len(boxes_of(train))) == ("a", "kitchen", 2)
    with pytest.raises(UsageError, match="has no image of split 'test'"):
        listed(path, split="test")


def test_broken_boxes_are_left_to_the_image(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 0)
    head = "image,class,xmin,ymin,xmax,ymax\n"

    def table(text: str, name: str = "t.csv") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    for corners in ("1,2,x,4", "1,,3,4", "1,2,inf,4"):
        image = listed(table(f"{head}a.png,cup,{corners}\n"))["a"]
        assert image.annotation is not None
        with pytest.raises(AnnotationError, match="line 2: no list of boxes"):
            parse_annotation(read_location(image.annotation))


def test_a_three_class_dataset_runs_to_a_report(toy: Path, toy_run: Path) -> None:
    answers = pyarrow.dataset.dataset(sorted(toy_run.glob("results/*four*/predictions/*.parquet")))
    rows = answers.to_table().to_pylist()
    assert {(row["output"], row["prediction"]) for row in rows} <= {(0, 0), (1, 0), (2, 1), (3, 2)}
    assert all(row["correct"] == (row["prediction"] == row["label"]) for row in rows)
    manifest = manifest_of(toy_run)
    assert manifest["images"]["val"]["accepted"] == 12
    assert manifest["config"]["taxonomy"].startswith("3 superclasses of 4 classes, sha256 ")
    assert manifest["taxonomy"]["names"] == ["dishes", "cutlery", "lights"]
    dataset = dataset_in(toy_run)
    assert dataset.taxonomy == read_taxonomy(str(toy / "kinds.csv"))
    rows = pyarrow.dataset.dataset(str(toy_run / "parquet" / "mixed_rand")).to_table().to_pylist()
    assert {(row["wnid"], row["label"]) for row in rows} == {
        ("cup", 0), ("plate", 0), ("fork", 1), ("lamp", 2)
    }  # fmt: skip
    assert {row["imagenet_index"] for row in rows} == {None}
    summary = table_of(toy_run, "summary")
    errors = {row["model"]: row["error"] for row in summary if row["error"]}
    assert errors.keys() == {"python:toy_models:five"}
    assert "the 4 classes nor the 3 superclasses" in errors["python:toy_models:five"]
    assert {row["model"] for row in summary} - errors.keys() == {
        "python:toy_models:three", "python:toy_models:four"
    }  # fmt: skip
    assert not (toy_run / "results" / "trend.csv").exists()
    page = (toy_run / "report.html").read_text()
    assert "cutlery" in page
    assert "outside the 3 classes" in page
    for of_imagenet9 in ("ImageNet-9", "Published", "What the source claims", "efficientnet_b0"):
        assert of_imagenet9 not in page
    card = (toy_run / "README.md").read_text()
    assert "| 0 | dishes | cup, plate |" in card
    assert "ImageNet-9" not in card


def test_classes_that_do_not_match_are_named(tmp_path: Path) -> None:
    rows = toy_rows(tmp_path)
    for row, name in zip(rows, ("Fork", "fork ", "spoon", "spoon", "Spoon"), strict=False):
        row["class"] = name
    write_csv(tmp_path / "table.csv", rows)
    kinds = {**CLASSES, "lamp": "", "bowl": "dishes", "tray": ""}
    write_csv(tmp_path / "t.csv", ({"class": c, "superclass": s} for c, s in kinds.items()))
    output = tmp_path / "out"
    command = ("generate", "--input", tmp_path / "table.csv", "--taxonomy", tmp_path / "t.csv",
               "--output", output, *SMALL, *ONE)  # fmt: skip
    named = "4 of classes that the taxonomy lacks: 'spoon' (2), 'Fork' (1), 'Spoon' (1); "
    named += "classes without an image: 'cup', 'bowl'"
    for flags in (("--dry_run",), ()):
        assert f"\nval: {named}\n" in run_here(*command, *flags).out
    assert manifest_of(output)["images"]["val"]["outside_taxonomy"] == 7
    assert manifest_of(output)["unmatched"] == {"val": named}


def test_names_of_unknown_classes_are_counted_in_flat_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "class": f"c{n % 6}"} for n, row in enumerate(toy_rows(tmp_path))]
    layout = find_layout(str(write_csv(tmp_path / "t.csv", rows)), None, "val")
    monkeypatch.setattr("pipeline.inputs.layout.MAX_NAMES", 3)
    taxonomy = Taxonomy(("x",), ("c1", "c5"), (0, OUTSIDE), ("", ""))
    counted = dict.fromkeys(("c0", "c1", "c2", "c3", "c5"), 2)  # Two of them are known.
    assert list_images(layout, taxonomy)[2] == {**counted, "": 2}


def test_what_is_made_of_own_data_is_verified_exported_and_repeated(
    toy: Path, toy_run: Path, tmp_path: Path
) -> None:
    assert_sound(toy_run)
    run_here("export", "--dataset", toy_run, "--to", tmp_path / "export")
    folders = {path.name for path in (tmp_path / "export" / "only_fg" / "val").iterdir()}
    assert folders == {"00_dishes", "01_cutlery", "02_lights"}
    before = stamps(toy_run)
    command = ("generate", "--output", toy_run, "--input", toy, *SMALL, *ONE)
    assert "nothing to do" in run_here(*command, "--taxonomy", toy / "kinds.csv").out
    assert "--taxonomy=not set (the dataset has 3 superclasses" in refusal(*command)
    other = tmp_path / "other.csv"
    other.write_text((toy / "kinds.csv").read_text().replace("cutlery", "tools"))
    refused = refusal(*command, "--taxonomy", other)
    assert "--taxonomy=3 superclasses of 4 classes" in refused
    assert stamps(toy_run) == before


def test_columns_of_a_table_may_have_other_names(toy: Path, tmp_path: Path) -> None:
    """A column `class` that is there, too, is another one."""
    other = {"image": "filename", "class": "species", "xmin": "x 0"}
    named = ",".join(f"{ours}={theirs}" for ours, theirs in other.items())
    rows = [
        {**{other.get(name, name): value for name, value in row.items()}, "class": "fork"}
        for row in csv.DictReader((toy / "input_table.csv").open())
    ]
    for row in rows:
        row["filename"] = str(toy / row["filename"])
    table = write_csv(tmp_path / "table.csv", rows)
    flags = (*SMALL, "--variants", "original", "--formats", "parquet", *ONE, "--output")
    command = ("generate", "--input", table, "--taxonomy", toy / "kinds.csv", *flags)
    command = (*command, tmp_path / "out", "--input_columns")
    run_here(*command, named)
    samples = manifest_of(tmp_path / "out")["samples"]["val"]["original"]
    assert samples == {"dishes": 6, "cutlery": 3, "lights": 3}
    # With another value, the same table would say something else.
    line = refusal(*command, named.replace("class=species", "class=class"))
    assert f"was made from {table} --input_columns class=species,image=filename,xmin=x 0;" in line


def test_labels_may_be_many(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, kinds = [], []
    source = tmp_path / "in"
    for number in range(140):
        box = write_picture(source / f"{number}.png", number)
        rows.append({"image": f"{number}.png", "class": f"c{number}", "boxes": json.dumps([box])})
        kinds.append({"class": f"c{number}", "superclass": f"kind {number}"})
    write_csv(source / "input_table.csv", rows)
    monkeypatch.setenv("PYTHONPATH", str(toy))
    output = tmp_path / "out"
    run_in9("run", "--input", source, "--output", output,
            "--taxonomy", write_csv(tmp_path / "kinds.csv", kinds),
            "--models", "python:toy_models:many", "--variants", "original,mixed_rand",
            "--image_size", 32, *keys(resize=32), "--segmenter", "box", *ONE,
            figures=True)  # fmt: skip
    index = pyarrow.dataset.dataset(str(output / "index")).to_table()
    assert sorted(index["label"].to_pylist()) == list(range(140))
    paths = sorted(output.glob("results/*/predictions/*.parquet"))
    predictions = pa.concat_tables(pq.read_table(p).replace_schema_metadata() for p in paths)
    assert set(predictions["label"].to_pylist()) == set(range(140))
    assert_sound(output)
    # Of so many classes, figures show the worst.
    page = (output / "report.html").read_text()
    assert "(worst 9 of 140)" in page
    assert len(page) < 2_000_000
