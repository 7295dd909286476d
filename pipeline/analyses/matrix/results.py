"""Results of matrices: accuracies of rows on columns, BG-Gaps, and gains by training on Mixed-Rand.

results/matrix.csv    a line for each cell: its accuracy beside the one in the paper's table 5
results/matrix.json   the same cells, with BG-Gaps, gains, and the dial (results/dial.csv)

A row is a model, which was trained on one variant; a column is a variant that models were tested
on. The results are computed from the predictions of the rows' models. A prediction is valid while
its picture stays the same. Predictions on IN-9L, which is another dataset, are valid while the
prediction files of all its shards exist.

With several seeds, a row has a model for each, and a cell a line for each and then their mean.
"""

import functools
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, Meta, Struct

from pipeline.analyses.matrix.dial import (
    DIAL_TABLE,
    NEUTRAL,
    DialLine,
    DialRow,
    Row,
    dial_rows,
    estimate,
)
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata
from pipeline.evaluate.comparisons import ModelsOnSameImages, on_same_images
from pipeline.evaluate.evidence import TABLE_5_NAMES, TRAINED
from pipeline.evaluate.families import Estimated
from pipeline.evaluate.predictions import EvalImages, read_predictions
from pipeline.evaluate.results import (
    PREDICTION_SCHEMA,
    Table,
    pick,
    read_results,
    write_result,
)
from pipeline.evaluate.summary import Evaluated, Summary
from pipeline.models.checkpoint import encoder_of
from pipeline.storage.state_files import read_intact, read_table
from pipeline.storage.store import Store
from transforms.analysis import constant_accuracy
from transforms.hashing import fingerprint
from transforms.intervals import Estimate, estimate_of
from transforms.scoring import PAPER_RULE
from transforms.variants import BG_GAP, VariantName

MATRICES = "results/matrix.json"

IN9L = "in9l"
"""Name of IN-9L as a row and as a column. IN-9L is the dataset of all images of the classes, with
or without boxes."""


