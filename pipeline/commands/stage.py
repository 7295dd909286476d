"""`in9 attack` and `in9 saliency`: one stage on a finished dataset, from flags to closing words."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable, Sequence

import apache_beam as beam

from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import writing_store
from pipeline.evaluate.plan import Evaluation
from pipeline.jobs.closing_words import describe_dataset
from pipeline.jobs.last_run import End, Ending, say_summary
from pipeline.jobs.publish import check_publishing, describe_published
from pipeline.jobs.publish_step import Publish
from pipeline.report import REPORT
from pipeline.report.stage import WriteResults
from pipeline.runners.dataflow_submission import flags_of_workers, submission_from_flags
from pipeline.runners.run import pipeline_options, run_pipeline
from pipeline.storage.store import Store


@dataclasses.dataclass(frozen=True)
class StageJob:
    """What a command runs.

    Attributes:
      stage: the dataset's fingerprint -> the same, one element.
      evaluation: which models the stage is run with.
      say: prints what is now known of these entries of `--models`.
    """

    stage: beam.PTransform
    evaluation: Evaluation
    say: Callable[[Store, Sequence[str]], None]


def run_stage(
    arguments: argparse.Namespace,
    rest: list[str],
    plan: Callable[[argparse.Namespace, Dataset], StageJob],
) -> int:
    """Runs a stage, writes the report, publishes both, and says what was done.

    Args:
      arguments: of `build_parser`.
      rest: what it did not know, for Beam.
      plan: checks the flags against the dataset.

    Returns:
      The exit code.

    Raises:
      UsageError: wrong usage or unreadable input.
      JobError: the job failed, or every model did.
    """
    options = pipeline_options(rest)
    submission = submission_from_flags(arguments, options)
    arguments = flags_of_workers(arguments, submission)
    store = writing_store("dataset", arguments.dataset)
    publishing = check_publishing(store, arguments.publish, arguments.keep)
    dataset = Dataset.open(store)
    job = plan(arguments, dataset)
    ending = Ending(
        arguments.command,
        store,
        job.evaluation.progress,
        dataset.manifest.fingerprint,
        alone=submission is not None and not submission.waits,
    )
    pipeline = beam.Pipeline(options=options)
    fingerprint = pipeline | "Dataset" >> beam.Create([ending.before])
    writer = WriteResults(store, dataset.taxonomy, arguments.pictures, has_run_models=True)
    done = fingerprint | job.stage | "Report" >> beam.ParDo(writer).with_output_types(str)
    if publishing:
        done = done | "Publish" >> beam.ParDo(Publish(publishing)).with_output_types(str)
    _ = done | "End" >> beam.ParDo(End(ending)).with_output_types(str)
    started = time.monotonic()
    log = store.log(f"{arguments.command}-{os.getpid()}")
    counters = run_pipeline(pipeline, ending.progress, log, submission)
    # Nobody waits for it.
    if counters is None:
        return 0
    seconds = time.monotonic() - started
    print(describe_dataset(Dataset.open(store).manifest, counters, seconds))
    job.say(store, job.evaluation.models)
    print(f"report: {store.path(REPORT)}")
    if publishing:
        print(describe_published(publishing.place, bool(counters.get("versions_published"))))
    say_summary(store)
    return 0
