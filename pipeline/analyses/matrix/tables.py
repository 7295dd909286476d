"""Tables of matrices: results/matrix.csv is the pivot of their rows' predictions, a line for each
cell; matrix.json has the same with BG-Gaps, and what training on Mixed-Rand changes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.analyses.matrix.results import read_matrices
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.results import write_result
from pipeline.storage.csv_file import write_csv

MATRICES = "results/matrix.json"
MATRIX_COLUMNS = (
    *("train_variant", "test_variant", "arch", "method", "n", "correct", "accuracy", "ci_low"),
    *("ci_high", "chance", "published", "difference", "difference_ci_low", "difference_ci_high"),
    *("train_n", "penalty", "overlap", "train_split", "split", "holdout", "seed", "precision"),
    *("device", "weights_sha256", "checkpoint", "dataset"),
)
"""Columns of matrix.csv: `accuracy` with Wilson's interval, `published` of the paper's ResNet-50
(table 5), `difference` = accuracy - published with the interval of the accuracy alone; `train_n`
images were trained on, `overlap` of the n tested ones among them."""


def write_matrix_tables(dataset: Dataset) -> list[dict[str, Any]]:
    """Rebuilds matrix.csv and matrix.json. Called with the lock of the tables held.

    Returns:
      What `read_matrices` does. There are no tables if no matrix was ever made.
    """
    store, found = dataset.store, read_matrices(dataset)
    if found or store.exists(MATRICES):
        write_csv(store, "matrix", MATRIX_COLUMNS, matrix_rows(found))
        content = {"dataset": dataset.manifest.fingerprint, "matrices": found}
        write_result(store, MATRICES, content)
    return found


def matrix_rows(matrices: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Rows of matrix.csv."""
    return itertools.chain.from_iterable(
        ({**content, **row} for row in content["rows"]) for content in matrices
    )
