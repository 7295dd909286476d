"""Writes the tables of all analyses."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.analyses import ANALYSES
from pipeline.analyses.evaluation.latex import HEADLINE
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.failures import read_failures


def write_tables(dataset: Dataset, columns: Sequence[str] = HEADLINE) -> bool:
    """Rebuilds all tables from the stored results. The caller must hold the lock of the tables.

    Args:
      dataset: the dataset.
      columns: columns of the LaTeX headline table.

    Returns:
      Whether there are evaluations, also of an earlier state of the dataset.
    """
    for analysis in ANALYSES:
        analysis.parts.write(dataset, columns)
    evaluation = ANALYSES[0]
    found = evaluation.parts.find(dataset)
    fingerprint = dataset.manifest.fingerprint
    _, failed_before = read_failures(dataset.store, fingerprint, evaluation.name)
    return bool(found.of_models or found.stale or failed_before)
