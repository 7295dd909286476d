"""Results of matrices: accuracies of rows on columns, BG-Gaps, and gains by training on Mixed-Rand.

results/matrix.csv    a line for each cell: its accuracy beside the one in the paper's table 5
results/matrix.json   the same cells, with BG-Gaps and gains

A row is a model, which was trained on one variant; a column is a variant that models were tested
on. The results are computed from the predictions of the rows' models. A prediction is valid while
its picture stays the same. Predictions on IN-9L, which is another dataset, are valid while the
prediction files of all its shards exist.

With several seeds, a row has a model for each, and a cell a line for each and then their mean.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, Meta, Struct, UnsetType
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import read_metadata
from pipeline.evaluate.comparisons import measure
from pipeline.evaluate.families import Estimated
from pipeline.evaluate.predictions import EvalImages, read_predictions
from pipeline.evaluate.published import TABLE_5_NAMES, TRAINED
from pipeline.evaluate.results import Table, Trained, pick, read_results, write_result
from pipeline.evaluate.summary import Evaluated, MatrixRow
from pipeline.storage.state_files import read_intact, read_table
from pipeline.storage.store import Store
from transforms.analysis import constant_accuracy
from transforms.estimates import Estimate, estimate_of
from transforms.families import Seeds
from transforms.hashing import fingerprint
from transforms.two_way import Roles

MATRICES = "results/matrix.json"

IN9L = "in9l"
"""Name of IN-9L as a row and as a column. IN-9L is the dataset of all images of the classes, with
or without boxes."""


class CellRow(Estimated, frozen=True, kw_only=True):
    """A cell of a matrix: a model of the row on the pictures of the column, or a mean of several.

    `accuracy` has an interval as in summary.csv. What is of a single model is None for a mean.

    Attributes:
      pictures: number of pictures, on a single draw of mixed variants the same as `n`.
      published: accuracy of the paper's ResNet-50 (table 5); None if it has none.
      difference: `accuracy` minus `published`; unset without one of them.
      overlap: number of the n tested images that the model was also trained on.
    """

    train_variant: str
    test_variant: str
    pictures: int
    correct: int | None = None
    accuracy: float | None
    chance: float | None
    published: float | None
    difference: float | UnsetType = UNSET
    difference_ci_low: float | UnsetType = UNSET
    difference_ci_high: float | UnsetType = UNSET
    train_n: int
    penalty: float | None
    overlap: int
    seed: int | None = None
    device: str | None = None
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
        return (low is not UNSET and low > 0) or (high is not UNSET and high < 0)


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
    """The matrix of one network: all rows on all columns.

    Attributes:
      name: that of its first training.
      trainings: name under which the models of a seed are stored -> the seed.
      method: `probe` or `train`.
      replicates: number of draws of the dataset's mixed variants, of which the first is tested.
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
    columns: tuple[str, ...]
    rows: tuple[CellRow, ...]
    gaps: tuple[RowGap, ...]
    gains: tuple[Gain, ...]

    @property
    def by_row(self) -> dict[str, dict[str, CellRow]]:
        """The cells by row and column, both in order; rows without cells are left out.

        A mean takes the place of its models, because it stands behind them.
        """
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
    device: str | None
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


class _Row(NamedTuple):
    """A row of a matrix: its model, its names, and how it was trained."""

    run: Evaluated
    matrix: MatrixRow
    trained: Trained


_ImageReader = Callable[[str, float], EvalImages]
_Cells = dict[tuple[str, str, int], "MatrixCell"]
"""(row, column, seed) -> predictions of the model, in order of the seeds."""


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
    """Computes every matrix with valid predictions, which gathers all seeds, in order of names."""
    read_images = functools.cache(functools.partial(EvalImages.read, dataset))
    by_name: dict[str, list[_Row]] = {}
    for run in read_results(dataset.store, "model", Evaluated):
        if run.matrix and run.trained:
            by_name.setdefault(run.matrix.name, []).append(_Row(run, run.matrix, run.trained))
    gathered: dict[object, list[_Row]] = {}
    for name, models in by_name.items():
        # They differ while the rows are being made again, with other settings or on other data.
        settings, *others = {one.matrix.settings for one in models}
        gathered.setdefault(name if others else settings or name, []).extend(models)
    matrices = (_compute_matrix(dataset, models, read_images) for models in gathered.values())
    return sorted((matrix for matrix in matrices if matrix.rows), key=lambda matrix: matrix.name)


