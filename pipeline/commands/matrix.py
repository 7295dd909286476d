"""`in9 matrix`: trains and tests the rows of the train x test matrix, and prints the matrix."""

import argparse
import time
from collections.abc import Iterator, Sequence

import torch

from pipeline.analyses.matrix.parts import describe_gaps, matrix_table
from pipeline.analyses.matrix.rows import (
    MatrixPlan,
    NetworkTrainer,
    ProbeTrainer,
    Trainer,
    make_matrices,
    make_plan,
)
from pipeline.commands.command_line import flags_as
from pipeline.commands.train import choose_device, plan_from_flags, refuse_network_flags
from pipeline.dataset.card import notes_of
from pipeline.dataset.folder import Dataset, open_named
from pipeline.dataset.manifest import writing_store
from pipeline.display.table import describe_chance
from pipeline.jobs.publish import check_publishing, describe_published, publish
from pipeline.models.expand import DEFAULT_MODEL
from pipeline.models.identity import PredictConfig, chosen_folder
from pipeline.models.registry import check_model
from pipeline.report.write import REPORT, gather, write_report
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import duration
from pipeline.training.network import check_architecture
from pipeline.training.probe_fit import Backbone
from pipeline.training.train_plan import TrainingFlags

_QUESTIONS = (1, 4)
"""Sections of the source whose questions a matrix answers."""
_NETWORK_FLAGS = ("epochs", "batch_size", "lr", "precision", "workers", "overwrite")
"""Flags of `in9 matrix` that only the training of whole networks uses. `--pretrained` is not one,
because a probe always starts from such weights."""


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
    if flags.probe:
        refuse_network_flags(arguments, _NETWORK_FLAGS)
    store = writing_store("dataset", flags.dataset)
    publishing = check_publishing(store, flags.publish, flags.keep)
    dataset = Dataset.open(store)
    device, _ = choose_device(flags)
    weights = chosen_folder(flags.weights)
    plan = make_plan(
        dataset,
        open_named("--in9l", flags.in9l) if flags.in9l else None,
        variants=flags.variants,
        train_split=flags.train_split,
        split=flags.eval_split,
        share=flags.holdout,
        predict=PredictConfig(device),
        seed=flags.seed,
        allow_overlap=flags.allow_overlap,
    )
    names = flags.arch or (DEFAULT_MODEL if flags.probe else "resnet50",)
    for name in names:
        if flags.probe:
            check_model(name, weights, needs_network=True)
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
        chance = describe_chance(row.chance for row in matrix.rows if row.n)
        for line in filter(None, (chance, describe_gaps(matrix))):
            print(line)
    # Imported here, because the templates and Matplotlib are slow to import.
    from pipeline.report.page import check_claims

    for checked in check_claims(gather(dataset, dataset.taxonomy)):
        if checked.claim.section in _QUESTIONS and checked.findings:
            print(f"{checked.summary}: {checked.claim.text}")
    if num_tested:
        of = f"{num_tested} of {len(matrices) * len(plan.names)}"
        print(f"rows tested: {of}; time: {duration(time.monotonic() - started)}")
    else:
        print("nothing to do: every row has been tested")
    write_report(store, dataset.taxonomy, flags.pictures)
    print(f"report: {store.path(REPORT)}")
    if publishing:
        print(describe_published(publishing.target, publish(publishing)))
    return 0


def _trainers(plan: MatrixPlan, names: Sequence[str], flags: MatrixFlags) -> Iterator[Trainer]:
    # A generator, so that only one network is in memory at a time.
    for name in names:
        if flags.probe:
            weights = chosen_folder(flags.weights)
            yield ProbeTrainer(Backbone(name, plan.predict, plan.dataset.store, weights), plan)
        else:
            training = plan_from_flags(
                flags, arch=name, train_split=plan.train_split, eval_split=None
            )
            yield NetworkTrainer(plan, training, overwrite=flags.overwrite)
