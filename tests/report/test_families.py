"""Tests what terminal, page, LaTeX and figures say of families, the trainings of a method."""

import html
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_page import PHONE, TOO_WIDE, WIDE, open_all
from runs import dataset_in, latex_lines, run_here, table_of, write_all

from pipeline.analyses.evaluation.figures import forest_figure, make_plots
from pipeline.display.table import Cell
from pipeline.report.write import gather
from transforms.taxonomy import imagenet9

VARIANTS = ("original", "mixed_same", "mixed_rand")


def figures_of(output: Path, method: str) -> dict[str, np.ndarray]:
    """Returns the accuracies of each training of a method, and its BG-Gaps, by variant."""
    figures: dict[str, list[float]] = {}
    for row in table_of(output, "summary"):
        if row["model"].startswith(f"{method}#"):
            figures.setdefault(row["variant"], []).append(float(row["accuracy"]))
    found = {name: np.asarray(values) for name, values in figures.items()}
    return found | {"bg_gap": found["mixed_same"] - found["mixed_rand"]}


@pytest.mark.usefixtures("no_figures")
def test_the_terminal_has_a_row_for_each_family_above_its_trainings(
    families_run: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(families_run, tmp_path / "out")
    lines = run_here("report", "--dataset", output, "--pictures", "none").out.splitlines()
    heads = re.split(r"  +", lines[0])
    table = [re.split(r"(?<=\S)  +", line) for line in lines[1 : 1 + 3 + 4 + 3 + 2 + 3]]
    assert [row[0] for row in table] == [
        *("dfr, mean of 3", "  dfr#0", "  dfr#1", "  dfr#2"),
        *("erm, mean of 4", "  erm#0", "  erm#1", "  erm#2", "  erm#3"),
        *("jtt, mean of 2", "  jtt#0", "  jtt#1"),
        *("lone#0, one training", "other", "single"),
    ]
    rows = {row[0]: dict(zip(heads, row, strict=True)) for row in table}
    for method, seeds in (("erm", 4), ("dfr", 3), ("jtt", 2)):
        of_family, row = figures_of(output, method), rows[f"{method}, mean of {seeds}"]
        for name in VARIANTS:
            assert row[name] == f"{100 * of_family[name].mean():.1f}"
        assert row["BG-Gap"].startswith(f"{100 * of_family['bg_gap'].mean():.1f} ")
    jtt = 100 * figures_of(output, "jtt")["bg_gap"]
    assert rows["jtt, mean of 2"]["BG-Gap"].endswith(f"(range {jtt.min():.1f} to {jtt.max():.1f})")
    assert "no interval: jtt has 2 trainings, and an interval needs 3" in lines


def test_the_head_of_the_page_shows_trainings_as_dots_beside_the_interval(
    open_page: Any, families_run: Path
) -> None:
    page = open_page(families_run).page
    lines = page.locator(".dots li")
    titles = lines.locator("> span:first-child").all_inner_texts()
    assert sorted(titles) == [
        *("dfr, mean of 3", "erm, mean of 4", "jtt, mean of 2"),
        *("lone#0, one training", "other", "single"),
    ]
    gaps = [float(text) for text in lines.locator("> b").all_inner_texts()]
    assert gaps == sorted(gaps, reverse=True)
    dots: list[tuple[float, float]] = []
    for title, line in zip(titles, lines.all(), strict=True):
        track, (method, *of_mean) = line.locator(".track"), title.split(", mean")
        assert ("--low" in (track.get_attribute("style") or "")) == (method != "jtt")
        places = track.locator("i").evaluate_all("all => all.map(e => e.getBoundingClientRect().x)")
        values = sorted(figures_of(families_run, method)["bg_gap"]) if of_mean else []
        dots += zip(values, sorted(places), strict=True)
    values, places = np.asarray(dots).T
    slope, start = np.polyfit(values, places, 1)
    assert slope > 0
    assert np.abs(start + slope * values - places).max() < 0.5
    text = page.locator(".headline").inner_text()
    assert "families and models with an interval" in text
    assert "No interval: jtt has 2 trainings, and an interval needs 3." in text


def test_trainings_stand_folded_below_their_family_and_follow_it(
    open_page: Any, families_run: Path
) -> None:
    opened = open_page(families_run)
    page = opened.page
    page.get_by_text("Every variant of 6 families and models").click()
    table = page.locator("#accuracy table.sortable").first

    def names() -> list[str]:
        found = table.locator("tbody th .whole:visible").all_inner_texts()
        return [str(name) for name in found]

    families = table_of(families_run, "families", variant="bg_gap")
    gaps = {row["family"]: float(row["mean"]) for row in families}
    gaps |= {row["model"]: float(row["gap"]) for row in table_of(families_run, "gaps")}
    assert len(names()) == 6
    assert [gaps[name] for name in names()] == sorted(map(gaps.get, names()), reverse=True)
    for label, number in (("show 4 trainings", 10), ("show 2 trainings", 12)):
        table.get_by_label(label).check()
        assert len(names()) == number
    heads = table.locator("thead th")
    for head in (0, 3, 3):
        heads.nth(head).locator("button").click()
        at = names().index("erm")
        assert sorted(names()[at + 1 : at + 5]) == [f"erm#{seed}" for seed in range(4)]
    assert "one training" in table.get_by_role("row", name="lone#0").inner_text()
    assert table.get_by_text("one training").count() == 1
    assert table.locator(".seed b").count() == 0
    assert table.locator("b").count() > 0
    # Families are compared with families alone, and models in none with each other.
    table = page.locator("[aria-label='Differences between families or models']")
    pairs = table.locator("tbody th").all_text_contents()
    compared = [frozenset(" ".join(pair.split()).split(" minus ")) for pair in pairs]
    in_none = itertools.combinations(("lone#0", "single", "other"), 2)
    assert len(compared) == 4
    assert set(compared) == {frozenset(("dfr", "erm")), *map(frozenset, in_none)}
    assert opened.complaints == []


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=lambda size: str(size["width"]))
def test_pages_of_families_fit_any_screen(
    open_page: Any, families_run: Path, size: dict[str, int]
) -> None:
    page = open_page(families_run, viewport=size).page
    open_all(page)
    for box in page.locator(".trainings input").all():
        box.check()
    assert page.evaluate(TOO_WIDE) == []


