"""Results of matrices: accuracies of rows on columns, BG-Gaps, and gains by training on Mixed-Rand.

results/matrix.csv    a line for each cell: its accuracy beside the one in the paper's table 5
results/matrix.json   the same cells, with BG-Gaps and gains

A row is a model, which was trained on one variant; a column is a variant that models were tested
on. The results are computed from the predictions of the rows' models. A prediction is valid while
its picture stays the same. Predictions on IN-9L, which is another dataset, are valid while the
prediction files of all its shards exist.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, Meta, Struct, UnsetType
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata
from pipeline.evaluate.predictions import EvalImages, read_predictions
from pipeline.evaluate.published import TABLE_5_NAMES, TRAINED
from pipeline.evaluate.results import Table, Trained, pick, read_results, write_result
from pipeline.evaluate.summaries import measure_accuracy
from pipeline.evaluate.summary import Evaluated, MatrixRow
from pipeline.storage.state_files import read_intact, read_table
from pipeline.storage.store import Store
from transforms.analysis import bg_gap, constant_accuracy
from transforms.estimates import Estimate
from transforms.hashing import fingerprint
from transforms.two_way import Roles

MATRICES = "results/matrix.json"

IN9L = "in9l"
"""Name of IN-9L as a row and as a column. IN-9L is the dataset of all images of the classes, with
or without boxes."""


class CellRow(Struct, frozen=True, kw_only=True):
    """A cell of a matrix: the row's model on the pictures of the column.

    `accuracy` has an interval as in summary.csv.

    Attributes:
      pictures: number of pictures, on a single draw of mixed variants the same as `n`.
      published: accuracy of the paper's ResNet-50 (table 5); None if it has none.
      difference: `accuracy` minus `published`; unset without one of them.
      overlap: number of the n tested images that the model was also trained on.
    """

    train_variant: str
    test_variant: str
    n: int
    pictures: int
    correct: int
    accuracy: float | None
    ci_low: float
    ci_high: float
    chance: float | None
    published: float | None
    difference: float | UnsetType = UNSET
    difference_ci_low: float | UnsetType = UNSET
    difference_ci_high: float | UnsetType = UNSET
    train_n: int
    penalty: float | None
    overlap: int
    device: str
    weights_sha256: str
    checkpoint: str

    @property
    def estimate(self) -> Estimate | None:
        """The accuracy and its interval; None without pictures."""
        return None if self.accuracy is None else (self.accuracy, self.ci_low, self.ci_high)

    @property
    def differs(self) -> bool:
        """Whether the interval of the difference from the published figure excludes 0."""
        low, high = self.difference_ci_low, self.difference_ci_high
        return (low is not UNSET and low > 0) or (high is not UNSET and high < 0)


class PairedDifference(Struct, frozen=True, kw_only=True):
    """A difference of two cells on the same n images (-1 to 1), with its two-way 95 % interval."""

    difference: float
    ci_low: float
    ci_high: float
    n: int

    @property
    def estimate(self) -> Estimate:
        return self.difference, self.ci_low, self.ci_high


class RowGap(PairedDifference, frozen=True, kw_only=True):
    """BG-Gap of a row's model."""

    train_variant: str


class Gain(PairedDifference, frozen=True, kw_only=True):
    """Accuracy on a column that the row `first` has and the row `second` has not."""

    first: str
    second: str
    test_variant: str


class Matrix(Struct, frozen=True, kw_only=True):
    """The matrix of one network: all rows on all columns.

    Attributes:
      method: `probe` or `train`.
      replicates: number of draws of the dataset's mixed variants, of which the first is tested.
    """

    name: str
    arch: str
    method: str
    dataset: str
    train_split: str
    split: str
    eval_input: str
    precision: str
    holdout: float
    input_size: int
    seed: int
    replicates: int
    columns: tuple[str, ...]
    rows: tuple[CellRow, ...]
    gaps: tuple[RowGap, ...]
    gains: tuple[Gain, ...]

    @property
    def by_row(self) -> dict[str, dict[str, CellRow]]:
        """The cells by row and column, both in order; rows without cells are left out."""
        cells: dict[str, dict[str, CellRow]] = {}
        for cell in self.rows:
            cells.setdefault(cell.train_variant, {})[cell.test_variant] = cell
        return cells


class MatrixLine(Struct, frozen=True, kw_only=True):
    """A row of matrix.csv: a cell of a matrix."""

    train_variant: Annotated[str, Meta(description="variant that the model was trained on")]
    test_variant: Annotated[str, Meta(description="variant that the model was tested on")]
    arch: Annotated[str, Meta(description="architecture of the model")]
    method: Annotated[
        str, Meta(description="`probe`: last layer of a frozen network; `train`: whole network")
    ]
    n: int
    correct: Annotated[int, Meta(description="number of images classified correctly")]
    accuracy: Annotated[
        float | None, Meta(description="correct / n, on a single draw of mixed variants")
    ]
    ci_low: float
    ci_high: float
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
    seed: Annotated[int, Meta(description="seed of the training")]
    precision: str
    device: str
    weights_sha256: str
    checkpoint: Annotated[
        str, Meta(description="file of the trained model, as `--models` takes it")
    ]
    dataset: str


