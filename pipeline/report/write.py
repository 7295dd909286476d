"""Writing the page and its figures into the dataset's folder."""

from __future__ import annotations

from pipeline.dataset.folder import Dataset
from pipeline.report.evidence import gather
from pipeline.report.figure_files import FOLDER, is_ours
from pipeline.report.freshness import fingerprint_inputs, is_fresh, note_fresh
from pipeline.runtime.lock import TABLES_LOCK, held
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy

REPORT = "report.html"


def render_report(dataset: Dataset, taxonomy: Taxonomy, pictures: str = "sample") -> str:
    """Renders the page from what is there; the same content gives the same text.

    Args:
      dataset: the dataset.
      taxonomy: its classes.
      pictures: `sample`, or `none` to leave all pictures out.
    """
    return _make(dataset, taxonomy, pictures)[0]


def _make(dataset: Dataset, taxonomy: Taxonomy, pictures: str) -> tuple[str, dict[str, bytes]]:
    """The page, and its figures by path."""
    # Not before: matplotlib and the templates take their time to import, and few commands
    # find anything new to show.
    from pipeline.report.page import render
    from pipeline.report.plots import make_plots

    evidence = gather(dataset, taxonomy)
    plots = make_plots(evidence)
    figures = {f"{FOLDER}/{plot.file}": plot.svg for plot in plots}
    return render(evidence, plots, pictures != "none"), figures


def write_report(store: Store, taxonomy: Taxonomy, pictures: str = "sample") -> bool:
    """Writes the page and its figures if they have changed; returns whether they have.

    Arguments as `render_report`.
    """
    with held(store, TABLES_LOCK, wait=60) as store:
        results = (path for path in store.walk("results") if not is_ours(path))
        inputs = fingerprint_inputs(store, results, pictures)
        if is_fresh(store, inputs):
            return False
        page, figures = _make(Dataset.open(store), taxonomy, pictures)
        changed = [store.update(path, data) for path, data in figures.items()]
        for path in list(store.walk(FOLDER)):
            if path not in figures and is_ours(path):
                store.delete(path)
                changed.append(True)
        changed.append(store.update(REPORT, page.encode()))
        note_fresh(store, inputs, [REPORT, *sorted(figures)])
    return any(changed)
