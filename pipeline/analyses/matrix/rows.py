"""Trains and tests the rows of matrices; models and predictions that exist are not made again.

The model of a row is named `NAME-VARIANT`, after its matrix and the variant that it was trained on,
and not after its entry of `--models`, so that the same checkpoint can also be evaluated on its own.
Its predictions on IN-9L lie in a separate folder, whose name includes the beginning of that
dataset's fingerprint.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Protocol

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from pipeline.analyses.evaluation.results import Evaluated, MatrixRow
from pipeline.analyses.evaluation.stage import commit_predictions
from pipeline.analyses.matrix.plan import IN9L, MatrixPlan
from pipeline.analyses.matrix.results import Matrix, write_matrix_tables
from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import selected_rows
from pipeline.dataset.records import write_table
from pipeline.errors import JobError, UsageError, counted
from pipeline.evaluate.evaluation import describe_model
from pipeline.evaluate.predict_shards import PredictShards, Scorer
from pipeline.evaluate.resident import free_memory
from pipeline.evaluate.result_files import read_results, result_file
from pipeline.evaluate.results import ModelRun
from pipeline.models.checkpoint import TrainedOn, read_metadata
from pipeline.models.preprocessing import ModelIdentity
from pipeline.models.source import state_hash
from pipeline.models.timm_names import read_state
from pipeline.runtime.lock import TABLES_LOCK, held
from pipeline.runtime.progress import duration
from pipeline.storage.store import WORK_FOLDER, Store
from pipeline.training.penalty import describe_penalty


class Trainer(Protocol):
    """A method to train a network on a variant, and to predict pictures with the trained network.

    Attributes:
      name: name of the matrix whose rows it trains.
      arch: architecture of the network.
    """

    name: str
    arch: str

    def train(self, row: str) -> str:
        """Trains on the pictures of a row, unless it did so before; returns the path of the
        checkpoint."""

    def scorer(self, entry: str) -> Scorer:
        """Loads a checkpoint, `ARCH=FILE`, to compute logits with it."""


def make_matrices(plan: MatrixPlan, trainers: Iterable[Trainer]) -> tuple[list[Matrix], int]:
    """Trains and tests the models of matrices. After every new row, prints a line and writes the
    tables.

    Args:
      plan: plan of the matrices.
      trainers: a trainer for each matrix.

    Returns:
      (the matrices of the trainers, computed by `read_matrices`; number of rows with new
      predictions).

    Raises:
      UsageError: a model would be tested on images that it was trained on, and the plan does not
        allow that.
      ModelError, JobError: training or testing failed; finished rows are kept.
    """
    store = plan.dataset.store
    new_rows = 0
    names: list[str] = []
    for trainer in trainers:
        names.append(trainer.name)
        with held(store, f"{WORK_FOLDER}/lock-matrix-{trainer.name}") as locked_store:
            current: set[str] = set()
            for row in plan.names:
                started = time.monotonic()
                tests, trained, is_new = make_row(trainer, plan, row)
                current.update(test.folder for test in tests)
                if is_new:
                    new_rows += 1
                    _write_tables(plan.dataset)
                    penalty = trained.settings.get("penalty")
                    suffix = f"; penalty {describe_penalty(penalty)}" if penalty is not None else ""
                    print(
                        f"{trainer.name}: {row}, trained on "
                        f"{counted(len(trained.keys), 'picture')}, tested on "
                        f"{counted(len(plan.names), 'column')}, "
                        f"{duration(time.monotonic() - started)}{suffix}"
                    )
            _remove_others(locked_store, trainer.name, current)
    matrices = {matrix.name: matrix for matrix in _write_tables(plan.dataset)}
    store.remove_temporary()
    return [matrices[name] for name in names], new_rows


def make_row(
    trainer: Trainer, plan: MatrixPlan, row: str
) -> tuple[list[ModelRun], TrainedOn, bool]:
    """Trains a row's model, and predicts the pictures of all columns that are not predicted yet.

    Returns:
      (the model's run on each dataset that it is tested on; how it was trained; whether any
      predictions are new).

    Raises:
      UsageError: the model would be tested on images that it was trained on, and the plan does not
        allow that.
      ModelError, JobError: training or testing failed.
    """
    path = trainer.train(row)
    trained = read_metadata(path)
    if trained is None:
        raise JobError(f"{path} does not say what it was trained on")
    store = plan.dataset.store
    entry = f"{trained.architecture.partition('.')[0]}={path}"
    model = ModelIdentity(
        name=entry,
        architecture=trained.architecture,
        weights=os.path.basename(path),
        weights_sha256=state_hash(read_state(path)),
        preprocessing=trained.preprocessing,
        num_outputs=plan.dataset.taxonomy.num_labels,
    )
    tests = list(_tests(plan, model, f"{trainer.name}-{row}"))
    overlap = max(run.overlap or 0 for _, run, _ in tests)
    if overlap and not plan.allow_overlap:
        raise UsageError(
            f"{counted(overlap, 'image')} to test on "
            f"{'was' if overlap == 1 else 'were'} trained on (row {row}); divide the split "
            "with --holdout 0.5, or add --allow_overlap to test on them and mark the result"
        )
    scorer: Scorer | None = None
    for dataset, run, groups in tests:
        shards, units = PredictShards(dataset, run, store), dataset.shards(plan.split)
        missing = [unit for unit in units if not shards.is_done(unit)]
        if missing:
            scorer = scorer or trainer.scorer(entry)
            for output in shards.run(scorer, units, missing, lambda *_: None):
                fingerprint = shards.fingerprint_to_store(output)
                write_table(store, shards.path(output.unit), output.table, fingerprint)
        commit_predictions(
            shards,
            units,
            run,
            # Relative to the dataset's folder, so that it stays valid if the folder is moved.
            entry=entry.replace(f"={store.root}/", "=", 1),
            matrix=MatrixRow(name=trainer.name, row=row, arch=trainer.arch),
            groups=groups,
            power=(),
        )
    is_new = scorer is not None
    del scorer
    free_memory()
    return [run for _, run, _ in tests], trained, is_new


def _tests(
    plan: MatrixPlan, model: ModelIdentity, name: str
) -> Iterator[tuple[Dataset, ModelRun, dict[str, str] | UnsetType]]:
    """Yields (dataset, the model's run on it under a name, `Evaluated.groups`) for each dataset
    that a row is tested on."""
    run = describe_model(model, plan.evaluation, plan.dataset)
    yield plan.dataset, replace(run, model=name, variants=plan.variants), UNSET
    if plan.in9l is not None:
        run = describe_model(model, plan.evaluation, plan.in9l)
        rows = selected_rows(plan.in9l, plan.split, plan.holdout)
        settings = replace(run.evaluation, dataset=plan.in9l.manifest.fingerprint)
        variants = (plan.source(IN9L)[1],)
        yield (
            plan.in9l,
            replace(run, model=name, evaluation=settings, variants=variants),
            # Stored here, because the index of IN-9L is not available when tables are written.
            {row["key"]: row["group"] for row in rows if row.get("group")},
        )


def _write_tables(dataset: Dataset) -> list[Matrix]:
    with held(dataset.store, TABLES_LOCK, wait=60) as store:
        return write_matrix_tables(Dataset.open(store))


def _remove_others(store: Store, name: str, current: Collection[str]) -> None:
    """Removes the results of earlier matrices of the same name, such as results of other rows, on
    another split or on another dataset of IN-9L.

    Args:
      store: the dataset folder.
      name: name of the matrix.
      current: names of the folders under `results/` to keep.
    """
    for run in read_results(store, "model", Evaluated):
        if run.matrix and run.matrix.name == name and run.folder not in current:
            # model.json is removed first, because it declares that the predictions exist.
            store.delete(result_file(run.folder, "model"))
            for path in list(store.walk(f"results/{run.folder}")):
                store.delete(path)