class CellRow(Estimated, frozen=True, kw_only=True):
    """A cell of a matrix: a model of the row on the pictures of the column, or a mean of several.

    `accuracy` has an interval as in summary.csv. What is of a single model is None for a mean.

    Attributes:
      published: accuracy of the paper's ResNet-50 (table 5); None if it has none.
      difference: `accuracy` minus `published`; None without one of them.
      overlap: number of the n tested images that the model was also trained on.
    """

    train_variant: str
    test_variant: str
    correct: int | None = None
    accuracy: float | None
    chance: float | None
    published: float | None
    difference: float | None = None
    difference_ci_low: float | None = None
    difference_ci_high: float | None = None
    train_n: int
    penalty: float | None
    overlap: int
    seed: int | None = None
    weights_sha256: str | None = None
    checkpoint: str | None = None

    @property
    def estimate(self) -> Estimate | None:
        """The accuracy and its interval; None without one."""
        return estimate_of(self.accuracy, self.ci_low, self.ci_high)

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference from the published figure excludes 0."""
        low, high = self.difference_ci_low, self.difference_ci_high
        return (low is not None and low > 0) or (high is not None and high < 0)


class PairedDifference(Estimated, frozen=True, kw_only=True):
    """A difference of two cells on the same images (-1 to 1), with its two-way interval."""

    difference: float

    @property
    def estimate(self) -> Estimate | None:
        return estimate_of(self.difference, self.ci_low, self.ci_high)


class RowGap(PairedDifference, frozen=True, kw_only=True):
    """BG-Gap of a row."""

    train_variant: str


class Gain(PairedDifference, frozen=True, kw_only=True):
    """Accuracy on a column that the row `first` has and the row `second` has not; without `sd`."""

    first: str
    second: str
    test_variant: str


class Matrix(Struct, frozen=True, kw_only=True):
    """The matrix of one network: all rows on all columns, which have the same names but in a dial.

    Attributes:
      name: that of its first training.
      trainings: name under which the models of a seed are stored -> the seed.
      method: `probe` or `train`.
      replicates: number of draws of the dataset's mixed variants, of which the first is tested.
      trained_on: names of rows.
      dial: the rows of a dial by strength; empty if rows and columns have the same names.
    """

    name: str
    trainings: dict[str, int]
    arch: str
    method: str
    dataset: str
    train_split: str
    split: str
    eval_input: str
    precision: str
    holdout: float
    input_size: int
    replicates: int
    trained_on: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[CellRow, ...]
    gaps: tuple[RowGap, ...]
    gains: tuple[Gain, ...]
    dial: tuple[DialRow, ...] = ()

    @property
    def by_row(self) -> dict[str, dict[str, CellRow]]:
        """The cells by row and column, both in order; rows without cells are left out.

        A mean takes the place of its models, because it stands behind them.
        """
        return {
            row: {cell.test_variant: cell for cell in self.rows if cell.train_variant == row}
            for row in dict.fromkeys(cell.train_variant for cell in self.rows)
        }


class MatrixLine(Struct, frozen=True, kw_only=True):
    """A row of matrix.csv: a cell of a matrix."""

    train_variant: Annotated[str, Meta(description="variant that the model was trained on")]
    test_variant: Annotated[str, Meta(description="variant that the model was tested on")]
    arch: Annotated[str, Meta(description="architecture of the model")]
    method: Annotated[
        str, Meta(description="`probe`: last layer of a frozen network; `train`: whole network")
    ]
    n: int
    correct: Annotated[int | None, Meta(description="number of right answers; empty for a mean")]
    accuracy: Annotated[
        float | None, Meta(description="correct / n, on a single draw of mixed variants")
    ]
    ci_low: float | None
    ci_high: float | None
    chance: float | None
    published: Annotated[
        float | None, Meta(description="the paper's figure for ResNet-50, table 5")
    ]
    difference: Annotated[float | None, Meta(description="accuracy - published")] = None
    difference_ci_low: Annotated[
        float | None,
        Meta(
            description="lower end of the 95 % interval of `difference`, which covers the "
            "uncertainty of `accuracy` only"
        ),
    ] = None
    difference_ci_high: Annotated[
        float | None, Meta(description="upper end of the 95 % interval of `difference`")
    ] = None
    train_n: Annotated[int, Meta(description="number of training images")]
    penalty: Annotated[
        float | None,
        Meta(
            description="penalty of a probe, [chosen](training.md#linear-probe) among nine; else "
            "empty"
        ),
    ]
    overlap: int
    train_split: Annotated[str, Meta(description="split of the training images")]
    split: str
    holdout: float
    seed: Annotated[int | None, Meta(description="seed of the training; empty for a mean")]
    seeds: Annotated[int, Meta(description="number of trainings; of several, this is the mean")]
    sd: Annotated[float | None, Meta(description="standard deviation of their accuracies")]
    lowest: Annotated[float | None, Meta(description="smallest of their accuracies")]
    highest: Annotated[float | None, Meta(description="largest of their accuracies")]
    precision: str
    weights_sha256: str | None
    checkpoint: Annotated[
        str | None, Meta(description="file of the trained model, as `--models` takes it")
    ]
    dataset: str


MATRIX_TABLE = Table(
    "matrix",
    (MatrixLine,),
    "accuracy on one variant of a model trained on another (or the same), or a mean over seeds",
)


def read_matrices(dataset: Dataset) -> list[Matrix]:
    """Computes every matrix with valid predictions, which gathers all seeds, in order of names."""
    by_name: dict[str, list[Row]] = {}
    for run in read_results(dataset.store, "model", Evaluated):
        if run.matrix and run.trained:
            summary = pick(
                Summary,
                run,
                dataset=dataset.manifest.fingerprint,
                label_rules=(PAPER_RULE,),
                missing=(),
                unanswered=0,
            )
            row = Row(run, run.matrix, run.trained, summary)
            by_name.setdefault(run.matrix.name, []).append(row)
    gathered: dict[object, list[Row]] = {}
    for name, rows in by_name.items():
        # They differ while the rows are being made again, with other settings or on other data.
        settings, *others = {one.matrix.settings for one in rows}
        gathered.setdefault(name if others else settings or name, []).extend(rows)
    matrices = (_compute_matrix(dataset, rows) for rows in gathered.values())
    return sorted((matrix for matrix in matrices if matrix.rows), key=lambda matrix: matrix.name)


def _compute_matrix(dataset: Dataset, rows: list[Row]) -> Matrix:
    rows = sorted(rows, key=lambda one: one.trained.seed)
    first = rows[0]
    tested: list[ModelsOnSameImages] = []
    for settings in dict.fromkeys(one.run.evaluation for one in rows):
        same = [one for one in rows if one.run.evaluation == settings]
        if settings.dataset:
            tested.append(_on_in9l(dataset.store, same))
        elif settings.split in dataset.manifest.shards:
            tested += on_same_images(dataset, [one.summary for one in same])
    names = {one.matrix.row for one in rows}
    columns = sort_names(
        dataset,
        set[str]().union(
            *([IN9L] if one.run.evaluation.dataset else one.run.variants or () for one in rows)
        ),
    )
    is_dial = not names.issubset(columns)
    trained_on = sort_names(dataset, names) if is_dial else columns
    return pick(
        Matrix,
        first.run.evaluation,
        name=first.matrix.name,
        trainings={one.matrix.name: one.trained.seed for one in rows},
        arch=first.matrix.arch,
        method=first.trained.method,
        dataset=dataset.manifest.fingerprint,
        train_split=first.trained.split,
        replicates=dataset.manifest.config.compose.replicates,
        trained_on=trained_on,
        columns=columns,
        rows=tuple(
            cell
            for row in trained_on
            for column in columns
            for models in tested
            for cell in _cells(
                models,
                _having(models, rows, row, column),
                column,
                dataset.is_comparable and not is_dial,
            )
        ),
        gaps=tuple(
            gap
            for row in trained_on
            for models in tested
            for gap in _gaps(models, _having(models, rows, row, BG_GAP))
        ),
        gains=tuple(
            gain for column in columns for models in tested for gain in _gains(models, rows, column)
        ),
        dial=tuple(
            row for models in tested if is_dial for row in _dial(dataset, models, rows, trained_on)
        ),
    )


def _on_in9l(store: Store, rows: Sequence[Row]) -> ModelsOnSameImages:
    """Reads the predictions of models on IN-9L, whose own folder is not needed."""
    column = VariantName(IN9L)
    tables = [_in9l_table(store, one.run) for one in rows]
    whole = max(tables, key=len)
    groups = {key: name for one in rows for key, name in (one.run.groups or {}).items()}
    keys, labels = whole["key"].to_pylist(), whole["label"].to_numpy().astype(np.int16)
    units = [groups.get(key, key) for key in keys]
    numbers = np.unique(np.asarray(units, object), return_inverse=True)[1]
    names = pa.array(keys, pa.string())
    images = EvalImages(
        names, labels, np.full(len(keys), np.nan), names, labels, tuple(units), numbers
    )
    answers = [{column: table["correct"].to_numpy()} if len(table) else {} for table in tables]
    return ModelsOnSameImages(
        images, (column,), [one.summary for one in rows], [{PAPER_RULE: one} for one in answers], {}
    )


def _in9l_table(store: Store, run: Evaluated) -> pa.Table:
    """Reads a model's predictions on IN-9L by the paper's rule; none if some are missing."""
    paths = list(store.walk(f"results/{run.folder}/predictions"))
    records = [read_metadata(store, path) for path in paths]
    read = functools.partial(read_table, store, columns=["label_rule", "key", "label", "correct"])
    tables = [
        table.replace_schema_metadata()
        for path in paths
        if (table := read_intact(store, path, functools.partial(read, path))) is not None
    ]
    of = fingerprint([record and record.fingerprint for record in records])
    if of != run.predictions or len(tables) < len(paths):
        return PREDICTION_SCHEMA.empty_table()
    table = pa.concat_tables(tables).unify_dictionaries()
    return table.filter(pc.equal(table["label_rule"].cast(pa.string()), PAPER_RULE)).sort_by("key")


def _having(models: ModelsOnSameImages, rows: Iterable[Row], row: str, quantity: str) -> list[Row]:
    """Returns a row's models with predictions of all pictures behind a quantity."""
    return [
        one
        for one in rows
        if one.matrix.row == row
        and one.summary in models.summaries
        and models.seeds(quantity, models.answers(one.summary, PAPER_RULE))
    ]


