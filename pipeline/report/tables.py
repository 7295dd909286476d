"""Writes the tables of all analyses."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.analyses import ANALYSES
from pipeline.analyses.analysis import Analysis
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.failures import read_failures


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
