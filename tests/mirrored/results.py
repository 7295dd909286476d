"""Results of mirrored pictures: `mirrored.json` of each model, a CSV and a LaTeX table of all."""

from __future__ import annotations

from typing import Annotated

import msgspec
import pyarrow as pa
from msgspec import Meta

from pipeline.dataset.folder import Dataset
from pipeline.display.table import Cell, aligned, names_of, percent_interval, tabular
from pipeline.errors import shown_bytes
from pipeline.evaluate.predictions import read_current_results
from pipeline.evaluate.results import OfModel, PicturesResult, RunColumns, Table, pick
from transforms.variants import ORIGINAL

SCHEMA = pa.schema([pa.field("key", pa.string()), pa.field("correct", pa.bool_())])
"""Columns of a shard's predictions."""


class MirroredResult(PicturesResult, frozen=True, kw_only=True):
    """mirrored.json: the accuracy of a model on mirrored pictures.

    Attributes:
      n: number of pictures.
      accuracy: share of correct answers (0 to 1); `ci_low` and `ci_high` are its 95 % interval.
    """

    n: int
    accuracy: float
    ci_low: float
    ci_high: float


class MirroredRow(msgspec.Struct, frozen=True, kw_only=True):
    """A row of mirrored.csv."""

    n: int
    accuracy: Annotated[float, Meta(description="share of mirrored pictures answered correctly")]
    ci_low: float
    ci_high: float


TABLES = (Table("mirrored", (OfModel, MirroredRow, RunColumns), "accuracy on mirrored pictures"),)


def read_mirrored(dataset: Dataset) -> list[MirroredResult]:
    """Reads the result of each model on the dataset's present pictures."""
    return read_current_results(dataset, "mirrored", MirroredResult, lambda _: (ORIGINAL,))[0]


def write_tables(dataset: Dataset) -> None:
    """Rebuilds the tables, if there are results."""
    results, store = read_mirrored(dataset), dataset.store
    if not results:
        return
    run = {"dataset": dataset.manifest.fingerprint}
    rows = (
        (
            OfModel(one.model),
            pick(MirroredRow, one),
            pick(RunColumns, one, one.evaluation, **run),
        )
        for one in results
    )
    TABLES[0].write(store, rows)
    cells = [[Cell(one.accuracy, one.ci_low, one.ci_high)] for one in results]
    text = tabular("Accuracy on mirrored pictures in %", ["Mirrored"], names_of(results), cells)
    store.update("results/latex/mirrored.tex", shown_bytes(text))


def mirrored_table(results: list[MirroredResult]) -> str:
    """Formats the accuracies as an aligned table."""
    rows = [
        [one.name, percent_interval(one.accuracy, one.ci_low, one.ci_high), str(one.n)]
        for one in results
    ]
    return aligned([["mirrored", "accuracy, %", "images"], *rows])