@pytest.mark.usefixtures("no_figures")
def test_a_family_without_interval_is_alone_on_its_page_and_tables_go_with_families(
    families_run: Path, tmp_path: Path
) -> None:
    output = Path(shutil.copytree(families_run, tmp_path / "out"))
    latex = output / "results" / "latex" / "families.tex"
    folders = {
        json.loads(path.read_text())["label"]: path.parent
        for path in output.glob("results/*/model.json")
    }
    for label, folder in folders.items():
        if not label.startswith("jtt#"):
            shutil.rmtree(folder)
    write_all(output)
    _, _, head = (output / "report.html").read_text().partition('<div class="headline">')
    head = html.unescape(re.sub("<[^>]+>", " ", head.partition("</div>")[0]))
    head = " ".join(head.split())
    jtt = 100 * figures_of(output, "jtt")["bg_gap"]
    assert head.startswith("BG-Gap of jtt, mean of 2: what a model loses")
    assert f" {jtt.mean():.1f} points no interval " in head
    assert f"in the mean of 2 trainings, whose gaps are {jtt.min():.1f} to {jtt.max():.1f}." in head
    assert "jtt has 2 trainings" in head
    assert latex.exists()
    shutil.rmtree(folders["jtt#1"])
    write_all(output)
    assert not latex.exists()
    assert "BG-Gap of jtt#0, one training: what" in (output / "report.html").read_text()


