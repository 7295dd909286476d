"""Commands of one stage on a finished dataset: its graph, and the closing words they share."""

from __future__ import annotations

import os
import time

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.command_line.last_run import End, Ending
from pipeline.command_line.terminal import describe_dataset
from pipeline.command_line.version_steps import Publish
from pipeline.dataflow.submission import Submission
from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import Versions
from pipeline.report.stage import WriteReport
from pipeline.runner.progress import Progress
from pipeline.runner.run import run_pipeline


def run_stage(
    name: str,
    stage: beam.PTransform,
    dataset: Dataset,
    *,
    options: PipelineOptions,
    progress: Progress,
    pictures: str,
    submission: Submission | None = None,
    versions: Versions | None = None,
) -> bool:
    """Runs a stage, writes the report, publishes both, and says what was done.

    Args:
      name: of the command.
      stage: the dataset's fingerprint -> the same, one element.
      dataset: to run it on.
      options: of Beam.
      progress: where its workers note what is done.
      pictures: as for `write_report`.
      submission: how it is submitted, None if it runs here.
      versions: that the dataset belongs to, if it does.

    Returns:
      Whether it is done: not if nobody waits for it.

    Raises:
      UsageError, JobError: as raised inside.
    """
    store = dataset.store
    pipeline = beam.Pipeline(options=options)
    before = dataset.manifest.fingerprint
    fingerprint = pipeline | "Dataset" >> beam.Create([before])
    writer = WriteReport(store, dataset.taxonomy, pictures)
    alone = submission is not None and not submission.waits
    output = versions.output if versions else store
    ending = Ending(name, store, output, progress, before, alone=alone)
    done = fingerprint | stage | "Report" >> beam.ParDo(writer).with_output_types(str)
    if versions:
        done = done | "Publish" >> beam.ParDo(Publish(versions)).with_output_types(str)
    _ = done | "End" >> beam.ParDo(End(ending)).with_output_types(str)
    started = time.monotonic()
    log = store.log(f"{name}-{os.getpid()}")
    counters = run_pipeline(pipeline, progress, log, submission)
    if counters is None:
        return False
    seconds = time.monotonic() - started
    print(describe_dataset(Dataset.open(store).manifest, counters, seconds))
    return True
