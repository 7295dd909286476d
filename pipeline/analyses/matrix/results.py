"""What is said of a matrix, from the predictions of its rows: accuracies with intervals, beside the
paper's table 5; BG-Gaps, and what training on Mixed-Rand changes.

As of all models, predictions count as long as the picture that they are of is there; those on
IN-9L, which is another dataset, as long as all of its shards are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.analyses.matrix.plan import IN9L, in_order
from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_about
from pipeline.evaluate.analysis import accuracy_columns
from pipeline.evaluate.answers import Images, read_answers
from pipeline.evaluate.predictions import About
from pipeline.evaluate.published import TRAINED
from pipeline.evaluate.results import read_results, result_folder, tested_part
from pipeline.storage.state_files import read_intact, read_table
from pipeline.storage.store import Store
from transforms.analysis import constant_accuracy
from transforms.intervals import paired_bootstrap
from transforms.scoring import PAPER_RULE
from transforms.two_way import Roles

_ReadImages = Callable[[str, float], Images]


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """What a row's model answered on a column.

    Attributes:
      about: the model, and how it was run.
      keys, units: (n,) of the images, by key.
      labels: (n,) true labels.
      correct: (n,) whether each prediction is right.
      device: that predictions were made on.
    """

    about: About
    keys: tuple[str, ...]
    units: tuple[str, ...]
    labels: NDArray[np.integer]
    correct: NDArray[np.bool_]
    device: str


def read_matrices(dataset: Dataset) -> list[dict[str, Any]]:
    """What is said of every matrix that has predictions of the dataset as it is, by name."""
    images = functools.cache(functools.partial(Images.read, dataset))
    rows: dict[str, list[About]] = {}
    for about in read_results(dataset.store, "model"):
        if "matrix" in about and about.get("trained"):
            rows.setdefault(about["matrix"]["name"], []).append(about)
    found = (_describe(dataset, name, rows[name], images) for name in sorted(rows))
    return [content for content in found if content["rows"]]


def _describe(
    dataset: Dataset, name: str, abouts: list[About], images: _ReadImages
) -> dict[str, Any]:
    cells = {
        (about["matrix"]["row"], column): cell
        for about in abouts
        for column, cell in _cells(dataset, about, images)
    }
    names = {about["matrix"]["row"] for about in abouts}
    for about in abouts:
        names.update([IN9L] if "dataset" in about["evaluation"] else about.get("variants", ()))
    columns = in_order(dataset, names)
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
            for found in _less(cells.get((row, "mixed_same")), cells.get((row, "mixed_rand")))
        ],
        "gains": [
            {"first": "mixed_rand", "second": "original", "test_variant": column, **found}
            for column in columns
            for found in _less(cells.get(("mixed_rand", column)), cells.get(("original", column)))
        ],
    }


def _cells(dataset: Dataset, about: About, images: _ReadImages) -> Iterator[tuple[str, Cell]]:
    """(column, cell) of each variant that a row has predictions of."""
    if "dataset" in about["evaluation"]:
        cell = _on_another(dataset.store, about)
        if cell is not None:
            yield IN9L, cell
        return
    part = tested_part(about)
    if part[0] not in dataset.manifest.shards:
        return
    tested = images(*part)
    answers = read_answers(dataset, tested, about)
    keys, device = tuple(tested.keys.to_pylist()), "+".join(answers.devices)
    of_rule = answers.by_rule[PAPER_RULE]
    for variant in of_rule.predictions:
        correct = of_rule.correct(variant)
        yield variant, Cell(about, keys, tested.units, of_rule.labels, correct, device)


def _on_another(store: Store, about: About) -> Cell | None:
    """A row's cell of IN-9L; None if its predictions are not all there."""
    folder = result_folder(about["model"], about["evaluation"])
    paths = list(store.walk(f"results/{folder}/predictions"))
    made_of = [found and found.fingerprint for found in (read_about(store, p) for p in paths)]
    tables = [read_intact(store, path, functools.partial(_read, store, path)) for path in paths]
    if fingerprint(made_of) != about["predictions"] or any(table is None for table in tables):
        return None
    table = pa.concat_tables(tables).unify_dictionaries()
    table = table.filter(pc.equal(table["label_rule"], PAPER_RULE)).sort_by("key")
    keys = tuple(table["key"].to_pylist())
    units = tuple(about.get("groups", {}).get(key, key) for key in keys)
    device = "+".join(sorted(pc.unique(table["device"].cast(pa.string())).to_pylist()))
    labels, correct = (np.asarray(table[name].to_numpy()) for name in ("label", "correct"))
    return Cell(about, keys, units, labels, correct, device)


def _read(store: Store, path: str) -> pa.Table:
    columns = ["label_rule", "key", "label", "correct", "device"]
    return read_table(store, path, columns=columns).replace_schema_metadata()


def _row(row: str, column: str, cell: Cell, is_published: bool) -> dict[str, Any]:
    _, units = np.unique(np.asarray(cell.units, object), return_inverse=True)
    published = TRAINED.get(row, {}).get(column) if is_published else None
    found: dict[str, Any] = {
        "train_variant": row,
        "test_variant": column,
        **accuracy_columns(cell.correct, Roles.of(units), np.arange(len(units))),
        "chance": constant_accuracy(cell.labels),
        "train_n": cell.about["trained"]["images"],
        "penalty": cell.about["trained"].get("penalty"),
        "overlap": cell.about.get("overlap") or 0,
        "device": cell.device,
        "weights_sha256": cell.about["weights_sha256"],
        "checkpoint": cell.about["entry"].partition("=")[2],
        "published": published,
    }
    if published is not None and found["n"]:
        found |= {
            "difference": found["accuracy"] - published,
            "difference_ci_low": found["ci_low"] - published,
            "difference_ci_high": found["ci_high"] - published,
        }
    return found


def _less(first: Cell | None, second: Cell | None) -> Iterator[dict[str, Any]]:
    """First less second, if both are there, and of the same images."""
    if first and second and first.keys == second.keys and first.keys:
        difference, low, high = paired_bootstrap(first.correct, second.correct, first.units)
        n = len(first.keys)
        yield {"difference": difference, "ci_low": low, "ci_high": high, "n": n}