def test_the_figure_of_gaps_has_families_first(families_run: Path) -> None:
    plot = next(make_plots(gather(dataset_in(families_run), imagenet9())))
    assert (plot.file, plot.alt[:30]) == ("gaps.svg", "BG-Gap of each family and mode")
    (axes,) = plot.drawn.figure.axes
    assert axes.get_title("left") == "BG-Gap by family and model"
    names = [label.get_text() for label in axes.get_yticklabels()]
    gaps = [float(text.get_text().split()[0]) for text in axes.texts]
    assert set(names[:3]) == {"dfr", "erm", "jtt"}
    assert set(names[3:]) == {"lone#0", "single", "other"}
    assert gaps[:3] == sorted(gaps[:3], reverse=True)
    assert gaps[3:] == sorted(gaps[3:], reverse=True)


def test_a_forest_plot_has_trainings_on_the_lines_of_intervals() -> None:
    cells = [
        ("erm", Cell(0.1, 0.02, 0.2, seeds=(0.05, 0.12, 0.13))),
        ("jtt", Cell(0.3, 0.25, 0.35, is_range=True, seeds=(0.25, 0.35))),
        ("single", Cell(0.2, 0.1, 0.3)),
    ]
    (axes,) = forest_figure("BG-Gap by family and model", cells).figure.axes
    (lines,) = axes.collections
    assert [(line[0][0], line[1][0], line[0][1]) for line in lines.get_segments()] == [
        (0.02, 0.2, 0),
        (0.1, 0.3, 2),
    ]
    drawn = {
        (float(x), float(y), line.get_marker())
        for line in axes.lines
        for x, y in zip(*line.get_data(), strict=True)
    }
    assert {(x, y) for x, y, marker in drawn if marker == "o"} == {
        *((0.05, 0.0), (0.12, 0.0), (0.13, 0.0)),
        *((0.25, 1.0), (0.35, 1.0)),
    }
    assert {(x, y) for x, y, marker in drawn if marker == "s"} == {(0.1, 0), (0.3, 1), (0.2, 2)}
    assert [text.get_text() for text in axes.texts] == [
        "10.0 [2.0, 20.0]",
        "30.0 (range 25.0 to 35.0)",
        "20.0 [10.0, 30.0]",
    ]
    assert "single trainings" in axes.get_xlabel()


def test_latex_has_the_interval_of_a_family_or_its_range_and_the_standard_deviation(
    families_run: Path,
) -> None:
    heads, *rows = latex_lines(families_run, "families")
    assert [row[0] for row in rows] == [
        *("dfr", r"\scriptsize 3 trainings", r"\scriptsize sd"),
        *("erm", r"\scriptsize 4 trainings", r"\scriptsize sd"),
        *("jtt", r"\scriptsize 2 trainings", r"\scriptsize sd"),
    ]
    csv_rows = {(row["family"], row["variant"]): row for row in table_of(families_run, "families")}
    column = heads.index(r"\footnotesize BG-Gap")
    for number, (name, form) in enumerate(
        (("dfr", "[{}, {}]"), ("erm", "[{}, {}]"), ("jtt", "{}$ to ${}"))
    ):
        row = csv_rows[name, "bg_gap"]
        ends = ("lowest", "highest") if name == "jtt" else ("ci_low", "ci_high")
        mean, low, high, sd = (f"{100 * float(row[one]):.1f}" for one in ("mean", *ends, "sd"))
        assert [line[column] for line in rows[3 * number : 3 * number + 3]] == [
            f"${mean}$",
            rf"\scriptsize${form.format(low, high)}$",
            rf"\scriptsize${sd}$",
        ]
    # The seeds stay in the other tables.
    headline = (families_run / "results" / "latex" / "headline.tex").read_text()
    assert all(rf"erm\#{seed} &" in headline for seed in range(4))
    assert any(r"\mathbf" in cell for row in rows for cell in row)
