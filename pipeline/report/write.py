"""Writes the tables, the page and its figures into the dataset's folder."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.analyses import ANALYSES
from pipeline.analyses.analysis import Analysis
from pipeline.dataset.folder import Dataset
from pipeline.errors import shown_bytes
from pipeline.evaluate.failures import read_failures
from pipeline.report.evidence import gather
from pipeline.report.freshness import fingerprint_inputs, is_fresh, note_fresh
from pipeline.runtime.lock import TABLES_LOCK, held
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy

REPORT = "report.html"
FOLDER = "results/figures"
"""Folder of the report's figures."""


def is_report_figure(path: str) -> bool:
    """Returns whether a path is one that this or an earlier report gives to a figure."""
    stem, dot, kind = path.removeprefix(f"{FOLDER}/").rpartition(".")
    if not path.startswith(f"{FOLDER}/") or f"{dot}{kind}" not in (".svg", ".pdf"):
        return False
    names = [name for analysis in ANALYSES for name in analysis.parts.figures]
    return any(stem.startswith(name) if name.endswith("-") else stem == name for name in names)


def write_report(
    store: Store, taxonomy: Taxonomy, pictures: str = "sample", *, pdf: bool = False
) -> bool:
    """Writes the page and its figures if they have changed, and removes figures that are no longer
    drawn; returns whether any file has changed.

    Args:
      store: the dataset folder.
      taxonomy: the dataset's classes.
      pictures: `sample`, or `none` to leave all pictures out.
      pdf: whether to write figures as PDF files, too; they are also written if the folder already
        has PDF figures.
    """
    with held(store, TABLES_LOCK, wait=60) as store:
        files = list(store.walk("results"))
        pdf = pdf or any(path.endswith(".pdf") and is_report_figure(path) for path in files)
        results = (path for path in files if not is_report_figure(path))
        inputs = fingerprint_inputs(store, results, pictures, pdf=pdf)
        if is_fresh(store, inputs):
            return False
        page, figures = _render(Dataset.open(store), taxonomy, pictures, pdf=pdf)
        changed = [store.update(path, data) for path, data in figures.items()]
        for path in list(store.walk(FOLDER)):
            if path not in figures and is_report_figure(path):
                store.delete(path)
                changed.append(True)
        changed.append(store.update(REPORT, shown_bytes(page)))
        note_fresh(store, inputs, [REPORT, *sorted(figures)])
    return any(changed)


def _render(
    dataset: Dataset, taxonomy: Taxonomy, pictures: str, *, pdf: bool
) -> tuple[str, dict[str, bytes]]:
    """Renders the page; returns its text, and the content of its figure files by path."""
    # Imported late: matplotlib and the templates are slow to import, and few commands find
    # anything new to show.
    from pipeline.report.page import render

    evidence = gather(dataset, taxonomy)
    plots = [plot for analysis in ANALYSES for plot in analysis.parts.plots(evidence)]
    figures = {f"{FOLDER}/{plot.file}": plot.drawn.svg for plot in plots}
    if pdf:
        names = ((plot, plot.file.removesuffix(".svg")) for plot in plots)
        figures |= {f"{FOLDER}/{name}.pdf": plot.drawn.pdf() for plot, name in names}
    return render(evidence, plots, tuple(figures), pictures != "none"), figures


def write_results(
    dataset: str, store: Store, taxonomy: Taxonomy, pictures: str, *, has_run_models: bool
) -> str:
    """Writes the tables and the page at the end of a job; passes the dataset's fingerprint on.

    Args:
      dataset: the dataset's fingerprint.
      store: the dataset folder.
      taxonomy: the dataset's classes.
      pictures: argument of `write_report`.
      has_run_models: whether the job ran models. If not, the page is written only if there are
        results of models or an old page, which may now belong to an earlier state of the dataset.
    """
    with held(store, TABLES_LOCK, wait=60) as locked:
        has_results = write_tables(Dataset.open(locked))
    if has_run_models or has_results or store.exists(REPORT):
        write_report(store, taxonomy, pictures)
    return dataset


def write_tables(dataset: Dataset, columns: Sequence[str] = ()) -> bool:
    """Rebuilds all tables from the stored results. The caller must hold the lock of the tables.

    Args:
      dataset: the dataset.
      columns: columns of LaTeX tables; empty for the default.

    Returns:
      Whether there are results of models, also of an earlier state of the dataset.
    """
    for analysis in ANALYSES:
        analysis.parts.write(dataset, columns)
    return any(_has_results(dataset, analysis) for analysis in ANALYSES)


def _has_results(dataset: Dataset, analysis: Analysis) -> bool:
    found = analysis.parts.find(dataset)
    _, failed_before = read_failures(dataset.store, dataset.manifest.fingerprint, analysis.name)
    return bool(found.of_models or found.stale or failed_before)
