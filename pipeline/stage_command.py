"""Commands of one stage on a finished dataset: its graph, and the closing words they share."""

from __future__ import annotations

import os
import time

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.dataset import Dataset
from pipeline.progress import Progress
from pipeline.report import WriteReport
from pipeline.runner import run_pipeline
from pipeline.terminal import describe_dataset
from pipeline.versions import Publish, Versions
from transforms.taxonomy import imagenet9


def run_stage(
    name: str,
    stage: beam.PTransform,
    dataset: Dataset,
    *,
    options: PipelineOptions,
    progress: Progress,
    pictures: str,
    versions: Versions | None = None,
) -> None:
    """Runs a stage, writes the report, publishes both, and says what was done.

    Args:
      name: of the command.
      stage: the dataset's fingerprint -> the same, one element.
      dataset: to run it on.
      options: of Beam.
      progress: where its workers note what is done.
      pictures: as for `write_report`.
      versions: that the dataset belongs to, if it does.

    Raises:
      UsageError, JobError: as raised inside.
    """
    store = dataset.store
    pipeline = beam.Pipeline(options=options)
    fingerprint = pipeline | "Dataset" >> beam.Create([dataset.manifest.fingerprint])
    writer = WriteReport(store, imagenet9(), pictures)
    done = fingerprint | stage | "Report" >> beam.ParDo(writer).with_output_types(str)
    if versions:
        _ = done | "Publish" >> beam.ParDo(Publish(versions)).with_output_types(str)
    started = time.monotonic()
    log = store.log(f"{name}-{os.getpid()}")
    counters = run_pipeline(pipeline, progress, log)
    seconds = time.monotonic() - started
    print(describe_dataset(Dataset.open(store).manifest, counters, seconds))