def _cells(
    models: ModelsOnSameImages, rows: list[Row], column: str, is_comparable: bool
) -> Iterator[CellRow]:
    """Yields the lines of a cell: on each model of its row and, of several, on their mean.

    They have a published figure only if the paper's may be compared with accuracies on the dataset.
    """
    for some in [*([one] for one in rows), *([rows] if len(rows) > 1 else [])]:
        run, row, trained, _ = some[0]
        published = TRAINED.get(row.row, {}).get(column) if is_comparable else None
        accuracy, one = estimate(models, column, some)
        differences = {
            f"difference{end}": value - published
            for end, value in (("", accuracy), ("_ci_low", one.ci_low), ("_ci_high", one.ci_high))
            if value is not None and published is not None
        }
        of_model = {
            "correct": round(accuracy * one.n),
            "seed": trained.seed,
            "weights_sha256": run.weights_sha256,
            "checkpoint": encoder_of(run.entry) or run.entry.partition("=")[2],
        }
        yield pick(
            CellRow,
            one,
            train_variant=row.row,
            test_variant=column,
            accuracy=accuracy,
            chance=constant_accuracy(models.images.labels[models.pictures[column].images]),
            published=published,
            train_n=trained.images,
            penalty=None if trained.penalty is UNSET else trained.penalty,
            overlap=run.overlap or 0,
            **differences,
            **(of_model if len(some) == 1 else {}),
        )


