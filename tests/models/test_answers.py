"""Tests answers of models that ran elsewhere: the table to fill, the filled table, label rules."""

import csv
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_models
import torch
from runs import (
    ONE,
    QUICK,
    csv_rows,
    dataset_in,
    everything,
    keys,
    pictures_of,
    refusal,
    run_here,
    run_in9,
    table_of,
)
from small_models import normalised

import in9
from pipeline.errors import UsageError
from pipeline.models.answers import read_answers
from transforms.scoring import CLOSED_CHOICE, NO_ANSWER, PAPER_RULE
from transforms.taxonomy import OUTSIDE, Taxonomy, imagenet9

pytestmark = pytest.mark.usefixtures("no_figures")

TABLES = ("summary", "gaps", "flips", "per_class", "confusion", "decomposition", "groups", "sizes")
Row = dict[str, Any]


def write(path: Path, rows: Iterable[Row]) -> Path:
    """Writes rows in the format of the path's suffix."""
    rows = list(rows)
    match path.suffix:
        case ".csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
        case ".jsonl":
            path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.fixture(scope="module")
def output(three_draws: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 18 pictures that tests may evaluate models on."""
    return Path(shutil.copytree(three_draws, tmp_path_factory.mktemp("answers") / "out"))


@pytest.fixture(scope="module")
def rows(output: Path) -> list[Row]:
    """The exported table, with all outputs of a network for each picture."""
    run_here("export", "--dataset", output, "--layout", "answers", "--to", output.parent / "a.csv")
    network = tiny_models.first().eval()
    return list(filled(output, csv_rows(output.parent / "a.csv"), network))


@torch.inference_mode()
def filled(output: Path, table: list[dict[str, str]], network: torch.nn.Module) -> Iterator[Row]:
    readers = {name: in9.open_dataset(output, name) for name in {row["variant"] for row in table}}
    for row in table:
        pixels, _, _ = readers[row["variant"]][row["key"]]
        picture = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        base = {name: row[name] for name in ("key", "variant", "dataset")}
        yield {**base, "scores": network(normalised(picture))[0].tolist()}


def winners(rows: Iterable[Row]) -> Iterator[tuple[Row, int]]:
    for row in rows:
        base = {name: value for name, value in row.items() if name != "scores"}
        yield base, int(np.argmax(row["scores"]))


@pytest.fixture(scope="module")
def entries(output: Path, rows: list[Row]) -> dict[str, str]:
    """Entries of `--models` that stand for one network, all evaluated: kind of answer -> entry."""
    classes, folder = imagenet9(), output.parent
    files = {
        "scores": write(folder / "scores.parquet", rows),
        "output": write(
            folder / "output.csv",
            ({**base, "output": classes.wnids[best]} for base, best in winners(rows)),
        ),
        "label": write(
            folder / "label.jsonl",
            ({**base, "label": classes.labels[best]} for base, best in winners(rows)),
        ),
    }
    entries = {kind: f"answers:{path}" for kind, path in files.items()}
    entries["network"] = "python:tiny_models:first"
    run_in9("evaluate", "--dataset", output, "--models", ",".join(entries.values()), *ONE)
    return entries


def test_the_table_to_fill_has_every_picture_and_its_bytes(output: Path, rows: list[Row]) -> None:
    dataset, path = dataset_in(output), output.parent / "pictures.parquet"
    before = everything(output.parent)
    run_here("export", "--dataset", output, "--layout", "answers", "--to", path)
    assert everything(output.parent).keys() == {*before, path}
    table = pq.read_table(path).to_pylist()
    pictures = [(row["key"], row["variant"]) for row in table]
    assert pictures == [(row["key"], row["variant"]) for row in rows]
    assert len(set(pictures)) == sum(dataset.pictures("val", n) for n in dataset.shards("val"))
    assert {row["dataset"] for row in table} == {dataset.manifest.fingerprint}
    run_here("export", "--dataset", output, "--to", output.parent / "released")
    for row, listed in zip(table, csv_rows(output.parent / "a.csv"), strict=True):
        assert (output.parent / "released" / listed["path"]).read_bytes() == row["image"]


def test_keys_that_spreadsheets_would_run_are_guarded_and_read_again(
    small_sample: Path, tmp_path: Path
) -> None:
    keys = ["=1+1", "+1", "-1", "@a", "'=1+1", "''-1", "'a", "a=1", "'"]
    guarded = ["'=1+1", "'+1", "'-1", "'@a", "''=1+1", "'''-1", "'a", "a=1", "'"]
    source, output = tmp_path / "in", tmp_path / "out"
    for key, picture in zip(keys, pictures_of(small_sample), strict=False):
        annotation = Path("Annotations", "val")
        for path, copy in (
            (picture, source / picture.relative_to(small_sample)),
            (small_sample / annotation / f"{picture.stem}.xml", source / annotation / "x.xml"),
        ):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy.with_name(f"{key}{path.suffix}"))
    make = ("generate", "--input", source, "--variants", "original", *QUICK, *ONE)
    run_here(*make, "--output", output)
    for suffix in (".csv", ".parquet"):
        table = tmp_path / f"table{suffix}"
        run_here("export", "--dataset", output, "--layout", "answers", "--to", table)
        exported = csv_rows(table) if suffix == ".csv" else pq.read_table(table).to_pylist()
        shown = guarded if suffix == ".csv" else keys
        assert sorted(row["key"] for row in exported) == sorted(shown)
        filled = write(tmp_path / f"filled{suffix}", ({**row, "label": 0} for row in exported))
        answers = read_answers(f"answers:{filled}", dataset_in(output).taxonomy)
        assert sorted(answers.positions["original"]) == sorted(keys)
    # Text of other columns, such as the name of a superclass, comes from guarded tables, too.
    names = Taxonomy(("=b",), ("a",), (0,), ("a",))
    one = [{"key": "k", "variant": "original", "label": "'=b"}]
    path = write(tmp_path / "named.csv", one)
    assert read_answers(f"answers:{path}", names).values.tolist() == [0]


def measures(output: Path, name: str, model: str, rule: str) -> list[Row]:
    """The rows of a model in a table under a label rule, without what names the two.

    What the other models of the table decide, `among_best`, is left out, too.
    """
    names = {"model", "label_rule", "weights_sha256", "device", "among_best"}
    return [
        {column: value for column, value in row.items() if column not in names}
        for row in table_of(output, name, model=model, label_rule=rule)
    ]


@pytest.mark.parametrize("name", TABLES)
def test_answers_give_the_figures_of_their_network(
    output: Path, entries: dict[str, str], name: str
) -> None:
    for rule in (PAPER_RULE, "mapped_only"):
        expected = measures(output, name, entries["network"], rule)
        assert expected == measures(output, name, entries["scores"], rule) != []
    expected = measures(output, name, entries["network"], PAPER_RULE)
    assert expected == measures(output, name, entries["output"], PAPER_RULE)
    assert expected == measures(output, name, entries["label"], CLOSED_CHOICE)


def test_no_table_or_difference_mixes_rules(output: Path, entries: dict[str, str]) -> None:
    has = {"scores": [PAPER_RULE, "mapped_only"], "output": [PAPER_RULE], "label": [CLOSED_CHOICE]}
    for kind, rules in has.items():
        model = entries[kind]
        found = [row["label_rule"] for row in table_of(output, "gaps", model=model)]
        assert found == rules
    assert [row["variant"] for row in table_of(output, "power")] == ["only_bg_t"] * 2
    for row in table_of(output, "comparisons"):
        assert entries["label"] not in (row["first"], row["second"])
    reason = f"{entries['label']}, whose answers are superclasses"
    latex = (output / "results/latex/headline.tex").read_text()
    (left_out,) = [line for line in latex.splitlines() if "so left out" in line]
    assert "label.jsonl" in left_out
    page = (output / "report.html").read_text()
    assert page.count("whose answers are superclasses") == 4
    assert f"not among the points: {reason}" in (output / "results/trend.json").read_text()
    gate = ("evaluate", "--dataset", output, "--models", entries["label"], "--fail_if")
    printed = run_here(*gate, "bg_gap>0.9").out
    assert printed.index(f"by {PAPER_RULE}:") < printed.index(f"by {CLOSED_CHOICE}:")
    assert f"answer without scores: {entries['label']}, {entries['output']}" in " ".join(
        printed.split()
    )
    printed = run_here(*gate, "argmax_then_map:bg_gap>0.9", code=1).err
    assert f"is not tested: {reason} has no bg_gap" in printed
    attack = ("attack", "--dataset", output, "--models", entries["scores"])
    assert "this needs a network that can be run" in refusal(*attack)


def dropped(rows: list[Row], number: int) -> list[Row]:
    """Removes some rows at random."""
    random.Random(number).shuffle(rows)
    return rows[number:]


FAULTS: dict[str, tuple[Callable[[list[Row]], Iterable[Row]], str]] = {
    "three removed": (lambda rows: dropped(rows, 3), "lacks 3 answers ("),
    "a variant removed": (
        lambda rows: (row for row in rows if row["variant"] != "no_fg"),
        "lacks 18 answers (18 on no_fg), such as sample_val_",
    ),
    "two doubled": (lambda rows: [*rows, *rows[5:7]], "answers 2 pictures twice: "),
    "another dataset": (
        lambda rows: ({**row, "dataset": "f00d" * 8} for row in rows),
        "answers pictures of dataset f00df00df00d, and this is ",
    ),
    "another dataset of other classes": (
        lambda rows: (
            {**base, "dataset": "f00d" * 8, "label": "dishes"} for base, _ in winners(rows)
        ),
        "answers pictures of dataset f00df00df00d, and this is ",
    ),
    "two datasets": (
        lambda rows: [*rows[:-1], {**rows[-1], "dataset": "f00d" * 8}],
        "is of several datasets: ",
    ),
    "an unknown key": (
        lambda rows: [*rows, {**rows[0], "key": "another"}],
        "answers 1 picture that the split does not have: another on original",
    ),
    "not a number": (
        lambda rows: [{**rows[0], "scores": [float("nan")] * 1000}, *rows[1:]],
        "row 1, column scores: some are NaN or infinity",
    ),
    "another length": (
        lambda rows: [*rows[:-1], {**rows[-1], "scores": [0.0]}],
        "column scores: answers of shape (1, 1) for 1 picture, where the first has (1000,)",
    ),
    "another head": (
        lambda rows: ({**row, "scores": row["scores"][:12]} for row in rows),
        "a head of 12 outputs fits neither",
    ),
    "no answer": (
        lambda rows: (base for base, _ in winners(rows)),
        "must have the columns key, variant, and only one of scores, output and label; it has data",
    ),
    "an unknown class": (
        lambda rows: ({**base, "output": "unicorn"} for base, _ in winners(rows)),
        "column output: 'unicorn' is no class of the dataset",
    ),
    "an unknown label": (
        lambda rows: ({**base, "label": 9} for base, _ in winners(rows)),
        "column label: '9' is no superclass of the dataset",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_files_are_refused_in_one_line(
    fault: str, output: Path, rows: list[Row], tmp_path: Path
) -> None:
    change, message = FAULTS[fault]
    path = write(tmp_path / "answers.parquet", change(list(rows)))
    command = ("evaluate", "--dataset", output, "--models")
    assert message in refusal(*command, f"answers:{path}")


@pytest.fixture(scope="module")
def lacking(
    rows: list[Row], three_draws: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, int]:
    """A dataset whose answers lack some for `only_fg` and count as wrong: (it, table, how many)."""
    folder = tmp_path_factory.mktemp("lacking")
    fewer = Path(shutil.copytree(three_draws, folder / "out"))
    some = [row for row in rows if row["variant"] != "only_fg" or row["key"] > rows[2]["key"]]
    path = write(folder / "some.parquet", some)
    evaluate = ("evaluate", "--dataset", fewer, *ONE, "--models", f"answers:{path}")
    run_here(*evaluate, *keys(missing_answers="wrong"))
    return fewer, path, len(rows) - len(some)


def test_missing_answers_count_as_wrong_if_asked_and_every_table_says_so(
    output: Path, entries: dict[str, str], lacking: tuple[Path, Path, int]
) -> None:
    fewer, path, number = lacking
    assert 0 < number < 18
    note = f"answers:{path} ({number} missing answers count as wrong)"
    for name in TABLES:
        assert note in {row["model"] for row in table_of(fewer, name)}
    assert note in (fewer / "report.html").read_text().replace("<wbr>", "")
    for rule in (PAPER_RULE, "mapped_only"):
        found, whole = (
            measures(folder, "summary", model, rule)
            for folder, model in ((fewer, note), (output, entries["scores"]))
        )
        assert [row for row in found if row["variant"] != "only_fg"] == [
            row for row in whole if row["variant"] != "only_fg"
        ]
        assert all(int(row["outside"]) >= number for row in found if row["variant"] == "only_fg")


def test_missing_answers_are_refused_until_the_file_is_corrected(
    output: Path,
    entries: dict[str, str],
    rows: list[Row],
    lacking: tuple[Path, Path, int],
    small_sample: Path,
    tmp_path: Path,
) -> None:
    fewer, number = Path(shutil.copytree(lacking[0], tmp_path / "out")), lacking[2]
    entry = f"answers:{lacking[1]}"
    evaluate = ("evaluate", "--dataset", fewer, *ONE, "--models", entry)
    # Nothing is left to compute. In a run, whose dataset may not exist yet, the same line is the
    # model's failure.
    line = refusal(*evaluate).removeprefix("in9 evaluate: ")
    assert f"lacks {number} answers ({number} on only_fg)" in line
    again = ("run", "--input", small_sample, "--replicates", 3, *QUICK, *ONE, "--output", fewer)
    assert line.strip() in run_here(*again, "--models", entry, code=1).err
    # A corrected file is a new model by the old name.
    write(lacking[1], rows)
    refused = run_here(*evaluate, code=1).err
    assert f"the weights of {entry} have changed since {fewer}/results/" in refused
    assert "/model.json was written (sha256 " in refused
    assert "add --overwrite weights" in refused
    run_here(*evaluate, "--overwrite", "weights")
    for rule in (PAPER_RULE, "mapped_only"):
        corrected = measures(fewer, "summary", entry, rule)
        assert corrected == measures(output, "summary", entries["scores"], rule) != []


def test_answers_are_classes_by_any_of_their_names(tmp_path: Path) -> None:
    classes = Taxonomy(("a", "b"), ("n1", "n2", "n3"), (1, 0, OUTSIDE), ("cat, puss", "Dog", "cat"))
    given = ["n1", "PUSS", "0", "", "dog", "2.0", "n3"]
    told = [{"key": str(i), "variant": "original", "output": x} for i, x in enumerate(given)]
    file = write(tmp_path / "a.csv", told)
    answers = read_answers(f"answers:{file}", classes)
    assert answers.on("original", [str(i) for i in range(8)]).tolist() == [
        *(0, 0, 0, OUTSIDE, 1, 2, 2, NO_ANSWER)
    ]
    write(file, [{**told[0], "output": "cat"}, *told[1:]])
    with pytest.raises(UsageError, match="'cat' is no class of the dataset, or of several"):
        read_answers(f"answers:{file}", classes)
    named = [{"key": str(i), "variant": "v", "label": x} for i, x in enumerate(["B", "1", "", -1])]
    answers = read_answers(f"answers:{write(tmp_path / 'b.csv', named)}", classes)
    assert answers.on("v", ["0", "1", "2", "3"]).tolist() == [1, 1, OUTSIDE, OUTSIDE]


def test_scores_in_a_csv_are_json(tmp_path: Path) -> None:
    told = {"key": "0", "variant": "v"}
    file = write(tmp_path / "a.csv", [{**told, "scores": json.dumps([0.25] * 999 + [1e-3])}])
    answers = read_answers(f"answers:{file}", imagenet9())
    assert answers.num_outputs == 1000
    assert answers.on("v", ["0"])[0, [0, 999]].tolist() == np.float32([0.25, 1e-3]).tolist()
    assert np.isneginf(answers.on("v", ["1"])).all()
    for wrong in ("1,2", "[[1]]", "[]", "yes"):
        write(file, [{**told, "scores": wrong}])
        with pytest.raises(UsageError, match=r"column scores: .* is not a list of numbers"):
            read_answers(f"answers:{file}", imagenet9())


@pytest.mark.parametrize("kind", ["scores", "output", "label"])
def test_a_row_without_its_answer_is_named_and_empty_ones_are_counted(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = {"key": "0", "variant": "original"}
    rows = [{**base, kind: [0.0] * 1000 if kind == "scores" else None}, {**base, "key": "1"}]
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(UsageError, match=f"line 2, column {kind}: it is missing"):
        read_answers(f"answers:{file}", imagenet9())
    file = write(tmp_path / "b.jsonl", rows[:1])
    other = write(
        tmp_path / "c.jsonl", [{**rows[0], kind: [1.0] * 1000 if kind == "scores" else 0}]
    )
    # A job of several files reads each of them several times.
    for path in (file, other, file):
        read_answers(f"answers:{path}", imagenet9())
    told = "" if kind == "scores" else f"{file}: 1 empty answer, none of the classes\n"
    assert capsys.readouterr().err == told


@pytest.mark.usefixtures("no_figures")
def test_answers_without_a_label_rule_of_the_gate_do_not_fail_it(
    output: Path, entries: dict[str, str], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(output, tmp_path / "out"))
    conditions = "bg_gap>baseline+1,mapped_only:original>1,closed_choice:original>1"
    flags = ("report", "--dataset", copy, "--pictures", "none", "--fail_if", conditions)
    printed = run_here(*flags, "--baseline", entries["network"])
    lines = [line for line in (printed.out + printed.err).splitlines() if "--fail_if" in line]
    assert len(lines) == 2 + 1 + 1
    assert not any("not tested" in line for line in lines)
    # A job on such a model alone cannot be judged, nor can a rule that no model has.
    job = ("evaluate", "--dataset", copy, "--pictures", "none", "--models", entries["label"])
    printed = run_here(*job, "--fail_if", "bg_gap>baseline+1", *ONE, code=1).err
    assert "they have no label rule in common" in printed
    shutil.rmtree(next((copy / "results").glob("*label*")))
    assert "closed_choice:original>1 is not tested: " in run_here(*flags, code=1).err
