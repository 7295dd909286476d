"""The steps that write the page at the end of a job."""

from __future__ import annotations

from collections.abc import Iterator

import apache_beam as beam

from pipeline.report.tables import write_tables
from pipeline.report.write import write_report
from pipeline.storage.lock import TABLES_LOCK, held
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy


class WriteReport(beam.DoFn):
    """Dataset fingerprint -> the same; writes the page."""

    def __init__(self, store: Store, taxonomy: Taxonomy, pictures: str = "sample") -> None:
        self._store = store
        self._taxonomy = taxonomy
        self._pictures = pictures

    def process(self, dataset: str) -> Iterator[str]:
        write_report(self._store, self._taxonomy, self._pictures)
        yield dataset


class RefreshResults(beam.DoFn):
    """Dataset fingerprint -> the same; takes results of an earlier dataset out of the tables,
    and off the page."""

    def __init__(self, store: Store, taxonomy: Taxonomy, pictures: str = "sample") -> None:
        self._store = store
        self._taxonomy = taxonomy
        self._pictures = pictures

    def process(self, dataset: str) -> Iterator[str]:
        with held(self._store, TABLES_LOCK, wait=60):
            _, stale = write_tables(self._store, dataset)
        if stale:
            write_report(self._store, self._taxonomy, self._pictures)
        yield dataset
