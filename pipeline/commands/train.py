"""`in9 train`: trains a network, or with `--probe` a linear probe, on a variant.

`in9 matrix` makes the plan of its trainings from the same flags.
"""

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Sequence

import torch

from pipeline.commands.command_line import check_device
from pipeline.commands.flags import flags_of
from pipeline.dataset.folder import Dataset, Holdout
from pipeline.dataset.manifest import reading_store, writing_store
from pipeline.errors import JobError, UsageError, counted
from pipeline.models.checkpoint import SUFFIX, is_trained_here, read_metadata
from pipeline.models.identity import PredictConfig, chosen_folder
from pipeline.models.registry import check_model
from pipeline.runtime.lock import DATASET_LOCK, locked, removed_if_refused
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import duration
from pipeline.storage.store import WORK_FOLDER, Store
from pipeline.training.loop import LOG, MODEL, STATE, read_state_file, train
from pipeline.training.network import check_architecture
from pipeline.training.probe_fit import MODELS, Backbone, ProbePlan, fit_variant, probe_file
from pipeline.training.train_plan import TrainPlan, check_variant, choose_splits, describe_penalty

_MAX_WORKERS = 16
_NETWORK_FLAGS = (
    *("pretrained", "epochs", "batch_size", "lr", "weight_decay"),
    *("eval_split", "precision", "workers", "overwrite"),
)
"""Flags of `in9 train` that only the training of whole networks uses."""


def run_train(arguments: argparse.Namespace) -> int:
    """Runs `in9 train`.

    Args:
      arguments: the parsed arguments.

    Returns:
      The exit code.

    Raises:
      UsageError: wrong usage or unreadable input.
      ModelError, JobError: the training failed, or the network cannot be loaded.
    """
    entry = _fit_probe(arguments) if arguments.probe else _train_network(arguments)
    holdout = f" --holdout {arguments.holdout:g}" if arguments.holdout else ""
    print(f"to evaluate: in9 evaluate --dataset {arguments.dataset} --models {entry}{holdout}")
    return 0


def choose_device(arguments: argparse.Namespace) -> tuple[str, str]:
    """Returns (device, precision); `auto` becomes the best choice for this machine.

    Raises:
      UsageError: the flags ask for a GPU that is not there, or for a precision that the device
        lacks.
    """
    check_device(arguments, "train")
    device = PredictConfig(arguments.device).on_this_machine().device
    precision = arguments.precision
    if precision == "auto":
        # Older GPUs emulate bfloat16, which is slow.
        has_bf16 = device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "fp32" if device == "cpu" else "bf16" if has_bf16 else "fp16"
    if precision == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 needs a GPU; on a CPU, choose fp32, tf32 or bf16")
    return device, precision


def refuse_network_flags(arguments: argparse.Namespace, names: Collection[str]) -> None:
    """Refuses flags of `train --probe` or `matrix --probe` that a probe would ignore.

    Args:
      arguments: the parsed arguments.
      names: names of the flags that only the training of whole networks uses.

    Raises:
      UsageError: such a flag has another value than its default.
    """
    for flag in flags_of(arguments.command):
        if flag.dest in names and getattr(arguments, flag.dest) != flag.default:
            raise UsageError(
                f"{flag.name} is for training whole networks; leave out {flag.name} or --probe"
            )


def refuse_foreign(store: Store, names: Sequence[str], is_ours: Callable[[], bool]) -> None:
    """Refuses a folder for trained models that holds a foreign file under a name that is needed.

    Args:
      store: the folder.
      names: names of the files that will be written.
      is_ours: returns whether the existing ones were written by an earlier training.

    Raises:
      UsageError: they were not, or the folder is a file.
    """
    store.refuse_file("--output")
    if (existing := [name for name in names if store.exists(name)]) and not is_ours():
        raise UsageError(
            f"--output {store.root} holds {existing[0]}, which was not trained here; choose "
            "another folder"
        )


def default_workers(device: str) -> int:
    """Returns how many processes load pictures.

    On a CPU it is one, because these processes take cores from the network.
    """
    return 1 if device == "cpu" else min(_MAX_WORKERS, usable_cores())


