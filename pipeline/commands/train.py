"""`in9 train` and `in9 matrix`: train networks, or with `--probe` linear probes, on variants.

`train` trains one on a variant. `matrix` trains one on each variant, tests it on all of them, and
prints the train x test matrix.
"""

import argparse
import contextlib
import shlex
import time
from collections.abc import Iterator, Sequence

import torch

from pipeline.analyses.matrix.parts import matrix_table
from pipeline.analyses.matrix.rows import (
    MatrixPlan,
    NetworkTrainer,
    ProbeTrainer,
    Trainer,
    make_matrices,
    make_plan,
)
from pipeline.commands.command_line import check_device, flags_as
from pipeline.commands.flags import flags_of
from pipeline.dataset.card import notes_of
from pipeline.dataset.folder import Dataset, open_named
from pipeline.dataset.manifest import reading_store, writing_store
from pipeline.errors import TO_EVALUATE, JobError, UsageError, counted
from pipeline.evaluate.features import HeadPlan
from pipeline.jobs.publish import check_publishing, describe_published, publish
from pipeline.models.checkpoint import MODELS, PROBE, SUFFIX, is_trained_here, read_metadata
from pipeline.models.expand import DEFAULT_MODEL
from pipeline.models.identity import PredictConfig, chosen_folder
from pipeline.models.registry import check_model
from pipeline.report.write import describe_report, write_report
from pipeline.runtime.lock import DATASET_LOCK, locked, removed_if_refused
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import duration
from pipeline.storage.files import join
from pipeline.storage.store import WORK_FOLDER, Store
from pipeline.training.loop import LOG, MODEL, STATE, read_resumed, read_state_file, train
from pipeline.training.network import check_architecture
from pipeline.training.probe_fit import Encoder
from pipeline.training.train_plan import (
    TrainingFlags,
    TrainPlan,
    check_variant,
    choose_splits,
    describe_penalty,
)

_MAX_WORKERS = 16
_OF_NETWORKS = ("epochs", "batch_size", "lr", "seeds", "precision", "workers", "overwrite")
_NETWORK_FLAGS = {
    "train": {*_OF_NETWORKS, "pretrained", "weight_decay", "eval_split"},
    "matrix": {*_OF_NETWORKS},
}
"""Flags of each command that only the training of whole networks uses. `matrix` takes
`--pretrained` with a probe, too, because a probe always starts from such weights."""


class TrainFlags(TrainingFlags, frozen=True, kw_only=True):
    """Flags of `in9 train`."""

    dataset: str
    output: str | None
    arch: str
    probe: bool
    train_split: str | None
    eval_split: str | None
    overwrite: bool


def run_train(arguments: argparse.Namespace) -> int:
    """Runs `in9 train`; returns the exit code."""
    flags = flags_as(TrainFlags, arguments)
    _refuse_network_flags(arguments)
    # A probe caches features in the dataset's work folder.
    is_written = flags.probe or not flags.output
    dataset = Dataset.open(
        writing_store("dataset", flags.dataset) if is_written else reading_store(flags.dataset)
    )
    check_variant(dataset, flags.variant)
    splits = choose_splits(dataset, flags.train_split, flags.eval_split, flags.holdout)
    models = (_fit_probe if flags.probe else _train_networks)(flags, dataset, *splits)
    words = ["in9", "evaluate", "--dataset", arguments.dataset, "--models", models]
    words += ["--holdout", f"{flags.holdout:g}"] if flags.holdout else []
    print(f"{TO_EVALUATE}{shlex.join(words)}")
    return 0


def choose_device(flags: TrainingFlags) -> tuple[str, str]:
    """Returns (device, precision); `auto` becomes the best choice for this machine.

    Raises UsageError if the flags ask for a GPU that is missing, or for a precision that the device
    lacks.
    """
    check_device(flags.device, "train")
    device, precision = (
        PredictConfig(flags.device).on_this_machine().device,
        flags.precision,
    )
    if precision == "auto":
        # Older GPUs emulate bfloat16, which is slow.
        has_bf16 = device != "cpu" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "fp32" if device == "cpu" else "bf16" if has_bf16 else "fp16"
    if precision == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 needs a GPU; on a CPU, choose fp32, tf32 or bf16")
    return device, precision


