"""`in9 saliency` and `run --saliency`: from flags to the stage, and what is said of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pipeline.command_line.evaluation_flags import evaluation_from_flags
from pipeline.command_line.last_run import say_summary
from pipeline.command_line.stage_command import run_stage
from pipeline.command_line.versions import page_folder, results_store
from pipeline.dataflow.submission import flags_of_workers, submission_from_flags
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.errors import UsageError
from pipeline.report import REPORT
from pipeline.results.failures import say_failures
from pipeline.runner.run import pipeline_options
from pipeline.saliency.plan import SaliencyPlan, check_variants, shown_images
from pipeline.saliency.results import saliency_table, write_saliency_table
from pipeline.saliency.stage import Saliency
from pipeline.storage.lock import TABLES_LOCK, held
from pipeline.storage.store import Store


def saliency_from_flags(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig
) -> SaliencyPlan:
    """Checks the flags of saliency, or of run with --saliency.

    Args:
      arguments: of `build_parser`.
      store: of the dataset folder.
      config: of the dataset.

    Raises:
      UsageError: the first thing that is wrong.
    """
    evaluation = evaluation_from_flags(arguments, store, config)
    if evaluation.predict.eval_input != "stored":
        raise UsageError(
            "saliency is of the stored pixels, as they are; "
            f"leave --eval_input {evaluation.predict.eval_input} out"
        )
    if arguments.command == "run":
        plan = SaliencyPlan(evaluation, maps=arguments.saliency)
    else:
        plan = SaliencyPlan(
            evaluation,
            variant=arguments.variant,
            images=arguments.images,
            maps=arguments.maps,
            smoothgrad=arguments.smoothgrad,
        )
    check_variants(config.compose.composed, plan.variant)
    return plan


def run_saliency(arguments: argparse.Namespace, rest: list[str]) -> int:
    """The command `saliency`.

    Args:
      arguments: of `build_parser`.
      rest: what it did not know, for Beam.

    Returns:
      The exit code.

    Raises:
      UsageError: wrong usage or unreadable input.
      JobError: the job failed, or every model did.
    """
    options = pipeline_options(rest)
    submission = submission_from_flags(arguments, options)
    arguments = flags_of_workers(arguments, submission)
    store, versions = results_store(arguments.dataset)
    dataset = Dataset.open(store)
    plan = saliency_from_flags(arguments, store, dataset.manifest.config)
    # Images may be missing, too.
    shown_images(dataset, plan)
    done = run_stage(
        "saliency",
        Saliency(plan, dataset.taxonomy),
        dataset,
        options=options,
        progress=plan.evaluation.progress,
        pictures=arguments.pictures,
        submission=submission,
        versions=versions,
    )
    if not done:
        return 0
    say_saliency(store, plan.evaluation.models)
    print(f"report: {page_folder(store, versions).path(REPORT)}")
    say_summary(versions.output if versions else store)
    return 0


def say_saliency(store: Store, models: Sequence[str]) -> None:
    """The closing words of a job that explained these entries of `--models`.

    Raises:
      JobError: none of them could be explained.
    """
    with held(store, TABLES_LOCK, wait=60):
        found = write_saliency_table(store, Dataset.open(store).manifest.fingerprint)
    print(saliency_table(found))
    say_failures(found, models, "no saliency")
