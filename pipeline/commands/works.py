"""Turns flags into `Work`s, each of which runs models: evaluation, ImageNet, attack and
saliency."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.analyses.attack.attack_results import read_attacks
from pipeline.analyses.attack.attack_work import AttackWork
from pipeline.analyses.attack.grid import AttackPlan, check_attack_variants, open_grid
from pipeline.analyses.imagenet.imagenet_folder import check_imagenet
from pipeline.analyses.imagenet.imagenet_results import describe_imagenet
from pipeline.analyses.imagenet.imagenet_work import ImageNetWork
from pipeline.analyses.saliency.saliency_results import read_saliency
from pipeline.analyses.saliency.saliency_work import (
    SaliencyPlan,
    SaliencyWork,
    check_saliency_variants,
    shown_images,
)
from pipeline.commands.evaluation_flags import check_stored, evaluation_from_flags
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.errors import UsageError
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.evaluation_work import EvaluationWork
from pipeline.evaluate.failures import read_failures
from pipeline.evaluate.work import Work
from pipeline.report.text_tables import attack_table, saliency_table
from pipeline.storage.files import absolute
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy


def works_from_flags(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig, taxonomy: Taxonomy
) -> tuple[Work, ...]:
    """Makes the works from flags, which are checked against each other and the dataset.

    Args:
      arguments: the parsed arguments of a command of the main job.
      store: the dataset folder.
      config: the dataset's configuration.
      taxonomy: the dataset's taxonomy.

    Returns:
      The works in order; none for `generate`.

    Raises:
      UsageError: a flag is wrong.
    """
    command = arguments.command
    if command == "generate":
        return ()
    evaluation = evaluation_from_flags(arguments, store, config, taxonomy)
    works: list[Work] = []
    if command in ("run", "evaluate"):
        works.append(EvaluationWork(evaluation, taxonomy))
        if arguments.imagenet:
            if config.taxonomy is not None:
                raise UsageError(
                    "--imagenet is for the trend of ImageNet-9, but this dataset has another "
                    "taxonomy; leave it out"
                )
            check_imagenet(arguments.imagenet)
            works.append(ImageNetWork(evaluation, absolute(arguments.imagenet), taxonomy))
    attack = _attack_plan(arguments, evaluation)
    if attack:
        check_stored(evaluation, "an attack composes stored pixels and feeds them as they are")
        check_attack_variants(config.compose.variants)
        if command == "attack":
            # Opening the grid also checks that the dataset has images for it.
            open_grid(Dataset.open(store), attack)
        works.append(AttackWork(attack, taxonomy))
    plan = _saliency_plan(arguments, evaluation)
    if plan:
        check_stored(evaluation, "saliency is measured on stored pixels as they are")
        check_saliency_variants(config.compose.composed, plan.variant)
        if command == "saliency":
            shown_images(Dataset.open(store), plan)
        works.append(SaliencyWork(plan, taxonomy))
    return tuple(works)


def _attack_plan(arguments: argparse.Namespace, evaluation: Evaluation) -> AttackPlan | None:
    """Returns the attack that `in9 attack` or `--attack` asks for; None if no attack is wanted."""
    if arguments.command == "attack":
        foregrounds, backgrounds = arguments.grid
        return AttackPlan(evaluation, foregrounds, backgrounds, arguments.early_stop)
    grid = getattr(arguments, "attack", None)
    return AttackPlan(evaluation, *grid) if grid is not None else None


def _saliency_plan(arguments: argparse.Namespace, evaluation: Evaluation) -> SaliencyPlan | None:
    """Returns the plan of `in9 saliency` or `--saliency`; None if no saliency is wanted."""
    if arguments.command == "saliency":
        return SaliencyPlan(evaluation, arguments.variant, arguments.maps)
    maps = getattr(arguments, "saliency", None)
    return SaliencyPlan(evaluation, num_maps=maps) if maps is not None else None


def print_analyses(
    dataset: Dataset, works: Sequence[Work], summaries: Sequence[Mapping[str, Any]]
) -> None:
    """Prints the results of the analyses that a job has run, for all models so far.

    Args:
      dataset: the dataset after the job.
      works: works of the job.
      summaries: summaries of all models.
    """
    fingerprint = dataset.manifest.fingerprint
    for work in works:
        if work.stage == "imagenet":
            entries = work.evaluation.entries
            print(describe_imagenet(dataset.store, fingerprint, summaries, entries))
        elif work.stage == "attack":
            attacks, stale = read_attacks(dataset)
            stale += read_failures(dataset.store, fingerprint, "attack")[1]
            print(attack_table(attacks))
            if stale:
                print(
                    f"not in the tables, because attacked on an earlier dataset: {', '.join(stale)}"
                )
        elif work.stage == "saliency":
            print(saliency_table(read_saliency(dataset)))