def _refuse_network_flags(arguments: argparse.Namespace) -> None:
    """Refuses flags that a probe would ignore if `--probe` is given."""
    names = _NETWORK_FLAGS[arguments.command] if arguments.probe else ()
    for flag in flags_of(arguments.command):
        if flag.dest in names and getattr(arguments, flag.dest) != flag.default:
            raise UsageError(
                f"{flag.name} is for training whole networks; leave out {flag.name} or --probe"
            )


@contextlib.contextmanager
def _locked_folder(
    output: str | None, dataset: Dataset, default: str, names: Sequence[str]
) -> Iterator[Store]:
    """Yields the folder to train in: `--output`, or a default folder in that of the dataset.

    Raises UsageError if it is a file, or has a file under one of the names that are written, and no
    earlier training wrote it.
    """
    store = writing_store("output", output) if output else dataset.store.below(default)
    store.refuse_file("--output")
    existing = [name for name in names if store.exists(name)]
    is_ours = any(is_trained_here(store.path(one)) for one in existing if one.endswith(SUFFIX))
    with contextlib.suppress(JobError):
        is_ours = is_ours or (STATE in existing and read_state_file(store) is not None)
    if existing and not is_ours:
        raise UsageError(
            f"--output {store.root} holds {existing[0]}, which was not trained here; choose "
            "another folder"
        )
    with removed_if_refused(store), locked(store, DATASET_LOCK) as fenced:
        yield fenced
    store.prune(WORK_FOLDER)


def default_workers(device: str) -> int:
    """Returns how many processes load pictures; on a CPU one, as they share the network's cores."""
    return 1 if device == "cpu" else min(_MAX_WORKERS, usable_cores())


def _fit_probe(flags: TrainFlags, dataset: Dataset, split: str, _: str | None) -> str:
    """Fits a linear probe; returns the entry of `--models` that evaluates it."""
    device, weights = choose_device(flags)[0], chosen_folder(flags.weights)
    check_model(PROBE + flags.arch, weights)
    torch.set_num_threads(usable_cores())
    started = time.monotonic()
    encoder = Encoder(flags.arch, PredictConfig(device), dataset.store, weights)
    plan = HeadPlan(dataset, flags.variant, split, flags.holdout)
    folder, _, name = encoder.path_of(plan).rpartition("/")
    with _locked_folder(flags.output, dataset, folder, [name]) as store:
        checkpoint = encoder.fit(plan, store, name)
    if trained := read_metadata(checkpoint):
        print(
            f"{counted(len(trained.keys), 'picture')} of {flags.variant} in {split}; "
            f"penalty {describe_penalty(trained.settings['penalty'])}; "
            f"time: {duration(time.monotonic() - started)}"
        )
    return f"{PROBE}{checkpoint}"


def plan_from_flags(
    flags: TrainingFlags, *, seed: int, arch: str, train_split: str, eval_split: str | None
) -> TrainPlan:
    """Makes the plan of a training from flags."""
    device, precision = choose_device(flags)
    return TrainPlan(
        variant=flags.variant,
        arch=arch,
        pretrained=flags.pretrained,
        epochs=flags.epochs,
        batch_size=flags.batch_size,
        lr=flags.lr,
        weight_decay=flags.weight_decay,
        seed=seed,
        train_split=train_split,
        eval_split=eval_split,
        holdout=flags.holdout,
        precision=precision,
        device=device,
        workers=default_workers(device) if flags.workers is None else flags.workers,
        weights=chosen_folder(flags.weights),
    )


