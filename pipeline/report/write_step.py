"""The step that writes the tables and the page at the end of a job."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam

from pipeline.dataset.folder import Dataset
from pipeline.report.tables import write_tables
from pipeline.report.write import REPORT, write_report
from pipeline.runtime.lock import TABLES_LOCK, held
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy


class WriteResults(beam.DoFn):
    """Writes the tables and the page; passes the dataset's fingerprint on.

    Args:
      store: the dataset folder.
      taxonomy: the dataset's classes.
      pictures: argument of `write_report`.
      has_run_models: whether the job ran models. If not, the page is written only if there are
        evaluations or an old page, which may now belong to an earlier state of the dataset.
    """

    def __init__(
        self, store: Store, taxonomy: Taxonomy, pictures: str, *, has_run_models: bool
    ) -> None:
        self._store = store
        self._taxonomy = taxonomy
        self._pictures = pictures
        self._has_run_models = has_run_models

    def process(self, dataset: str) -> Iterator[str]:
        with held(self._store, TABLES_LOCK, wait=60) as store:
            has_results = write_tables(Dataset.open(store))
        if self._has_run_models or has_results or self._store.exists(REPORT):
            write_report(self._store, self._taxonomy, self._pictures)
        yield dataset
