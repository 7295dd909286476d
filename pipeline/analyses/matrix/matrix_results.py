"""What is said of a matrix, from the predictions of its rows: accuracies with intervals, beside the
paper's table 5; BG-Gaps, and what training on Mixed-Rand changes.

As of all models, predictions count as long as the picture that they are of is there; those on
IN-9L, which is another dataset, as long as all of its shards are.

Tables of matrices: results/matrix.csv is the pivot of their rows' predictions, a line for each
cell; matrix.json has the same with BG-Gaps, and what training on Mixed-Rand changes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.analyses.matrix.matrix_plan import IN9L, sort_names
from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata
from pipeline.evaluate.prediction_files import ModelMetadata
from pipeline.evaluate.predictions import EvalImages, read_predictions
from pipeline.evaluate.published import TRAINED
from pipeline.evaluate.result_files import read_results, result_folder, tested_part, write_result
from pipeline.evaluate.summaries import accuracy_columns
from pipeline.storage.csv_file import write_csv
from pipeline.storage.state_files import read_intact, read_table
from pipeline.storage.store import Store
from transforms.analysis import constant_accuracy
from transforms.intervals import paired_bootstrap
from transforms.scoring import PAPER_RULE
from transforms.two_way import Roles

_ImageReader = Callable[[str, float], EvalImages]


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixCell:
    """What a row's model answered on a column.

    Attributes:
      metadata: the model, and how it was run.
      keys, units: (n,) of the images, by key.
      labels: (n,) true labels.
      correct: (n,) whether each prediction is right.
      device: that predictions were made on.
    """

    metadata: ModelMetadata
    keys: tuple[str, ...]
    units: tuple[str, ...]
    labels: NDArray[np.integer]
    correct: NDArray[np.bool_]
    device: str


def read_matrices(dataset: Dataset) -> list[dict[str, Any]]:
    """What is said of every matrix that has predictions of the dataset as it is, by name."""
    images = functools.cache(functools.partial(EvalImages.read, dataset))
    rows: dict[str, list[ModelMetadata]] = {}
    for metadata in read_results(dataset.store, "model"):
        if "matrix" in metadata and metadata.get("trained"):
            rows.setdefault(metadata["matrix"]["name"], []).append(metadata)
    found = (_describe_matrix(dataset, name, rows[name], images) for name in sorted(rows))
    return [content for content in found if content["rows"]]


def _describe_matrix(
    dataset: Dataset, name: str, abouts: list[ModelMetadata], images: _ImageReader
) -> dict[str, Any]:
    cells = {
        (metadata["matrix"]["row"], column): cell
        for metadata in abouts
        for column, cell in _cells(dataset, metadata, images)
    }
    names = {metadata["matrix"]["row"] for metadata in abouts}
    for metadata in abouts:
        names.update(
            [IN9L] if "dataset" in metadata["evaluation"] else metadata.get("variants", ())
        )
    columns = sort_names(dataset, names)
    first = abouts[0]
    return {
        "name": name,
        "arch": first["matrix"]["arch"],
        "method": first["trained"]["method"],
        "dataset": dataset.manifest.fingerprint,
        "train_split": first["trained"]["split"],
        "seed": first["trained"]["seed"],
        "replicates": dataset.manifest.config.compose.replicates,
        **{key: value for key, value in first["evaluation"].items() if key != "dataset"},
        "columns": list(columns),
        "rows": [
            _row(row, column, cells[row, column], dataset.is_comparable)
            for row in columns
            for column in columns
            if (row, column) in cells
        ],
        "gaps": [
            {"train_variant": row, **found}
            for row in columns
            for found in _paired_differences(
                cells.get((row, "mixed_same")), cells.get((row, "mixed_rand"))
            )
        ],
        "gains": [
            {"first": "mixed_rand", "second": "original", "test_variant": column, **found}
            for column in columns
            for found in _paired_differences(
                cells.get(("mixed_rand", column)), cells.get(("original", column))
            )
        ],
    }


def _cells(
    dataset: Dataset, metadata: ModelMetadata, images: _ImageReader
) -> Iterator[tuple[str, MatrixCell]]:
    """(column, cell) of each variant that a row has predictions of."""
    if "dataset" in metadata["evaluation"]:
        cell = _in9l_cell(dataset.store, metadata)
        if cell is not None:
            yield IN9L, cell
        return
    part = tested_part(metadata)
    if part[0] not in dataset.manifest.shards:
        return
    tested = images(*part)
    answers = read_predictions(dataset, tested, metadata)
    keys, device = tuple(tested.keys.to_pylist()), "+".join(answers.devices)
    of_rule = answers.by_rule[PAPER_RULE]
    for variant in of_rule.predictions:
        correct = of_rule.correct(variant)
        yield variant, MatrixCell(metadata, keys, tested.units, of_rule.labels, correct, device)


def _in9l_cell(store: Store, metadata: ModelMetadata) -> MatrixCell | None:
    """A row's cell of IN-9L; None if its predictions are not all there."""
    folder = result_folder(metadata["model"], metadata["evaluation"])
    paths = list(store.walk(f"results/{folder}/predictions"))
    made_of = [found and found.fingerprint for found in (read_metadata(store, p) for p in paths)]
    tables = [read_intact(store, path, functools.partial(_read, store, path)) for path in paths]
    if fingerprint(made_of) != metadata["predictions"] or any(table is None for table in tables):
        return None
    table = pa.concat_tables(tables).unify_dictionaries()
    table = table.filter(pc.equal(table["label_rule"], PAPER_RULE)).sort_by("key")
    keys = tuple(table["key"].to_pylist())
    units = tuple(metadata.get("groups", {}).get(key, key) for key in keys)
    device = "+".join(sorted(pc.unique(table["device"].cast(pa.string())).to_pylist()))
    labels, correct = (np.asarray(table[name].to_numpy()) for name in ("label", "correct"))
    return MatrixCell(metadata, keys, units, labels, correct, device)


def _read(store: Store, path: str) -> pa.Table:
    columns = ["label_rule", "key", "label", "correct", "device"]
    return read_table(store, path, columns=columns).replace_schema_metadata()


def _row(row: str, column: str, cell: MatrixCell, is_published: bool) -> dict[str, Any]:
    _, units = np.unique(np.asarray(cell.units, object), return_inverse=True)
    published = TRAINED.get(row, {}).get(column) if is_published else None
    found: dict[str, Any] = {
        "train_variant": row,
        "test_variant": column,
        **accuracy_columns(cell.correct, Roles.from_units(units), np.arange(len(units))),
        "chance": constant_accuracy(cell.labels),
        "train_n": cell.metadata["trained"]["images"],
        "penalty": cell.metadata["trained"].get("penalty"),
        "overlap": cell.metadata.get("overlap") or 0,
        "device": cell.device,
        "weights_sha256": cell.metadata["weights_sha256"],
        "checkpoint": cell.metadata["entry"].partition("=")[2],
        "published": published,
    }
    if published is not None and found["n"]:
        found |= {
            "difference": found["accuracy"] - published,
            "difference_ci_low": found["ci_low"] - published,
            "difference_ci_high": found["ci_high"] - published,
        }
    return found


def _paired_differences(
    first: MatrixCell | None, second: MatrixCell | None
) -> Iterator[dict[str, Any]]:
    """First less second, if both are there, and of the same images."""
    if first and second and first.keys == second.keys and first.keys:
        difference, low, high = paired_bootstrap(first.correct, second.correct, first.units)
        n = len(first.keys)
        yield {"difference": difference, "ci_low": low, "ci_high": high, "n": n}


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
