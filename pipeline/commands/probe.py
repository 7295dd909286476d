"""`in9 train --probe`: fits a linear probe."""

from __future__ import annotations

import argparse
import time

import torch

from pipeline.commands.training_flags import choose_device, refuse_foreign, refuse_network_flags
from pipeline.dataset.folder import Dataset
from pipeline.dataset.holdout import Holdout
from pipeline.dataset.latest import writing_store
from pipeline.errors import counted
from pipeline.models.checkpoint import SUFFIX, is_trained_here, read_metadata
from pipeline.models.predict_config import PredictConfig
from pipeline.models.registry import check_model
from pipeline.models.stored_index import chosen_folder
from pipeline.runtime.leftovers import removed_if_refused
from pipeline.runtime.lock import DATASET_LOCK, held
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import duration
from pipeline.storage.store import WORK_FOLDER
from pipeline.training.features import Backbone
from pipeline.training.penalty import describe_penalty
from pipeline.training.probe_fit import ProbePlan, fit_variant, probe_file
from pipeline.training.train_plan import check_variant, choose_splits

_NETWORK_FLAGS = (
    *("pretrained", "epochs", "batch_size", "lr", "weight_decay"),
    *("eval_split", "precision", "workers", "overwrite"),
)
"""Flags of `in9 train` that only the training of whole networks uses."""


def run_probe(arguments: argparse.Namespace) -> int:
    """Runs `in9 train --probe`.

    Args:
      arguments: the parsed arguments.

    Returns:
      The exit code.

    Raises:
      UsageError: wrong usage or unreadable input.
      ModelError, JobError: the network cannot be loaded, or fails.
    """
    refuse_network_flags(arguments, _NETWORK_FLAGS)
    # Opened for writing, because features are cached in the dataset's work folder.
    dataset = Dataset.open(writing_store("dataset", arguments.dataset))
    check_variant(dataset, arguments.variant)
    split, _ = choose_splits(dataset, arguments.train_split, None, arguments.holdout)
    device, _ = choose_device(arguments)
    weights = chosen_folder(arguments.weights)
    check_model(arguments.arch, weights)
    name = f"{arguments.variant}{SUFFIX}"
    output = writing_store("output", arguments.output) if arguments.output else None
    if output is not None:
        path = output.path(name)
        refuse_foreign(output, (name,), lambda: is_trained_here(path))
    torch.set_num_threads(usable_cores())
    started = time.monotonic()
    predict = PredictConfig(device)
    backbone = Backbone(arguments.arch, predict, dataset.store, weights)
    plan = ProbePlan(dataset, arguments.variant, split, Holdout(arguments.holdout), arguments.seed)
    if output is None:
        folder, _, name = probe_file(backbone, plan).rpartition("/")
        output = dataset.store.below(folder)
    with removed_if_refused(output), held(output, DATASET_LOCK) as locked:
        locked.remove_temporary()
        checkpoint = fit_variant(backbone, plan, locked, name)
    output.prune(WORK_FOLDER)
    trained = read_metadata(checkpoint)
    if trained is not None:
        print(
            f"{counted(len(trained.keys), 'picture')} of {arguments.variant} in {split}; "
            f"penalty {describe_penalty(trained.settings['penalty'])}; "
            f"time: {duration(time.monotonic() - started)}"
        )
    holdout = f" --holdout {arguments.holdout:g}" if arguments.holdout else ""
    print(
        f"to evaluate: in9 evaluate --dataset {arguments.dataset} --models "
        f"{backbone.architecture}={checkpoint}{holdout}"
    )
    return 0
