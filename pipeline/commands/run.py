"""`in9 run`, `generate` and `evaluate`: check flags, build one graph, run it, say what came out."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from typing import TYPE_CHECKING, Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions

from pipeline.analyses.imagenet.folder import check_imagenet
from pipeline.analyses.imagenet.results import describe_imagenet
from pipeline.commands.job_flags import job_from_flags, remember_input
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import writing_store
from pipeline.dataset.manifest import read_manifest
from pipeline.errors import JobError, UsageError
from pipeline.evaluate.failures import read_failures, say_failures
from pipeline.evaluate.power import describe_power
from pipeline.evaluate.results import read_summaries
from pipeline.generate.own_variants import own_names
from pipeline.jobs.closing_words import describe_dataset
from pipeline.jobs.dry_run.report import dry_run
from pipeline.jobs.fail_if import Condition, judge, parse_conditions
from pipeline.jobs.last_run import Ending, say_summary
from pipeline.jobs.main_job import MainJob
from pipeline.jobs.publish import check_publishing, describe_published
from pipeline.jobs.start import TakeLock, manifest_state
from pipeline.report import REPORT
from pipeline.report.text_tables import accuracy_table
from pipeline.runners.dataflow_submission import flags_of_workers, submission_from_flags
from pipeline.runners.run import pipeline_options, run_pipeline
from pipeline.runtime.lock import DATASET_LOCK, held
from pipeline.runtime.progress import Progress
from pipeline.storage.files import absolute
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from pipeline.analyses.attack.plan import Attacking
    from pipeline.analyses.saliency.plan import SaliencyPlan
    from pipeline.evaluate.plan import Evaluation


def run_main(arguments: argparse.Namespace, rest: list[str]) -> int:
    """The commands `run`, `generate` and `evaluate`; arguments and errors as `run_command`."""
    if getattr(arguments, "dry_run", False):
        return _dry_run(arguments, rest)
    options = pipeline_options(rest)
    submission = submission_from_flags(arguments, options)
    arguments = flags_of_workers(arguments, submission)
    generates = arguments.command in ("run", "generate")
    if generates:
        own = own_names(arguments.variants)
        parse_conditions(getattr(arguments, "fail_if", None), own=own)
    evaluates = arguments.command in ("run", "evaluate")
    flag = "output" if generates else "dataset"
    store = writing_store(flag, getattr(arguments, flag))
    publishing = check_publishing(store, arguments.publish, arguments.keep)
    # Checked before the lock, which needs a folder to lie in, and again under it: the dataset may
    # have changed in between.
    if generates:
        config = job_from_flags(arguments, store).config
    else:
        config = Dataset.open(store).manifest.config
    evaluation = _evaluation(arguments, store, config) if evaluates else None
    conditions = parse_conditions(getattr(arguments, "fail_if", None), config.compose.composed)
    attacking = _attacking(arguments, store, config) if evaluates else None
    explaining = _explaining(arguments, store, config) if evaluates else None
    with contextlib.ExitStack() as stack:
        job = None
        if generates:
            remember_input(arguments, store)
            if submission is None:
                stack.enter_context(held(store, DATASET_LOCK))
                # Before the job needs the room.
                store.remove_temporary()
            seen = manifest_state(store)
            job = job_from_flags(arguments, store)
            manifest = read_manifest(store)
        else:
            manifest = Dataset.open(store).manifest
        taxonomy = job.taxonomy if job else Dataset.open(store).taxonomy
        ending = Ending(
            command=arguments.command,
            store=store,
            progress=Progress.of(store),
            before=manifest.fingerprint if manifest else None,
            evaluation=evaluation,
            conditions=conditions,
            owner=submission.owner if submission and job else None,
            alone=submission is not None and not submission.waits,
        )
        pipeline = beam.Pipeline(options=options)
        start = pipeline | "Start" >> beam.Create([None], reshuffle=False)
        MainJob(
            ending,
            taxonomy,
            arguments.pictures,
            lock=TakeLock(store, submission.owner, seen) if submission and job else None,
            publishing=publishing,
            job=job,
            imagenet=absolute(arguments.imagenet) if evaluates and arguments.imagenet else None,
            attacking=attacking,
            explaining=explaining,
        ).build(start)
        # Several processes may evaluate at once; the next writer replaces the last one's log.
        name = arguments.command if generates else f"evaluate-{os.getpid()}"
        log = store.log(name)
        started = time.monotonic()
        counters = run_pipeline(pipeline, ending.progress, log, submission)
        if counters is None:
            return 0
        seconds = time.monotonic() - started
    models = evaluation.models if evaluation else ()
    details = f" (details: {log})" if os.path.exists(log) else ""
    summaries = _say(store, counters, seconds, models, details)
    if publishing:
        print(describe_published(publishing.place, bool(counters.get("versions_published"))))
    if evaluation and arguments.imagenet:
        fingerprint = Dataset.open(store).manifest.fingerprint
        print(describe_imagenet(store, fingerprint, summaries, models))
    if attacking:
        from pipeline.commands.attack import say_attacks

        say_attacks(store, attacking.evaluation.models)
    if explaining:
        from pipeline.commands.saliency import say_saliency

        say_saliency(store, explaining.evaluation.models)
    say_summary(store)
    return _judge(conditions, store, summaries, evaluation) if evaluation else 0


def _dry_run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """run and generate with --dry_run."""
    workers = pipeline_options(rest).view_as(DirectOptions).direct_num_workers
    store = writing_store("output", arguments.output)
    check_publishing(store, arguments.publish, arguments.keep)
    job = job_from_flags(arguments, store)
    evaluation = attacking = None
    if arguments.command == "run":
        evaluation = _evaluation(arguments, store, job.config)
        parse_conditions(arguments.fail_if, job.config.compose.composed)
        attacking = _attacking(arguments, store, job.config)
        _explaining(arguments, store, job.config)
    dry_run(job, evaluation, job.taxonomy, workers, attacking)
    return 0


def _evaluation(arguments: argparse.Namespace, store: Store, config: DatasetConfig) -> Evaluation:
    """The inference stage. Only commands that evaluate wait for torch."""
    from pipeline.commands.evaluation_flags import evaluation_from_flags

    if arguments.imagenet:
        if config.taxonomy is not None:
            raise UsageError(
                "--imagenet is for the trend of ImageNet-9; this dataset has a taxonomy of its own"
            )
        check_imagenet(arguments.imagenet)
    return evaluation_from_flags(arguments, store, config)


def _attacking(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig
) -> Attacking | None:
    """The attack of the main job, None without --attack."""
    if getattr(arguments, "attack", None) is None:
        return None
    from pipeline.commands.attack import attacking_from_flags

    return attacking_from_flags(arguments, store, config)


def _explaining(
    arguments: argparse.Namespace, store: Store, config: DatasetConfig
) -> SaliencyPlan | None:
    """The saliency of the main job, None without --saliency."""
    if getattr(arguments, "saliency", None) is None:
        return None
    from pipeline.commands.saliency import saliency_from_flags

    return saliency_from_flags(arguments, store, config)


def _judge(
    conditions: tuple[Condition, ...],
    store: Store,
    summaries: list[dict[str, Any]],
    evaluation: Evaluation,
) -> int:
    """The exit code by `--fail_if`, with a line for each model and condition.

    Raises:
      JobError: none holds, but some could not be tested.
    """
    failed, _ = read_failures(store, Dataset.open(store).manifest.fingerprint, "evaluate")
    verdicts = list(judge(conditions, summaries, failed, evaluation.models, evaluation.how))
    for verdict in verdicts:
        if verdict.holds is not None:
            print(verdict.line, file=sys.stderr if verdict.holds else sys.stdout)
    if any(verdict.holds for verdict in verdicts):
        return 3
    untested = [verdict.line for verdict in verdicts if verdict.holds is None]
    if untested:
        raise JobError("; ".join(untested))
    return 0


def _say(
    store: Store,
    counters: dict[str, int],
    seconds: float,
    models: tuple[str, ...],
    details: str,
) -> list[dict[str, Any]]:
    """The closing words of a job that evaluated these entries of `--models`, if any; returns
    all models' summaries. `details` says where the tracebacks of those that failed are.

    Raises:
      JobError: none of them could be evaluated.
    """
    dataset = Dataset.open(store)
    print(describe_dataset(dataset.manifest, counters, seconds))
    summaries, stale = read_summaries(store, dataset.manifest.fingerprint)
    failed, failed_before = read_failures(store, dataset.manifest.fingerprint, "evaluate")
    stale += failed_before
    if models:
        print("\n".join([accuracy_table(summaries), *describe_power(summaries)]))
    if stale:
        print(f"of an earlier dataset, so not in the tables: {', '.join(stale)}")
    if models:
        print(f"report: {store.path(REPORT)}")
    if counters.get("models_failed"):
        say_failures(failed, models, "not evaluated", details)
    return summaries
