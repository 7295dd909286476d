"""Cells of the matrix: predictions of one trained model on one variant, a file each.

results/matrix/<name>/<trained on>-<tested on>.parquet
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.analyses.matrix.plan import MatrixPlan, Tested
from pipeline.dataset.fingerprints import EVALUATE_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import ShardFiles, read_about, write_table
from pipeline.dataset.sinks import Sample
from pipeline.errors import JobError, UsageError
from pipeline.evaluate.resident import free_memory
from pipeline.models.checkpoint import TrainedOn
from pipeline.models.checkpoint import read_about as read_training
from pipeline.models.loaded import state_hash
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model
from pipeline.models.timm_names import read_state
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from pipeline.training.features import Backbone
from pipeline.training.probe import ProbePlan, fit_variant

CELL_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("label", pa.int64()),
        pa.field("prediction", pa.int64()),
    ]
)
"""Columns of a cell; `unit` is the image's group, or its key."""

Scores = Callable[[Tested], tuple[Sequence[str], NDArray[np.floating]]]
"""Images of a column, and their (n, classes) logits."""


class Trainer(Protocol):
    """A way to train a network on a variant, and to score pictures with it.

    Attributes:
      name: of the matrix.
      arch: the network.
      method: `probe` or `train`.
    """

    name: str
    arch: str
    method: str

    def train(self, row: str) -> str:
        """Trains on a row's pictures, unless that is done; absolute path of the checkpoint."""

    def scores(self, path: str) -> contextlib.AbstractContextManager[Scores]:
        """What a checkpoint says of pictures."""


class ProbeTrainer:
    """Linear probes of a frozen network; tests reuse its features.

    Args:
      backbone: the network.
      plan: of the matrix.
    """

    method = "probe"

    def __init__(self, backbone: Backbone, plan: MatrixPlan) -> None:
        self._backbone, self._plan = backbone, plan
        self.arch = backbone.model.name
        self.name = f"probe-{self.arch.replace('/', '_')}{plan.suffix()}"

    def train(self, row: str) -> str:
        dataset, variant = self._plan.source(row)
        return fit_variant(
            self._backbone,
            ProbePlan(
                dataset, variant, self._plan.train_split, self._plan.holdout, self._plan.seed, row
            ),
            self._plan.dataset.store,
        )

    @contextlib.contextmanager
    def scores(self, path: str) -> Iterator[Scores]:
        state = read_state(path)
        network = self._backbone.model.module
        names = {id(value): name for name, value in network.named_parameters()}
        weight = state[names[id(self._backbone.layer.weight)]]
        bias = state[names[id(self._backbone.layer.bias)]]

        def score(column: Tested) -> tuple[Sequence[str], NDArray[np.floating]]:
            found = self._backbone.features(column.dataset, column.split, column.variant)
            found = found.of(column.units)
            with torch.inference_mode():
                logits = torch.nn.functional.linear(torch.from_numpy(found.values), weight, bias)
            return found.keys, logits.numpy()

        yield score


@contextlib.contextmanager
def network_scores(entry: str, plan: MatrixPlan) -> Iterator[Scores]:
    """Scores by whole forward passes of an entry of `--models`."""
    predictor = Predictor(load_model(entry), plan.predict)

    def score(column: Tested) -> tuple[Sequence[str], NDArray[np.floating]]:
        keys: list[str] = []
        parts: list[NDArray[np.float32]] = []
        with contextlib.closing(predictor.logits(_samples(column))) as batches:
            for batch, logits in batches:
                keys += [sample.key for sample in batch]
                parts.append(logits)
        return keys, np.concatenate(parts)

    yield score


def _samples(column: Tested) -> Iterator[Sample]:
    for shard in column.dataset.shards(column.split):
        for sample in column.dataset.samples(column.split, shard, column.variant):
            if sample.key in column.units:
                yield sample


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """Predictions of a trained model on a column.

    Attributes:
      row, column: names.
      keys, units: (n,) of the images.
      correct: (n,) whether each prediction is right.
      train_n: how many images were trained on.
      overlap: how many of the tested ones were.
      weights_sha256: of the trained network.
      checkpoint: its file.
    """

    row: str
    column: str
    keys: tuple[str, ...]
    units: tuple[str, ...]
    correct: NDArray[np.bool_]
    train_n: int
    overlap: int
    weights_sha256: str
    checkpoint: str


def cell_file(name: str, row: str, column: str) -> str:
    """Predictions of a cell."""
    return f"results/matrix/{name}/{row}-{column}.parquet"


def make_row(
    trainer: Trainer, plan: MatrixPlan, row: str, columns: Sequence[Tested]
) -> Iterator[tuple[Cell, bool]]:
    """Trains on a variant, and tests on each column what is not there yet.

    Yields:
      (cell, whether it had to be made).

    Raises:
      UsageError: images of the test were trained on, and nobody has allowed it.
      ModelError, JobError: of training and testing.
    """
    path = trainer.train(row)
    trained = read_training(path)
    if trained is None:
        raise JobError(f"{path} does not say what it was trained on")
    seen = frozenset(trained.keys)
    overlaps = [sum(key in seen for key in column.units) for column in columns]
    if any(overlaps) and not plan.allow_overlap:
        raise UsageError(
            f"{max(overlaps)} images to test on were trained on (row {row}); divide the split "
            "with --holdout 0.5, or add --allow_overlap to test on them and mark the result"
        )
    store = plan.dataset.store
    weights = state_hash(read_state(path))
    with contextlib.ExitStack() as stack:
        score: Scores | None = None
        for column, overlap in zip(columns, overlaps, strict=True):
            file = cell_file(trainer.name, row, column.name)
            checksum = _checksum(plan, column, weights, trained)
            about = read_about(store, file)
            is_new = about is None or about.fingerprint != checksum
            if is_new:
                score = score or stack.enter_context(trainer.scores(path))
                _write(store, file, column, score, checksum)
            yield _read(store, file, row, column.name, path, weights, trained, overlap), is_new
        score = None
    free_memory()


def _checksum(plan: MatrixPlan, column: Tested, weights: str, trained: TrainedOn) -> str:
    return fingerprint(
        weights,
        dataclasses.asdict(trained.preprocessing),
        plan.predict.asked_for,
        EVALUATE_VERSION,
        _pictures(column.dataset, column.split, column.variant),
        list(column.units.items()),
    )


def _pictures(dataset: Dataset, split: str, variant: str) -> list[str]:
    return [
        file.sha256
        for shard in dataset.shards(split)
        for file in dataset.shard_files(split, shard, (variant,))
    ]


def _write(store: Store, file: str, column: Tested, score: Scores, checksum: str) -> None:
    keys, logits = score(column)
    table = pa.table(
        {
            "key": list(keys),
            "unit": [column.units[key] for key in keys],
            "label": [column.labels[key] for key in keys],
            "prediction": logits.argmax(axis=1),
        }
    ).cast(CELL_SCHEMA)
    write_table(store, file, table, ShardFiles(checksum, ()))


def _read(
    store: Store,
    file: str,
    row: str,
    column: str,
    path: str,
    weights: str,
    trained: TrainedOn,
    overlap: int,
) -> Cell:
    table = read_table(store, file)
    prefix = f"{store.root}/"
    return Cell(
        row=row,
        column=column,
        keys=tuple(table["key"].to_pylist()),
        units=tuple(table["unit"].to_pylist()),
        correct=table["label"].to_numpy() == table["prediction"].to_numpy(),
        train_n=len(trained.keys),
        overlap=overlap,
        weights_sha256=weights,
        checkpoint=path.removeprefix(prefix),
    )