MATRIX_TABLE = Table(
    "matrix",
    (MatrixLine,),
    "accuracy on one variant of a model trained on another (or the same)",
)


class _Row(NamedTuple):
    """A row of a matrix: its model, its names, and how it was trained."""

    run: Evaluated
    matrix: MatrixRow
    trained: Trained


_ImageReader = Callable[[str, float], EvalImages]


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixCell:
    """The predictions of a row's model on the n tested images of a column.

    Attributes:
      keys: n keys of the images, sorted.
      units: (n,) integers, unit of each image.
      bg_units: (n,) integers, unit of each background, numbered like `units`; None if pictures have
        their own backgrounds.
      labels: (n,) integers, true labels.
      correct: (n,) bool, whether each prediction is right.
      device: types of the devices that computed the predictions, joined by `+`.
    """

    row: _Row
    keys: tuple[str, ...]
    units: NDArray[np.integer]
    bg_units: NDArray[np.integer] | None
    labels: NDArray[np.integer]
    correct: NDArray[np.bool_]
    device: str


def read_matrices(dataset: Dataset) -> list[Matrix]:
    """Computes every matrix that has valid predictions on the dataset, in order of the names."""
    read_images = functools.cache(functools.partial(EvalImages.read, dataset))
    models: dict[str, list[_Row]] = {}
    for run in read_results(dataset.store, "model", Evaluated):
        if run.matrix and run.trained:
            models.setdefault(run.matrix.name, []).append(_Row(run, run.matrix, run.trained))
    matrices = (
        _compute_matrix(dataset, name, models[name], read_images) for name in sorted(models)
    )
    return [matrix for matrix in matrices if matrix.rows]


def _compute_matrix(
    dataset: Dataset, name: str, models: list[_Row], read_images: _ImageReader
) -> Matrix:
    cells = {
        (one.matrix.row, column): cell
        for one in models
        for column, cell in _cells(dataset, one, read_images)
    }
    tested = ([IN9L] if one.run.evaluation.dataset else one.run.variants or () for one in models)
    columns = sort_names(dataset, {one.matrix.row for one in models}.union(*tested))
    first = models[0]
    return pick(
        Matrix,
        first.run.evaluation,
        name=name,
        arch=first.matrix.arch,
        method=first.trained.method,
        dataset=dataset.manifest.fingerprint,
        train_split=first.trained.split,
        seed=first.trained.seed,
        replicates=dataset.manifest.config.compose.replicates,
        columns=columns,
        rows=tuple(
            _cell_row(row, column, cells[row, column], dataset.is_comparable)
            for row in columns
            for column in columns
            if (row, column) in cells
        ),
        gaps=tuple(
            pick(RowGap, difference, train_variant=row)
            for row in columns
            for difference in _paired_differences(
                cells.get((row, "mixed_same")), cells.get((row, "mixed_rand"))
            )
        ),
        gains=tuple(
            pick(Gain, difference, first="mixed_rand", second="original", test_variant=column)
            for column in columns
            for difference in _paired_differences(
                cells.get(("mixed_rand", column)), cells.get(("original", column))
            )
        ),
    )


def _cells(
    dataset: Dataset, row: _Row, read_images: _ImageReader
) -> Iterator[tuple[str, MatrixCell]]:
    """Yields (column's name, cell) for each column that has valid predictions of a row's model."""
    if row.run.evaluation.dataset:
        cell = _in9l_cell(dataset.store, row)
        if cell is not None:
            yield IN9L, cell
        return
    tested_on = row.run.tested_on
    if tested_on[0] not in dataset.manifest.shards:
        return
    images = read_images(*tested_on)
    model_predictions = read_predictions(dataset, images, row.run)
    keys, device = tuple(images.keys.to_pylist()), "+".join(model_predictions.devices)
    # A row has one output per superclass, so that its label rules agree.
    if not model_predictions.by_rule:
        return
    predictions = next(iter(model_predictions.by_rule.values()))
    for variant in predictions.predicted:
        yield (
            str(variant),
            MatrixCell(
                row=row,
                keys=keys,
                units=images.unit_numbers,
                bg_units=predictions.bg_units.get(variant),
                labels=images.labels,
                correct=predictions.correct(variant),
                device=device,
            ),
        )


