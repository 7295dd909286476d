"""Making a matrix: row after row, each a model with predictions; what is there is not made again.

A row's model is called by the matrix and the variant that it was trained on, `NAME-VARIANT`, and
not by its entry of `--models`: the same checkpoint can be evaluated beside it. Its predictions on
IN-9L lie in a folder of their own, which is named after that dataset, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, Protocol

from pipeline.analyses.matrix.matrix_plan import IN9L, MatrixPlan
from pipeline.analyses.matrix.matrix_results import write_matrix_tables
from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import selected_rows
from pipeline.dataset.records import write_table
from pipeline.errors import JobError, UsageError
from pipeline.evaluate.evaluation import describe_model
from pipeline.evaluate.evaluation_work import commit_predictions
from pipeline.evaluate.predict_shards import PredictShards, Scorer
from pipeline.evaluate.prediction_files import ModelMetadata
from pipeline.evaluate.resident import free_memory
from pipeline.evaluate.result_files import read_results, result_file, result_folder
from pipeline.models.checkpoint import read_metadata
from pipeline.models.identity import ModelIdentity
from pipeline.models.loaded import state_hash
from pipeline.models.timm_names import read_state
from pipeline.runtime.lock import TABLES_LOCK, held
from pipeline.runtime.progress import duration
from pipeline.storage.store import WORK_FOLDER, Store
from pipeline.training.penalty import describe_penalty


class Trainer(Protocol):
    """A way to train a network on a variant, and to score pictures with it.

    Attributes:
      name: of the matrix.
      arch: the network.
    """

    name: str
    arch: str

    def train(self, row: str) -> str:
        """Trains on a row's pictures, unless that is done; absolute path of the checkpoint."""

    def scorer(self, entry: str) -> Scorer:
        """What gives logits of a checkpoint, `ARCH=FILE`."""


def make_matrices(
    plan: MatrixPlan, trainers: Iterable[Trainer], say: Callable[[str], None] = print
) -> tuple[list[dict[str, Any]], int]:
    """Trains and tests, and writes tables after every row that was not there.

    Args:
      plan: of the matrix.
      trainers: one for each network.
      say: takes each line of what happens.

    Returns:
      (what is said of each matrix, how many of their rows had to be tested, in whole or in part).

    Raises:
      UsageError: images of the test were trained on.
      ModelError, JobError: training or testing failed; rows that are done are kept.
    """
    store = plan.dataset.store
    made = 0
    names: list[str] = []
    for trainer in trainers:
        names.append(trainer.name)
        with held(store, f"{WORK_FOLDER}/lock-matrix-{trainer.name}") as mine:
            current: set[str] = set()
            for row in plan.names:
                started = time.monotonic()
                abouts, is_new = make_row(trainer, plan, row)
                current.update(result_folder(one["model"], one["evaluation"]) for one in abouts)
                if is_new:
                    made += 1
                    _write_tables(plan.dataset)
                    trained = abouts[0]["trained"]
                    penalty = trained.get("penalty")
                    chosen = f"; penalty {describe_penalty(penalty)}" if penalty is not None else ""
                    say(
                        f"{trainer.name}: {row}, {trained['images']} pictures trained on, tested "
                        f"on {len(plan.names)} columns, {duration(time.monotonic() - started)}"
                        f"{chosen}"
                    )
            _remove_others(mine, trainer.name, current)
    found = {content["name"]: content for content in _write_tables(plan.dataset)}
    store.remove_temporary()
    return [found[name] for name in names], made


def make_row(trainer: Trainer, plan: MatrixPlan, row: str) -> tuple[list[ModelMetadata], bool]:
    """Trains on a variant, and predicts on each column what is not there yet.

    Returns:
      (what the model's files say, one for each dataset that it is tested on; whether any
      prediction file had to be made).

    Raises:
      UsageError: images of the test were trained on, and nobody has allowed it.
      ModelError, JobError: of training and testing.
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
    own = {
        "model": f"{trainer.name}-{row}",
        # Where the dataset is moved to, it lies there, too.
        "entry": entry.replace(f"={store.root}/", "=", 1),
        "matrix": {"name": trainer.name, "row": row, "arch": trainer.arch},
        "power": [],
    }
    tests = [(dataset, {**metadata, **own}) for dataset, metadata in _tests(plan, model)]
    overlap = max(metadata["overlap"] for _, metadata in tests)
    if overlap and not plan.allow_overlap:
        raise UsageError(
            f"{overlap} images to test on were trained on (row {row}); divide the split "
            "with --holdout 0.5, or add --allow_overlap to test on them and mark the result"
        )
    scorer: Scorer | None = None
    for dataset, metadata in tests:
        shards, units = PredictShards(dataset, metadata, store), dataset.shards(plan.split)
        missing = [unit for unit in units if not shards.is_done(unit)]
        if missing:
            scorer = scorer or trainer.scorer(entry)
            for made in shards.run(scorer, units, missing, lambda *_: None):
                write_table(store, shards.path(made.unit), made.table, shards.fingerprint_to_store(made))
        commit_predictions(shards, units, metadata)
    is_new = scorer is not None
    del scorer
    free_memory()
    return [metadata for _, metadata in tests], is_new


def _tests(plan: MatrixPlan, model: ModelIdentity) -> Iterator[tuple[Dataset, dict[str, Any]]]:
    """Datasets that a row is tested on, and what is said of the model and of how it is run."""
    metadata = describe_model(model, plan.evaluation, plan.dataset)
    yield plan.dataset, {**metadata, "variants": list(plan.variants)}
    if plan.in9l is not None:
        metadata = describe_model(model, plan.evaluation, plan.in9l)
        rows = selected_rows(plan.in9l, plan.split, plan.holdout)
        yield (
            plan.in9l,
            {
                **metadata,
                "evaluation": {**metadata["evaluation"], "dataset": plan.in9l.manifest.fingerprint},
                "variants": [plan.source(IN9L)[1]],
                # Its index is not here when tables are made.
                "groups": {row["key"]: row["group"] for row in rows if row.get("group")},
            },
        )


def _write_tables(dataset: Dataset) -> list[dict[str, Any]]:
    with held(dataset.store, TABLES_LOCK, wait=60) as store:
        return write_matrix_tables(Dataset.open(store))


def _remove_others(store: Store, name: str, current: Collection[str]) -> None:
    """Removes rows of earlier matrices of that name, and what they said of another IN-9L."""
    for metadata in read_results(store, "model"):
        folder = result_folder(metadata["model"], metadata["evaluation"])
        if metadata.get("matrix", {}).get("name") == name and folder not in current:
            # What says that predictions are there goes first.
            store.delete(result_file(folder, "model"))
            for path in list(store.walk(f"results/{folder}")):
                store.delete(path)