def _gaps(models: ModelsOnSameImages, rows: list[Row]) -> Iterator[RowGap]:
    """Yields the BG-Gap of a row, if any of its models has predictions."""
    if rows:
        value, one = estimate(models, BG_GAP, rows)
        yield pick(RowGap, one, difference=value, train_variant=rows[0].matrix.row)


def _gains(models: ModelsOnSameImages, rows: list[Row], column: str) -> Iterator[Gain]:
    """Yields the gain on a column, if models of both rows have predictions of the same images."""
    names = ("mixed_rand", "original")
    first, second = (_having(models, rows, row, column) for row in names)
    if first and second:
        value, one = estimate(models, column, first, second)
        # Seeds of the two rows have nothing in common, so no seed has a gain.
        none = dict.fromkeys(("sd", "lowest", "highest"))
        yield pick(
            Gain,
            one,
            difference=value,
            first=names[0],
            second=names[1],
            test_variant=column,
            **none,
        )


def _dial(
    dataset: Dataset, models: ModelsOnSameImages, rows: Sequence[Row], names: Sequence[str]
) -> Iterator[DialRow]:
    """Yields the rows of a dial once it has the row that all others are compared with."""
    known = {name: some for name in names if (some := _having(models, rows, name, BG_GAP))}
    if NEUTRAL in known and len(known) > 1:
        read = read_predictions(dataset, models.images, known[NEUTRAL][0].run)
        yield from dial_rows(models, known, read.by_rule[PAPER_RULE].bg_labels, dataset.taxonomy)


def write_matrix_tables(dataset: Dataset) -> list[Matrix]:
    """Rebuilds both tables if there ever was a matrix; the caller must hold the tables' lock."""
    store, matrices = dataset.store, read_matrices(dataset)
    if matrices or store.exists(MATRICES):
        MATRIX_TABLE.write(
            store, ([pick(MatrixLine, row, matrix)] for matrix in matrices for row in matrix.rows)
        )
        if any(one.dial for one in matrices) or store.exists(f"results/{DIAL_TABLE.name}.csv"):
            dials = ([pick(DialLine, row, one)] for one in matrices for row in one.dial)
            DIAL_TABLE.write(store, dials)
        content = {"dataset": dataset.manifest.fingerprint, "matrices": matrices}
        write_result(store, MATRICES, content)
    return matrices


MATRIX_FIGURES = ("accuracy", "published", "difference")
"""The figures of a matrix: our accuracies, the paper's, and their differences."""


def matrix_file(name: str, kind: str) -> str:
    """Returns the name of the SVG file of a matrix's figure: `MATRIX_FIGURES` or `dial`."""
    return f"matrix-{name}-{kind}.svg"


def sort_names(dataset: Dataset, names: Collection[str]) -> tuple[str, ...]:
    """Sorts names of rows or columns as the paper's table 5, then the dataset; drops duplicates."""
    order = list(dict.fromkeys((*TABLE_5_NAMES, *map(str, dataset.variants), *sorted(names))))
    return tuple(sorted(set(names), key=order.index))
