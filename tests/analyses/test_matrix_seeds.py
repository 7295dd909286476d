"""Tests the matrix of several trainings: means, their intervals, and which trainings it has."""

import itertools
import json
import re
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from runs import ONE, QUICK, dataset_in, run_here, run_in9, table_of
from two_way_by_hand import (
    Method,
    contributions_to,
    interval_of,
    interval_of_mean,
    share_interval,
    singles_of,
    spread_of,
)

from pipeline.analyses.matrix.parts import gains, gaps_in9
from pipeline.analyses.matrix.results import read_matrices
from pipeline.evaluate.evidence import Results

ROWS = ("mixed_rand", "mixed_same", "original")
NAME = "test_resnet-2ep-val-holdout0.5"
MEAN = "Each figure is the mean of the trainings with seeds"
MATRIX = ("matrix", "--arch", "test_resnet", "--epochs", 2, "--batch_size", 8, "--workers", 0)
MATRIX = (*MATRIX, "--holdout", 0.5, "--variants", ",".join(ROWS), "--pictures", "none")


@pytest.fixture(scope="module")
def of_three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A dataset with a matrix of three seeds, and what was printed. Tests must not change it."""
    output = tmp_path_factory.mktemp("seeds") / "out"
    run_here("generate", "--output", output, *QUICK, "--variants", ",".join(ROWS), *ONE)
    command = (*MATRIX, "--dataset", output, "--lr", 0.05, "--seeds", "0,1,2")
    return output, run_in9(*command, figures=True).stdout


@pytest.fixture
def copied(of_three: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copytree(of_three[0], tmp_path / "out"))


def folder_of(output: Path, seed: int, row: str) -> Path:
    name = f"{NAME}-seed{seed}" if seed else NAME
    return output / "results" / f"{name}-{row}+holdout0.5"


def answers(
    output: Path, seed: int, row: str, column: str, paired: str = ""
) -> list[tuple[str, str | None, bool]]:
    """Returns (foreground, background, right) of each picture of a cell that counts, by key.

    Those on `paired` must count, too.
    """
    table = pq.read_table(folder_of(output, seed, row) / "predictions", partitioning=None)
    rows = [one for one in table.to_pylist() if one["label_rule"] == "argmax_then_map"]
    held_out = {one["fg_key"] for one in rows}
    of_variant = {
        name: {one["fg_key"]: one for one in rows if one["variant"] == name}
        for name in (column, paired or column)
    }
    return [
        (key, one["bg_key"] if column.startswith("mixed") else None, one["correct"])
        for key, one in sorted(of_variant[column].items())
        if all(
            not name.startswith("mixed") or of_name[key]["bg_key"] in held_out
            for name, of_name in of_variant.items()
        )
    ]


def accuracy_of(pictures: list[tuple[str, str | None, bool]]) -> tuple[float, list[float]]:
    """Returns an accuracy, and the contribution of each picture to it."""
    share = sum(right for *_, right in pictures) / len(pictures)
    return share, [(right - share) / len(pictures) for *_, right in pictures]


def methods_of(output: Path, row: str, column: str, paired: str = "") -> Any:
    return [accuracy_of(answers(output, seed, row, column, paired)) for seed in range(3)]


def test_cells_are_means_with_the_interval_of_the_method(of_three: tuple[Path, str]) -> None:
    output, printed = of_three
    lines = table_of(output, "matrix")
    cells = [(row, column) for row in ROWS for column in ROWS]
    assert [(one["train_variant"], one["test_variant"]) for one in lines[::4]] == cells
    assert [one["seed"] for one in lines] == [*("0", "1", "2", "")] * len(cells)
    for number, (row, column) in enumerate(cells):
        *trainings, mean = lines[4 * number : 4 * number + 4]
        seeds = methods_of(output, row, column)
        values = [value for value, _ in seeds]
        pictures = answers(output, 0, row, column)
        for seed, line in enumerate(trainings):
            assert float(line["accuracy"]) == pytest.approx(values[seed], abs=1e-12)
            ends = share_interval(answers(output, seed, row, column))
            assert (float(line["ci_low"]), float(line["ci_high"])) == pytest.approx(ends, abs=1e-6)
            assert (line["seeds"], line["sd"], line["lowest"]) == ("1", "", line["accuracy"])
            assert f"-seed{seed}/model.safetensors" in line["checkpoint"]
        assert (mean["seeds"], mean["correct"], mean["checkpoint"]) == ("3", "", "")
        share = statistics.fmean(values)
        for name, expected in (
            *(("accuracy", share), ("sd", statistics.stdev(values))),
            *(("lowest", min(values)), ("highest", max(values))),
        ):
            assert float(mean[name]) == pytest.approx(expected, abs=1e-12)
        ends = interval_of_mean([(fg, bg) for fg, bg, _ in pictures], method(seeds))
        assert (float(mean["ci_low"]), float(mean["ci_high"])) == pytest.approx(ends, abs=1e-9)
        assert f"{100 * share:.1f} ({100 * statistics.stdev(values):.1f})" in printed
    assert any(float(line["sd"]) for line in lines[3::4])
    assert f"{MEAN[0].lower()}{MEAN[1:]} 0, 1, 2, with their standard deviation" in printed


def test_gaps_pair_the_variants_of_a_training_and_gains_pair_no_seeds(
    of_three: tuple[Path, str],
) -> None:
    output = of_three[0]
    (matrix,) = json.loads((output / "results" / "matrix.json").read_text())["matrices"]
    assert matrix["trainings"] == {NAME: 0, f"{NAME}-seed1": 1, f"{NAME}-seed2": 2}
    assert [one["train_variant"] for one in matrix["gaps"]] == list(ROWS)
    for gap in matrix["gaps"]:
        row = gap["train_variant"]
        both = list(itertools.permutations(("mixed_same", "mixed_rand")))
        roles = [(fg, bg) for each in both for fg, bg, _ in answers(output, 0, row, *each)]
        sides = [methods_of(output, row, *each) for each in both]
        pairs = zip(*sides, strict=True)
        gaps = [(one - other, r + [-x for x in s]) for (one, r), (other, s) in pairs]
        values = [value for value, _ in gaps]
        assert gap["difference"] == pytest.approx(statistics.fmean(values), abs=1e-12)
        assert gap["sd"] == pytest.approx(statistics.stdev(values), abs=1e-12)
        check_interval(gap, roles, gaps)
    assert [one["test_variant"] for one in matrix["gains"]] == list(ROWS)
    for gain in matrix["gains"]:
        column = gain["test_variant"]
        roles = [(fg, bg) for fg, bg, _ in answers(output, 0, "original", column)]
        sides = [methods_of(output, row, column) for row in ("mixed_rand", "original")]
        means = [statistics.fmean(value for value, _ in side) for side in sides]
        assert gain["difference"] == pytest.approx(means[0] - means[1], abs=1e-12)
        check_interval(gain, roles, *sides)


def method(seeds: Any) -> Method:
    values, rows = zip(*seeds, strict=True)
    return Method(values, rows)


def check_interval(row: Any, roles: Any, *methods: Any) -> None:
    """Compares the interval of a difference with that by hand."""
    of = [method(one) for one in methods]
    r = contributions_to(of)
    pictures = [(*role, one) for role, one in zip(roles, r, strict=True)]
    expected = interval_of(
        row["difference"], pictures, [fg for fg, _ in roles], spread_of(roles, of), singles_of(of)
    )
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(expected, abs=1e-7)


def test_the_page_shows_means_and_a_single_matrix(of_three: tuple[Path, str]) -> None:
    output = of_three[0]
    page = (output / "report.html").read_text()
    assert re.findall(r"<h3>(.*)</h3>", page.replace("<wbr>", "")).count(NAME) == 1
    assert f"{MEAN} 0, 1, 2, with their standard deviation in brackets.</p>" in page
    for line in table_of(output, "matrix")[3::4]:
        assert f"{100 * float(line['accuracy']):.1f} ({100 * float(line['sd']):.1f})" in page
    figures = {path.name for path in (output / "results" / "figures").glob("matrix-*.svg")}
    assert f"matrix-{NAME}-accuracy.svg" in figures
    assert not [name for name in figures if "seed" in name]


def claimed(output: Path) -> Iterator[Any]:
    (matrix,) = read_matrices(dataset_in(output))
    results = Results((), [matrix])
    yield from gaps_in9(results)
    yield from gains("mixed_rand")(results)


def test_two_seeds_have_a_range_and_decide_nothing_and_a_third_is_added(copied: Path) -> None:
    before, claims = table_of(copied, "matrix"), list(claimed(copied))
    assert len(claims) == 2
    for row in ROWS:
        shutil.rmtree(folder_of(copied, 2, row))
    command = (*MATRIX, "--dataset", copied, "--lr", 0.05, "--seeds")
    printed = run_in9(*command, "0,1").stdout
    assert "nothing to do: every row has been tested" in printed
    assert "seeds 0, 1, with their range; an interval needs 3 trainings" in printed
    assert "points (95 %)" not in printed
    lines, page = table_of(copied, "matrix"), (copied / "report.html").read_text()
    for number in range(0, len(lines), 3):
        *trainings, mean = lines[number : number + 3]
        values = [float(one["accuracy"]) for one in trainings]
        assert float(mean["accuracy"]) == pytest.approx(statistics.fmean(values))
        ends = (float(mean["lowest"]), float(mean["highest"]))
        assert ends == (min(values), max(values))
        assert (mean["seeds"], mean["ci_low"], mean["ci_high"]) == ("2", "", "")
        low, high = (f"{100 * end:.1f}" for end in ends)
        assert f"({low} to {high})" in printed
        assert f"{low} <span>to {high}</span>" in page
    assert not list(claimed(copied))
    # The third seed has its trainings, but one, and is gathered with the first two.
    shutil.rmtree(copied / "models" / "test_resnet-original-2ep-holdout0.5-seed2")
    printed = run_in9(*command, "2").stdout
    assert printed.count("epoch 1 of 2") == 1
    assert "rows tested: 3 of 3" in printed
    assert table_of(copied, "matrix") == before


def test_trainings_with_other_flags_are_not_averaged(copied: Path) -> None:
    before = table_of(copied, "matrix")
    command = (*MATRIX, "--dataset", copied, "--lr", 0.01)
    assert f"{NAME}-seed3, %" in run_in9(*command, "--seeds", 3).stdout
    first, second = read_matrices(dataset_in(copied))
    assert (list(first.trainings.values()), list(second.trainings.values())) == ([0, 1, 2], [3])
    assert table_of(copied, "matrix")[: len(before)] == before
    # While one is being made again with other flags, its rows are averaged with none.
    model = folder_of(copied, 1, "original") / "model.json"
    content = json.loads(model.read_text())
    content["matrix"]["settings"] = "others"
    model.write_text(json.dumps(content))
    seeds = [list(one.trainings.values()) for one in read_matrices(dataset_in(copied))]
    assert seeds == [[0, 2], [1], [3]]
