"""Results of matrices: accuracies of rows on columns, BG-Gaps, and gains by training on Mixed-Rand.

results/matrix.csv    a line for each cell: its accuracy beside the one in the paper's table 5
results/matrix.json   the same cells, with BG-Gaps and gains

A row is a model, which was trained on one variant; a column is a variant that models were tested
on. The results are computed from the predictions of the rows' models. A prediction is valid while
its picture stays the same. Predictions on IN-9L, which is another dataset, are valid while the
prediction files of all its shards exist.
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
from transforms.analysis import bg_gap, constant_accuracy
from transforms.scoring import PAPER_RULE
from transforms.two_way import Roles

MATRICES = "results/matrix.json"
MATRIX_COLUMNS = (
    *("train_variant", "test_variant", "arch", "method", "n", "correct", "accuracy", "ci_low"),
    *("ci_high", "chance", "published", "difference", "difference_ci_low", "difference_ci_high"),
    *("train_n", "penalty", "overlap", "train_split", "split", "holdout", "seed", "precision"),
    *("device", "weights_sha256", "checkpoint", "dataset"),
)
"""Columns of matrix.csv. `accuracy` is a fraction, with a 95 % interval as in
summary.csv; `published` is the accuracy of the paper's ResNet-50 (table 5); `difference` is
`accuracy` minus `published`, and its interval only reflects the error of `accuracy`. `train_n`
is the number of training images, and `overlap` the number of the n tested images that the model
was also trained on."""

_ImageReader = Callable[[str, float], EvalImages]


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixCell:
    """The predictions of a row's model on the n tested images of a column.

    Attributes:
      metadata: the model, and how it was run.
      keys: n keys of the images, sorted.
      units: (n,) integers, unit of each image.
      bg_units: (n,) integers, unit of each background, numbered like `units`; None if pictures have
        their own backgrounds.
      labels: (n,) integers, true labels.
      correct: (n,) bool, whether each prediction is right.
      device: types of the devices that computed the predictions, joined by `+`.
    """

    metadata: ModelMetadata
    keys: tuple[str, ...]
    units: NDArray[np.integer]
    bg_units: NDArray[np.integer] | None
    labels: NDArray[np.integer]
    correct: NDArray[np.bool_]
    device: str


def read_matrices(dataset: Dataset) -> list[dict[str, Any]]:
    """Computes every matrix that has valid predictions on the dataset, in order of the matrices'
    names."""
    read_images = functools.cache(functools.partial(EvalImages.read, dataset))
    models: dict[str, list[ModelMetadata]] = {}
    for metadata in read_results(dataset.store, "model"):
        if "matrix" in metadata and metadata.get("trained"):
            models.setdefault(metadata["matrix"]["name"], []).append(metadata)
    matrices = (
        _compute_matrix(dataset, name, models[name], read_images) for name in sorted(models)
    )
    return [matrix for matrix in matrices if matrix["rows"]]


def _compute_matrix(
    dataset: Dataset, name: str, models: list[ModelMetadata], read_images: _ImageReader
) -> dict[str, Any]:
    cells = {
        (metadata["matrix"]["row"], column): cell
        for metadata in models
        for column, cell in _cells(dataset, metadata, read_images)
    }
    names = {metadata["matrix"]["row"] for metadata in models}
    for metadata in models:
        names.update(
            [IN9L] if "dataset" in metadata["evaluation"] else metadata.get("variants", ())
        )
    columns = sort_names(dataset, names)
    first = models[0]
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
            _cell_row(row, column, cells[row, column], dataset.is_comparable)
            for row in columns
            for column in columns
            if (row, column) in cells
        ],
        "gaps": [
            {"train_variant": row, **difference}
            for row in columns
            for difference in _paired_differences(
                cells.get((row, "mixed_same")), cells.get((row, "mixed_rand"))
            )
        ],
        "gains": [
            {"first": "mixed_rand", "second": "original", "test_variant": column, **difference}
            for column in columns
            for difference in _paired_differences(
                cells.get(("mixed_rand", column)), cells.get(("original", column))
            )
        ],
    }


def _cells(
    dataset: Dataset, metadata: ModelMetadata, read_images: _ImageReader
) -> Iterator[tuple[str, MatrixCell]]:
    """Yields (name of the column, cell) for each column that a row's model has valid predictions
    on."""
    if "dataset" in metadata["evaluation"]:
        cell = _in9l_cell(dataset.store, metadata)
        if cell is not None:
            yield IN9L, cell
        return
    part = tested_part(metadata)
    if part[0] not in dataset.manifest.shards:
        return
    images = read_images(*part)
    model_predictions = read_predictions(dataset, images, metadata)
    keys, device = tuple(images.keys.to_pylist()), "+".join(model_predictions.devices)
    predictions = model_predictions.by_rule[PAPER_RULE]
    for variant in predictions.predicted:
        correct = predictions.correct(variant)
        units, bg_units = images.unit_numbers, predictions.bg_units.get(variant)
        yield variant, MatrixCell(metadata, keys, units, bg_units, images.labels, correct, device)


def _in9l_cell(store: Store, metadata: ModelMetadata) -> MatrixCell | None:
    """Reads a row's cell in the column of IN-9L; returns None if any of its predictions is
    missing."""
    folder = result_folder(metadata["model"], metadata["evaluation"])
    paths = list(store.walk(f"results/{folder}/predictions"))
    records = (read_metadata(store, path) for path in paths)
    fingerprints = [record and record.fingerprint for record in records]
    tables = [read_intact(store, path, functools.partial(_read, store, path)) for path in paths]
    if fingerprint(fingerprints) != metadata["predictions"] or any(t is None for t in tables):
        return None
    table = pa.concat_tables(tables).unify_dictionaries()
    table = table.filter(pc.equal(table["label_rule"], PAPER_RULE)).sort_by("key")
    keys = tuple(table["key"].to_pylist())
    names = [metadata.get("groups", {}).get(key, key) for key in keys]
    units = np.unique(np.asarray(names, object), return_inverse=True)[1]
    device = "+".join(sorted(pc.unique(table["device"].cast(pa.string())).to_pylist()))
    labels, correct = (np.asarray(table[name].to_numpy()) for name in ("label", "correct"))
    return MatrixCell(metadata, keys, units, None, labels, correct, device)


def _read(store: Store, path: str) -> pa.Table:
    columns = ["label_rule", "key", "label", "correct", "device"]
    return read_table(store, path, columns=columns).replace_schema_metadata()


def _cell_row(row: str, column: str, cell: MatrixCell, is_comparable: bool) -> dict[str, Any]:
    """Computes a cell's line of matrix.csv.

    Args:
      row: name of the row.
      column: name of the column.
      cell: predictions of the row's model on the column.
      is_comparable: whether the paper's figures may be compared with accuracies on the dataset;
        otherwise the line has no published figure.
    """
    published = TRAINED.get(row, {}).get(column) if is_comparable else None
    values: dict[str, Any] = {
        "train_variant": row,
        "test_variant": column,
        **accuracy_columns(cell.correct, _roles(cell), np.arange(len(cell.keys))),
        "chance": constant_accuracy(cell.labels),
        "train_n": cell.metadata["trained"]["images"],
        "penalty": cell.metadata["trained"].get("penalty"),
        "overlap": cell.metadata.get("overlap") or 0,
        "device": cell.device,
        "weights_sha256": cell.metadata["weights_sha256"],
        "checkpoint": cell.metadata["entry"].partition("=")[2],
        "published": published,
    }
    if published is not None and values["n"]:
        values |= {
            "difference": values["accuracy"] - published,
            "difference_ci_low": values["ci_low"] - published,
            "difference_ci_high": values["ci_high"] - published,
        }
    return values


def _roles(*cells: MatrixCell) -> Roles:
    """Returns the units of the pictures of cells, concatenated. Either all cells have pictures on
    other backgrounds, or none has."""
    backgrounds = [cell.bg_units for cell in cells if cell.bg_units is not None]
    return Roles.from_units(
        np.concatenate([cell.units for cell in cells]),
        np.concatenate(backgrounds) if backgrounds else None,
    )


def _paired_differences(
    first: MatrixCell | None, second: MatrixCell | None
) -> Iterator[dict[str, Any]]:
    """Yields the accuracy of the first cell minus that of the second, with its two-way interval;
    yields nothing unless both cells exist and hold the same images."""
    if first and second and first.keys == second.keys and first.keys:
        gap = bg_gap(first.correct[np.newaxis], second.correct[np.newaxis], _roles(first, second))
        n = len(first.keys)
        yield {"difference": gap.gap, "ci_low": gap.low, "ci_high": gap.high, "n": n}


def write_matrix_tables(dataset: Dataset) -> list[dict[str, Any]]:
    """Rebuilds matrix.csv and matrix.json; writes nothing if there never was a matrix. The caller
    must hold the lock of the tables.

    Returns:
      The matrices, from `read_matrices`.
    """
    store, matrices = dataset.store, read_matrices(dataset)
    if matrices or store.exists(MATRICES):
        write_csv(store, "matrix", MATRIX_COLUMNS, matrix_rows(matrices))
        content = {"dataset": dataset.manifest.fingerprint, "matrices": matrices}
        write_result(store, MATRICES, content)
    return matrices


def matrix_rows(matrices: Iterable[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    """Returns the lines of matrix.csv: the cells of all matrices."""
    return itertools.chain.from_iterable(
        ({**matrix, **row} for row in matrix["rows"]) for matrix in matrices
    )