def _compute_matrix(dataset: Dataset, models: list[_Row], read_images: _ImageReader) -> Matrix:
    models = sorted(models, key=lambda one: one.trained.seed)
    cells = {
        (one.matrix.row, column, one.trained.seed): cell
        for one in models
        for column, cell in _cells(dataset, one, read_images)
        if cell.keys
    }
    tested = ([IN9L] if one.run.evaluation.dataset else one.run.variants or () for one in models)
    columns = sort_names(dataset, {one.matrix.row for one in models}.union(*tested))
    first = models[0]
    return pick(
        Matrix,
        first.run.evaluation,
        name=first.matrix.name,
        trainings={one.matrix.name: one.trained.seed for one in models},
        arch=first.matrix.arch,
        method=first.trained.method,
        dataset=dataset.manifest.fingerprint,
        train_split=first.trained.split,
        replicates=dataset.manifest.config.compose.replicates,
        columns=columns,
        rows=tuple(
            _cell_row(row, column, shown, dataset.is_comparable)
            for row in columns
            for column in columns
            for shown in _lines(_models(cells, row, column))
        ),
        gaps=tuple(gap for row in columns for gap in _gaps(cells, row)),
        gains=tuple(gain for column in columns for gain in _gains(cells, column)),
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


def _models(cells: _Cells, row: str, column: str) -> list[MatrixCell]:
    return [cell for (*place, _), cell in cells.items() if tuple(place) == (row, column)]


def _lines(models: list[MatrixCell]) -> list[list[MatrixCell]]:
    """Returns what the lines of a cell are about: each model, and then, of several, all."""
    return [*([one] for one in models), *([models] if len(models) > 1 else [])]


def _cell_row(row: str, column: str, cells: Sequence[MatrixCell], is_comparable: bool) -> CellRow:
    """Computes a line of a cell, about one model, or the mean of several.

    It has a published figure only if the paper's may be compared with accuracies on the dataset.
    """
    published = TRAINED.get(row, {}).get(column) if is_comparable else None
    accuracy, one = _estimate(cells[:1], _accuracies(cells), is_share=True)
    differences = {
        f"difference{end}": value - published
        for end, value in (("", accuracy), ("_ci_low", one.ci_low), ("_ci_high", one.ci_high))
        if value is not None and published is not None
    }
    first, run, trained = cells[0], cells[0].row.run, cells[0].row.trained
    of_model = {
        "correct": int(first.correct.sum()),
        "seed": trained.seed,
        "device": first.device,
        "weights_sha256": run.weights_sha256,
        "checkpoint": run.entry.partition("=")[2],
    }
    return pick(
        CellRow,
        one,
        train_variant=row,
        test_variant=column,
        pictures=one.n,
        accuracy=accuracy,
        chance=constant_accuracy(first.labels),
        published=published,
        train_n=trained.images,
        penalty=None if trained.penalty is UNSET else trained.penalty,
        overlap=run.overlap or 0,
        **differences,
        **(of_model if len(cells) == 1 else {}),
    )


def _accuracies(cells: Iterable[MatrixCell]) -> Seeds:
    """Returns the accuracies of models on the same pictures, at least one."""
    correct = np.stack([cell.correct for cell in cells])
    values = correct.mean(axis=1)
    return Seeds(values, (correct - values[:, np.newaxis]) / correct.shape[1])


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


def _gaps(cells: _Cells, row: str) -> Iterator[RowGap]:
    """Yields the BG-Gap of a row, once each of its models has predictions."""
    same, rand = (_models(cells, row, name) for name in ("mixed_same", "mixed_rand"))
    if same and [one.row for one in same] == [one.row for one in rand]:
        first, second = _accuracies(same), _accuracies(rand)
        gaps = Seeds(first.values - second.values, np.hstack([first.r, -second.r]))
        value, one = _estimate([same[0], rand[0]], gaps)
        yield pick(RowGap, one, difference=value, train_variant=row)


def _gains(cells: _Cells, column: str) -> Iterator[Gain]:
    """Yields the gain on a column, if models of both rows have predictions of the same images."""
    rows = ("mixed_rand", "original")
    first, second = (_models(cells, row, column) for row in rows)
    if first and second and first[0].keys == second[0].keys:
        value, one = _estimate(first[:1], _accuracies(first), _accuracies(second))
        # Seeds of the two rows have nothing in common, so no seed has a gain.
        none = dict.fromkeys(("sd", "lowest", "highest"))
        yield pick(
            Gain, one, difference=value, first=rows[0], second=rows[1], test_variant=column, **none
        )


def _estimate(
    pictures: Sequence[MatrixCell], *methods: Seeds, is_share: bool = False
) -> tuple[float, Estimated]:
    """Computes the mean of a method's models, maybe a share, or what it exceeds a second's by.

    `pictures` are cells that hold the pictures behind it.
    """
    n = len(pictures[0].keys)
    measured = measure(_roles(*pictures), n, *methods, is_share=is_share)
    low, high = measured.interval() if measured else (None, None)
    means = [float(one.values.mean()) for one in methods]
    values = methods[0].values
    return means[0] - sum(means[1:]), Estimated(
        n=n,
        ci_low=low,
        ci_high=high,
        seeds=len(values),
        sd=float(values.std(ddof=1)) if len(values) > 1 else None,
        lowest=float(values.min()),
        highest=float(values.max()),
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
