"""`in9 train`: trains a network, or with `--probe` a linear probe, on a variant."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time

from pipeline.commands.training_flags import choose_device, default_workers, refuse_foreign
from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import reading_store, writing_store
from pipeline.errors import JobError, UsageError
from pipeline.models.checkpoint import is_trained_here
from pipeline.models.stored_index import chosen_folder
from pipeline.runtime.leftovers import removed_if_refused
from pipeline.runtime.lock import DATASET_LOCK, held
from pipeline.runtime.progress import duration
from pipeline.storage.store import WORK_FOLDER, Store
from pipeline.training.loop import MODEL, STATE, read_state_file, train
from pipeline.training.network import check_architecture
from pipeline.training.probe_fit import MODELS
from pipeline.training.train_plan import TrainPlan, check_variant, choose_splits
from pipeline.training.training_log import LOG


def plan_from_flags(arguments: argparse.Namespace, dataset: Dataset) -> TrainPlan:
    """Checks the flags of a training, and makes its plan from them.

    Args:
      arguments: the parsed arguments.
      dataset: the dataset to train on.

    Raises:
      UsageError: a flag is wrong.
    """
    device, precision = choose_device(arguments)
    weights = chosen_folder(arguments.weights)
    check_architecture(arguments.arch, pretrained=arguments.pretrained, weights=weights)
    check_variant(dataset, arguments.variant)
    workers = arguments.workers
    train_split, eval_split = choose_splits(
        dataset, arguments.train_split, arguments.eval_split, arguments.holdout
    )
    fields = {field.name for field in dataclasses.fields(TrainPlan)}
    flags = {name: value for name, value in vars(arguments).items() if name in fields} | {
        "device": device,
        "precision": precision,
        "weights": weights,
        "train_split": train_split,
        "eval_split": eval_split,
        "workers": default_workers(device) if workers is None else workers,
    }
    try:
        return TrainPlan(**flags)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _holds_training(store: Store) -> bool:
    """Returns whether a folder holds the model or the state of a training."""
    if store.exists(MODEL) and is_trained_here(store.path(MODEL)):
        return True
    with contextlib.suppress(JobError):
        return read_state_file(store) is not None
    return False


def run_train(arguments: argparse.Namespace) -> int:
    """Runs `in9 train`.

    Args:
      arguments: the parsed arguments.

    Returns:
      The exit code.

    Raises:
      UsageError: wrong usage or unreadable input.
      JobError: the training failed.
    """
    if arguments.probe:
        from pipeline.commands.probe import run_probe

        return run_probe(arguments)
    folder = arguments.dataset
    dataset = Dataset.open(
        reading_store(folder) if arguments.output else writing_store("dataset", folder)
    )
    plan = plan_from_flags(arguments, dataset)
    output = arguments.output or dataset.store.path(f"{MODELS}/{plan.name}")
    store = writing_store("output", output)
    refuse_foreign(store, (MODEL, STATE, LOG), lambda: _holds_training(store))
    started = time.monotonic()
    with removed_if_refused(store), held(store, DATASET_LOCK) as locked:
        locked.remove_temporary()
        result = train(dataset, plan, locked, overwrite=arguments.overwrite)
    store.prune(WORK_FOLDER)
    if not result.is_new:
        print(f"nothing to do: all {plan.epochs} epochs have been trained")
    else:
        print(f"time: {duration(time.monotonic() - started)}; log: {store.path(LOG)}")
    holdout = f" --holdout {plan.holdout:g}" if plan.holdout else ""
    print(
        f"to evaluate: in9 evaluate --dataset {arguments.dataset} --models {result.entry}{holdout}"
    )
    return 0