def _in9l_cell(store: Store, row: _Row) -> MatrixCell | None:
    """Reads a row's cell in the column of IN-9L; None if any of its predictions is missing."""
    paths = list(store.walk(f"results/{row.run.folder}/predictions"))
    records = (read_metadata(store, path) for path in paths)
    fingerprints = [record and record.fingerprint for record in records]
    columns = ["label_rule", "key", "label", "correct", "device"]
    read = functools.partial(read_table, store, columns=columns)
    tables = [
        table.replace_schema_metadata()
        for path in paths
        if (table := read_intact(store, path, functools.partial(read, path))) is not None
    ]
    if fingerprint(fingerprints) != row.run.predictions or len(tables) < len(paths):
        return None
    table = pa.concat_tables(tables).unify_dictionaries()
    rules = table["label_rule"].cast(pa.string())
    # A row has one output per superclass, so that its label rules agree, and any of them will do.
    table = table.filter(pc.is_in(rules, pc.unique(rules)[:1])).sort_by("key")
    keys = tuple(table["key"].to_pylist())
    names = [(row.run.groups or {}).get(key, key) for key in keys]
    units = np.unique(np.asarray(names, object), return_inverse=True)[1]
    device = "+".join(sorted(pc.unique(table["device"].cast(pa.string())).to_pylist()))
    labels, correct = (np.asarray(table[name].to_numpy()) for name in ("label", "correct"))
    return MatrixCell(row, keys, units, None, labels, correct, device)


def _cell_row(row: str, column: str, cell: MatrixCell, is_comparable: bool) -> CellRow:
    """Computes a cell.

    Args:
      is_comparable: whether the paper's figures may be compared with accuracies on the dataset;
        otherwise the line has no published figure.
    """
    published = TRAINED.get(row, {}).get(column) if is_comparable else None
    one = measure_accuracy(cell.correct, _roles(cell), np.arange(len(cell.keys)))
    difference = {}
    if published is not None and one.accuracy is not None:
        difference = {
            "difference": one.accuracy - published,
            "difference_ci_low": one.ci_low - published,
            "difference_ci_high": one.ci_high - published,
        }
    return pick(
        CellRow,
        one,
        train_variant=row,
        test_variant=column,
        chance=constant_accuracy(cell.labels),
        train_n=cell.row.trained.images,
        penalty=None if cell.row.trained.penalty is UNSET else cell.row.trained.penalty,
        overlap=cell.row.run.overlap or 0,
        device=cell.device,
        weights_sha256=cell.row.run.weights_sha256,
        checkpoint=cell.row.run.entry.partition("=")[2],
        published=published,
        **difference,
    )


def _roles(*cells: MatrixCell) -> Roles:
    """Returns the units of the pictures of cells, concatenated.

    Either all cells have pictures on other backgrounds, or none has. The pictures of an image are
    one paired difference.
    """
    backgrounds = [cell.bg_units for cell in cells if cell.bg_units is not None]
    return Roles.from_units(
        np.concatenate([cell.units for cell in cells]),
        np.concatenate(backgrounds) if backgrounds else None,
        np.tile(np.arange(len(cells[0].keys)), len(cells)),
    )


def _paired_differences(
    first: MatrixCell | None, second: MatrixCell | None
) -> Iterator[PairedDifference]:
    """Yields the accuracy of the first cell minus the second's, if both hold the same images."""
    if first and second and first.keys == second.keys and first.keys:
        gap = bg_gap(first.correct[np.newaxis], second.correct[np.newaxis], _roles(first, second))
        yield PairedDifference(
            difference=gap.gap, ci_low=gap.low, ci_high=gap.high, n=len(first.keys)
        )


def write_matrix_tables(dataset: Dataset) -> list[Matrix]:
    """Rebuilds both tables if there ever was a matrix; the caller must hold the tables' lock."""
    store, matrices = dataset.store, read_matrices(dataset)
    if matrices or store.exists(MATRICES):
        lines = (pick(MatrixLine, row, matrix) for matrix in matrices for row in matrix.rows)
        MATRIX_TABLE.write(store, ([line] for line in lines))
        of = dataset.manifest.fingerprint
        write_result(store, MATRICES, {"dataset": of, "matrices": matrices})
    return matrices


MATRIX_FIGURES = ("accuracy", "published", "difference")
"""The figures of a matrix: our accuracies, the paper's, and their differences."""


def matrix_file(name: str, kind: str) -> str:
    """Returns the name of the SVG file of a matrix's figure, one of `MATRIX_FIGURES`."""
    return f"matrix-{name}-{kind}.svg"


def sort_names(dataset: Dataset, names: Collection[str]) -> tuple[str, ...]:
    """Sorts names of rows or columns as the paper's table 5, then the dataset; drops duplicates."""
    order = list(dict.fromkeys((*TABLE_5_NAMES, *map(str, dataset.variants), *sorted(names))))
    return tuple(sorted(set(names), key=order.index))
