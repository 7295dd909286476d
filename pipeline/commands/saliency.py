"""`in9 saliency` and `run --saliency`: from flags to the stage, and what is said of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.analyses.saliency.plan import SaliencyPlan, check_variants, shown_images
from pipeline.analyses.saliency.results import read_saliency
from pipeline.analyses.saliency.stage import Saliency
from pipeline.commands.evaluation_flags import evaluation_of_stored
from pipeline.commands.stage import StageJob, run_stage
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.failures import read_failures, say_failures
from pipeline.report.text_tables import saliency_table
from pipeline.storage.store import Store


def saliency_from_flags(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig
) -> SaliencyPlan:
    """Checks the flags of saliency, or of run with --saliency; arguments and errors as
    `evaluation_from_flags`."""
    evaluation = evaluation_of_stored(
        arguments, store, config, "saliency is of the stored pixels, as they are"
    )
    if arguments.command == "run":
        plan = SaliencyPlan(evaluation, maps=arguments.saliency)
    else:
        plan = SaliencyPlan(evaluation, arguments.variant, arguments.maps)
    check_variants(config.compose.composed, plan.variant)
    return plan


def run_saliency(arguments: argparse.Namespace, rest: list[str]) -> int:
    """The command `saliency`; arguments, exit code and errors as `run_stage`."""
    return run_stage(arguments, rest, _plan)


def _plan(arguments: argparse.Namespace, dataset: Dataset) -> StageJob:
    plan = saliency_from_flags(arguments, dataset.store, dataset.manifest.config)
    # Images may be missing, too.
    shown_images(dataset, plan)
    return StageJob(Saliency(plan, dataset.taxonomy), plan.evaluation, say_saliency)


def say_saliency(store: Store, models: Sequence[str]) -> None:
    """The closing words of a job that explained these entries of `--models`.

    Raises:
      JobError: none of them could be explained.
    """
    dataset = Dataset.open(store).manifest.fingerprint
    print(saliency_table(read_saliency(store, dataset)))
    say_failures(read_failures(store, dataset, "saliency")[0], models, "no saliency")
