"""Tests the figures: names, intervals and sizes, and their files."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from report_page import MODELS

from pipeline.analyses import ANALYSES
from pipeline.analyses.evaluation import figures as evaluation_figures
from pipeline.analyses.evaluation.figures import forest_figure
from pipeline.dataset.folder import Dataset
from pipeline.display.plot import FEW_IMAGES, Series, rows_figure
from pipeline.display.style import POINT, SOFT, TEXT, THEME
from pipeline.display.table import Cell
from pipeline.report import write
from pipeline.report.page import inline_svg
from pipeline.report.write import describe_report, gather, write_report
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9


@pytest.mark.filterwarnings("error")
def test_a_figure_takes_any_name_of_a_class() -> None:
    names = ["\x1b[31m", "a\tb", "\ufffe", "\N{KATAKANA LETTER I}"]
    series = Series("a\x00", ((0.5, 0.4, 0.6),) * 4)
    text = inline_svg(rows_figure("by class", names, [series]).svg, "x", "a")
    assert "\N{REPLACEMENT CHARACTER}[31m" in text


def test_a_figure_holds_the_names_of_its_models() -> None:
    for name in ("vit_base_patch16_{}.in21k_ft", "efficientnet_lite{}", "a model {}"):
        series = [Series(name.format(number), ((0.5, 0.4, 0.6),)) for number in range(4)]
        figure = rows_figure("by class", ["dog"], series).figure
        (legend,) = figure.legends
        assert legend.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("models", [1, 2, 20])
def test_names_and_figures_stand_beside_a_forest_plot_on_the_lines_of_its_intervals(
    models: int,
) -> None:
    rows = [
        (f"vit_base_patch16_clip_{n}.openai_ft_in1k", Cell(0.1 - n / 99, -0.2, 0.2))
        for n in range(models)
    ]
    drawn = forest_figure("BG-Gap by model", rows)
    figure, (axes,) = drawn.figure, drawn.figure.axes
    frame, lines = axes.get_window_extent(), axes.transData
    labels, figures = axes.get_yticklabels(), axes.texts
    for row, (name, text) in enumerate(zip(labels, figures, strict=True)):
        left, right = name.get_window_extent(), text.get_window_extent()
        assert figure.bbox.x0 <= left.x0 < left.x1 < frame.x0
        assert frame.x1 < right.x0 < right.x1 <= figure.bbox.x1
        y = lines.transform((0, row))[1]
        assert abs((left.y0 + left.y1) / 2 - y) < 2
        assert abs((right.y0 + right.y1) / 2 - y) < 2
    assert figures[0].get_text() == "10.0 [-20.0, 20.0]"
    tops = [name.get_window_extent().y1 for name in labels]
    assert all(above - below > TEXT * POINT for above, below in itertools.pairwise(tops))
    assert len({round(text.get_window_extent().x1) for text in figures}) == 1
    # It fits the text of a paper, and half a page.
    width, height = map(float, re.findall(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+)", drawn.pdf())[0])
    assert width == pytest.approx(5.5 * 72, abs=0.1)
    assert height < 220


def test_a_class_of_few_images_is_grey_and_every_class_has_its_interval() -> None:
    values = ((0.5, 0.3, 0.7), (0.6, 0.5, 0.8))
    series = [Series("a", values, others=(0.9, 0.4))]
    counts = [FEW_IMAGES - 1, FEW_IMAGES]
    drawn = rows_figure("by class", ["dog", "bird"], series, counts=counts)
    assert drawn.figure.get_figwidth() == pytest.approx(3.25)
    (axes,) = drawn.figure.axes
    whiskers, joined, hollow, filled = axes.collections
    assert [[x for x, _ in line] for line in whiskers.get_segments()] == [[0.3, 0.7], [0.5, 0.8]]
    assert [[x for x, _ in line] for line in joined.get_segments()] == [[0.5, 0.9], [0.6, 0.4]]
    assert [x for x, _ in hollow.get_offsets()] == [0.9, 0.4]
    grey, coloured = map(to_hex, filled.get_facecolors())
    assert grey == SOFT
    assert THEME[coloured] == "model-0"


def test_figures_become_pdf_files_when_asked_and_stay_up_to_date(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Path(shutil.copytree(small_run, tmp_path / "out"))
    store, figures = Store(str(output)), output / "results" / "figures"
    assert not list(figures.glob("*.pdf"))
    assert describe_report(store).endswith(
        f"\nfigures for a paper: in9 report --dataset {output} makes {figures}/*.pdf"
    )
    # Two figures stand for all, because a PDF file takes a third of a second.
    all_plots = evaluation_figures.make_plots
    first = lambda evidence: itertools.islice(all_plots(evidence), 2)  # noqa: E731
    monkeypatch.setattr(evaluation_figures, "make_plots", first)
    monkeypatch.setattr(write, "ANALYSES", [one for one in ANALYSES if one.name == "evaluate"])
    assert write_report(store, imagenet9(), pdf=True)
    assert describe_report(store).endswith(f"\nfigures for a paper: {figures}/*.pdf")
    pdfs = {path.stem: path.read_bytes() for path in figures.glob("*.pdf")}
    assert set(pdfs) == {path.stem for path in figures.glob("*.svg")}
    for data in pdfs.values():
        assert data.startswith(b"%PDF")
        assert b"/Type3" not in data
        assert b"/CreationDate" not in data
    page = (output / "report.html").read_text()
    assert all(f'href="results/figures/{stem}.pdf"' in page for stem in pdfs)
    # Existing PDF files are kept up to date without being asked for.
    assert not write_report(store, imagenet9())
    (figures / f"{min(pdfs)}.pdf").write_bytes(b"%PDF of earlier results")
    (figures / "confusion-original-gone.pdf").write_bytes(b"%PDF")
    assert write_report(store, imagenet9())
    assert {path.stem: path.read_bytes() for path in figures.glob("*.pdf")} == pdfs


def test_figures_are_named_after_labels(small_run: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(small_run, tmp_path / "out"))
    path = output / "results" / MODELS[0] / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"label": "GPT-4"}))
    evidence = gather(Dataset.open(Store(str(output))), imagenet9())
    files = {plot.file for plot in evaluation_figures.make_plots(evidence)}
    assert {"confusion-original-GPT-4.svg", "groups-mixed_rand-GPT-4.svg"} <= files
    assert not any(MODELS[0] in file for file in files)
