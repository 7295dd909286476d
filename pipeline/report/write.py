"""Writing the page and its figures into the dataset's folder."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam

from pipeline.dataset import Dataset
from pipeline.lock import TABLES_LOCK, held
from pipeline.report.evidence import gather
from pipeline.report.page import render
from pipeline.report.plots import FOLDER, is_ours, make_plots
from pipeline.storage import Store
from transforms.taxonomy import Taxonomy

REPORT = "report.html"


def render_report(dataset: Dataset, taxonomy: Taxonomy, pictures: str = "sample") -> str:
    """Renders the page from what is there; the same content gives the same text.

    Args:
      dataset: the dataset.
      taxonomy: its classes.
      pictures: `sample`, or `none` to leave all pictures out.
    """
    evidence = gather(dataset, taxonomy)
    return render(evidence, make_plots(evidence), pictures != "none")


def write_report(store: Store, taxonomy: Taxonomy, pictures: str = "sample") -> bool:
    """Writes the page and its figures if they have changed; returns whether they have.

    Arguments as `render_report`.
    """
    with held(store, TABLES_LOCK, wait=60):
        evidence = gather(Dataset.open(store), taxonomy)
        plots = make_plots(evidence)
        changed = [store.update(f"{FOLDER}/{plot.file}", plot.svg) for plot in plots]
        current = {f"{FOLDER}/{plot.file}" for plot in plots}
        for path in list(store.walk(FOLDER)):
            if path not in current and is_ours(path):
                store.delete(path)
                changed.append(True)
        page = render(evidence, plots, pictures != "none")
        changed.append(store.update(REPORT, page.encode()))
    return any(changed)


class WriteReport(beam.DoFn):
    """Dataset fingerprint -> the same; writes the page."""

    def __init__(self, store: Store, taxonomy: Taxonomy, pictures: str = "sample") -> None:
        self._store = store
        self._taxonomy = taxonomy
        self._pictures = pictures

    def process(self, dataset: str) -> Iterator[str]:
        write_report(self._store, self._taxonomy, self._pictures)
        yield dataset