def _fit_probe(arguments: argparse.Namespace) -> str:
    """Fits a linear probe; returns the entry of `--models` that evaluates it."""
    refuse_network_flags(arguments, _NETWORK_FLAGS)
    # Opened for writing, because features are cached in the dataset's work folder.
    dataset = Dataset.open(writing_store("dataset", arguments.dataset))
    check_variant(dataset, arguments.variant)
    split, _ = choose_splits(dataset, arguments.train_split, None, arguments.holdout)
    device, _ = choose_device(arguments)
    weights = chosen_folder(arguments.weights)
    check_model(arguments.arch, weights, needs_network=True)
    name = f"{arguments.variant}{SUFFIX}"
    output = writing_store("output", arguments.output) if arguments.output else None
    if output is not None:
        path = output.path(name)
        refuse_foreign(output, (name,), lambda: is_trained_here(path))
    torch.set_num_threads(usable_cores())
    started = time.monotonic()
    backbone = Backbone(arguments.arch, PredictConfig(device), dataset.store, weights)
    plan = ProbePlan(dataset, arguments.variant, split, Holdout(arguments.holdout), arguments.seed)
    if output is None:
        folder, _, name = probe_file(backbone, plan).rpartition("/")
        output = dataset.store.below(folder)
    with removed_if_refused(output), locked(output, DATASET_LOCK) as fenced:
        checkpoint = fit_variant(backbone, plan, fenced, name)
    output.prune(WORK_FOLDER)
    if trained := read_metadata(checkpoint):
        print(
            f"{counted(len(trained.keys), 'picture')} of {arguments.variant} in {split}; "
            f"penalty {describe_penalty(trained.settings['penalty'])}; "
            f"time: {duration(time.monotonic() - started)}"
        )
    return f"{backbone.architecture}={checkpoint}"


def plan_from_flags(
    arguments: argparse.Namespace, *, arch: str, train_split: str, eval_split: str | None
) -> TrainPlan:
    """Makes the plan of a training from flags.

    Args:
      arguments: the parsed arguments of `train` or `matrix`.
      arch: see `TrainPlan`.
      train_split: see `TrainPlan`.
      eval_split: see `TrainPlan`.

    Raises:
      UsageError: a flag is wrong.
    """
    device, precision = choose_device(arguments)
    told = {
        "arch": arch,
        "device": device,
        "precision": precision,
        "weights": chosen_folder(arguments.weights),
        "train_split": train_split,
        "eval_split": eval_split,
        "workers": default_workers(device) if arguments.workers is None else arguments.workers,
    }
    fields = {field.name for field in dataclasses.fields(TrainPlan)} & set(vars(arguments))
    return TrainPlan(**{name: getattr(arguments, name) for name in fields} | told)


def _holds_training(store: Store) -> bool:
    """Returns whether a folder holds the model or the state of a training."""
    if store.exists(MODEL) and is_trained_here(store.path(MODEL)):
        return True
    with contextlib.suppress(JobError):
        return read_state_file(store) is not None
    return False


def _train_network(arguments: argparse.Namespace) -> str:
    """Trains a network; returns the entry of `--models` that evaluates it."""
    folder = arguments.dataset
    dataset = Dataset.open(
        reading_store(folder) if arguments.output else writing_store("dataset", folder)
    )
    check_architecture(
        arguments.arch, pretrained=arguments.pretrained, weights=chosen_folder(arguments.weights)
    )
    check_variant(dataset, arguments.variant)
    train_split, eval_split = choose_splits(
        dataset, arguments.train_split, arguments.eval_split, arguments.holdout
    )
    plan = plan_from_flags(
        arguments, arch=arguments.arch, train_split=train_split, eval_split=eval_split
    )
    store = writing_store("output", arguments.output or dataset.store.path(f"{MODELS}/{plan.name}"))
    refuse_foreign(store, (MODEL, STATE, LOG), lambda: _holds_training(store))
    started = time.monotonic()
    with removed_if_refused(store), locked(store, DATASET_LOCK) as fenced:
        result = train(dataset, plan, fenced, overwrite=arguments.overwrite)
    store.prune(WORK_FOLDER)
    if not result.is_new:
        print(f"nothing to do: all {plan.epochs} epochs have been trained")
    else:
        print(f"time: {duration(time.monotonic() - started)}; log: {store.path(LOG)}")
    return result.entry
