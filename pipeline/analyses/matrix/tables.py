"""Tables of matrices: what is said of each network, and of all of them.

results/matrix/<name>.json   one network: every cell, BG-Gaps, and what training on Mixed-Rand
                             changes
results/matrix.json, .csv    all networks, of the dataset as it is
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.evaluate.results import read_result, write_result
from pipeline.storage.csv_file import write_csv
from pipeline.storage.store import Store

FOLDER = "results/matrix"
MATRICES = "results/matrix.json"
MATRIX_COLUMNS = (
    *("train_variant", "test_variant", "arch", "method", "n", "correct", "accuracy", "ci_low"),
    *("ci_high", "published", "difference", "difference_ci_low", "difference_ci_high", "train_n"),
    *("overlap", "train_split", "split", "holdout", "seed", "precision", "device"),
    *("weights_sha256", "checkpoint", "dataset"),
)
"""Columns of matrix.csv: `accuracy` with Wilson's interval, `published` of the paper's ResNet-50
(table 5), `difference` = accuracy - published with the interval of the accuracy alone; `train_n`
images were trained on, `overlap` of the n tested ones among them."""


def matrix_file(name: str) -> str:
    """What is said of one network."""
    return f"{FOLDER}/{name}.json"


def write_matrix(store: Store, content: Mapping[str, Any]) -> bool:
    """Writes what is said of one network; returns whether it has changed."""
    return write_result(store, matrix_file(content["name"]), content)


def read_matrices(store: Store, dataset: str) -> list[dict[str, Any]]:
    """What is said of every network on the dataset with this fingerprint, by name."""
    paths = (path for path in store.walk(FOLDER) if path.count("/") == 2)
    found = (read_result(store, path) for path in paths if path.endswith(".json"))
    return [content for content in found if content and content["dataset"] == dataset]


def write_matrix_tables(store: Store, dataset: str) -> list[dict[str, Any]]:
    """Rebuilds matrix.csv and matrix.json. Called with the lock of the tables held.

    Returns:
      What `read_matrices` does. There are no tables if no matrix was ever made.
    """
    found = read_matrices(store, dataset)
    if found or store.exists(MATRICES):
        write_csv(store, "matrix", MATRIX_COLUMNS, matrix_rows(found))
        write_result(store, MATRICES, {"dataset": dataset, "matrices": found})
    return found


def matrix_rows(matrices: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Rows of matrix.csv."""
    return itertools.chain.from_iterable(
        ({**content, **row} for row in content["rows"]) for content in matrices
    )