def _train_networks(
    flags: TrainFlags, dataset: Dataset, train_split: str, eval_split: str | None
) -> str:
    """Trains a network with each seed; returns the value of `--models` that evaluates them."""
    stores, entries = {}, {}
    is_one = len(flags.seeds) == 1
    with contextlib.ExitStack() as locks:
        # All folders are checked before the first training, which may take days.
        for seed in flags.seeds:
            plan = plan_from_flags(
                flags, seed=seed, arch=flags.arch, train_split=train_split, eval_split=eval_split
            )
            check_architecture(plan.arch, pretrained=plan.pretrained, weights=plan.weights)
            root = flags.output if is_one or not flags.output else join(flags.output, f"seed{seed}")
            stores[plan] = locks.enter_context(
                _locked_folder(root, dataset, f"{MODELS}/{plan.name}", (MODEL, STATE, LOG))
            )
            read_resumed(dataset, plan, stores[plan], overwrite=flags.overwrite)
        for plan, store in stores.items():
            started = time.monotonic()
            entry, is_new = train(dataset, plan, store, overwrite=flags.overwrite)
            if not is_new:
                print(f"nothing to do: all {plan.epochs} epochs have been trained")
            else:
                print(f"time: {duration(time.monotonic() - started)}; log: {store.path(LOG)}")
            # Trainings whose labels differ behind # alone are a family.
            entries["#".join(plan.name.rsplit("-seed", 1))] = entry
    return entry if is_one else ",".join(f"{label}:={one}" for label, one in entries.items())


class MatrixFlags(TrainingFlags, frozen=True, kw_only=True):
    """Flags of `in9 matrix`."""

    dataset: str
    in9l: str | None
    variants: tuple[str, ...] | None
    arch: tuple[str, ...] | None
    probe: bool
    train_split: str | None
    eval_split: str | None
    allow_overlap: bool
    overwrite: bool
    publish: str | None
    keep: int | None
    pictures: str


def run_matrix(arguments: argparse.Namespace) -> int:
    """Runs `in9 matrix`; returns the exit code."""
    flags = flags_as(MatrixFlags, arguments)
    _refuse_network_flags(arguments)
    store = writing_store("dataset", flags.dataset)
    publishing = check_publishing(store, flags.publish, flags.keep)
    dataset = Dataset.open(store)
    weights, predict = chosen_folder(flags.weights), PredictConfig(choose_device(flags)[0])
    plan = make_plan(
        dataset,
        open_named("--in9l", flags.in9l) if flags.in9l else None,
        variants=flags.variants,
        train_split=flags.train_split,
        split=flags.eval_split,
        share=flags.holdout,
        predict=predict,
        allow_overlap=flags.allow_overlap,
    )
    names = flags.arch or (DEFAULT_MODEL if flags.probe else "resnet50",)
    for name in names:
        if flags.probe:
            check_model(PROBE + name, weights)
        else:
            check_architecture(name, pretrained=flags.pretrained, weights=weights)
    for note in notes_of(dataset.manifest):
        print(note)
    if plan.split != "val":
        print(f"tested on split {plan.split}")
    torch.set_num_threads(usable_cores())
    started = time.monotonic()
    matrices, num_tested = make_matrices(plan, _trainers(plan, names, flags))
    for matrix in matrices:
        print(matrix_table(matrix))
    if num_tested:
        print(
            f"rows tested: {num_tested} of {len(names) * len(flags.seeds) * len(plan.rows)}; "
            f"time: {duration(time.monotonic() - started)}"
        )
    else:
        print("nothing to do: every row has been tested")
    write_report(store, dataset.taxonomy, flags.pictures)
    print(describe_report(store))
    if publishing:
        print(describe_published(publishing.target, publish(publishing)))
    return 0


def _trainers(plan: MatrixPlan, names: Sequence[str], flags: MatrixFlags) -> Iterator[Trainer]:
    # A generator, so that only one network is in memory at a time.
    for name in names:
        if flags.probe:
            encoder = Encoder(name, plan.predict, plan.dataset.store, chosen_folder(flags.weights))
            yield ProbeTrainer(encoder, plan)
        else:
            for seed in flags.seeds:
                training = plan_from_flags(
                    flags, seed=seed, arch=name, train_split=plan.train_split, eval_split=None
                )
                yield NetworkTrainer(plan, training, overwrite=flags.overwrite)
