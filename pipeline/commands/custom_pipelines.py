"""`in9.Generate` and `in9.Evaluate`: the stages as transforms for custom Beam pipelines, configured
by the flags of the command line."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import apache_beam as beam

from pipeline.commands.command_line import flag_of, refuse_cleared, refuse_near_misses, text_of
from pipeline.commands.evaluation_flags import works_from_flags
from pipeline.commands.flags import AROUND_GRAPH, flags_of
from pipeline.commands.job_flags import job_from_flags
from pipeline.commands.parser import build_parser
from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import writing_store
from pipeline.dataset.manifest import read_manifest
from pipeline.errors import UsageError
from pipeline.jobs.main_job import JobSummary, MainJob, TakeLock, manifest_state
from pipeline.runners.beam_options import is_portable
from pipeline.runtime.dataflow_jobs import is_dataflow
from pipeline.runtime.lock import this_process, with_job_of_this_process, with_new_job
from pipeline.runtime.progress import Progress


class Generate(beam.PTransform):
    """Makes a dataset, or the missing part of it, and its tables.

    Input: the root of the pipeline, or one element that arrives when work may begin.
    Output: one text, the dataset's fingerprint.

    The job holds the dataset's lock in the name of this process.

    Args:
      output: the dataset's folder, local or `gs://`.
      flags: flags of `in9 generate` by name, for example `input="/data"`, `split=["val", "train"]`,
        `own_background=True`.

    Raises:
      UsageError: an argument is wrong; nothing has been written then.
    """

    def __init__(self, output: str | os.PathLike[str], **flags: Any) -> None:
        super().__init__()
        self.flags = {**flags, "output": os.fspath(output)}
        self._arguments = _parse("generate", self.flags)
        store = with_job_of_this_process(writing_store("output", self._arguments.output))
        self._seen = manifest_state(store)
        self.job = job_from_flags(self._arguments, store)

    def expand(
        self, start: beam.pvalue.PBegin | beam.pvalue.PCollection
    ) -> beam.pvalue.PCollection:
        job, owner = self.job, this_process()
        manifest = read_manifest(job.store)
        if isinstance(start, beam.pvalue.PBegin):
            start = start | "Once" >> beam.Create([None], reshuffle=False)
        before = manifest.fingerprint if manifest else None
        ending = JobSummary("generate", job.store, job.progress, before, has_lock=True, alone=True)
        lock = TakeLock(job.store, owner, self._seen)
        main = MainJob(ending, job.taxonomy, self._arguments.pictures, job=job, lock=lock)
        return main.build_after(start)


class Evaluate(beam.PTransform):
    """Evaluates models on a dataset, and writes its tables and page. A model that fails gets a row
    with its error.

    Input: the root of the pipeline, or one element that arrives when the dataset exists.
    Output: one text, the dataset's fingerprint.

    Args:
      dataset: the dataset's folder, or the `Generate` that makes it in the same pipeline.
      flags: flags of `in9 evaluate` by name, for example `models=["resnet50",
        "resnet18=trained.pth"]`.

    Raises:
      UsageError: an argument is wrong; nothing has been written then.
    """

    def __init__(self, dataset: str | os.PathLike[str] | Generate, **flags: Any) -> None:
        super().__init__()
        self._follows = isinstance(dataset, Generate)
        if isinstance(dataset, Generate):
            job = dataset.job
            self._store, config, self._taxonomy = job.store, job.config, job.taxonomy
            _parse("evaluate", {**flags, "dataset": self._store.root})
            arguments = _parse("run", {**dataset.flags, **flags})
        else:
            arguments = _parse("evaluate", {**flags, "dataset": os.fspath(dataset)})
            self._store = with_new_job(writing_store("dataset", arguments.dataset))
            existing = Dataset.open(self._store)
            config, self._taxonomy = existing.manifest.config, existing.taxonomy
        self._works = works_from_flags(arguments, self._store, config, self._taxonomy)
        self._pictures = arguments.pictures

    def expand(
        self, start: beam.pvalue.PBegin | beam.pvalue.PCollection
    ) -> beam.pvalue.PCollection:
        store, works = self._store, self._works
        runner = type(start.pipeline.runner).__name__
        if not (is_dataflow(runner) or is_portable(runner)):
            for work in works.values():
                work.evaluation = dataclasses.replace(work.evaluation, groups=1)
        manifest = read_manifest(store)
        before = manifest.fingerprint if manifest else None
        if isinstance(start, beam.pvalue.PBegin):
            if self._follows:
                raise UsageError(
                    "apply Evaluate to the output of Generate, which makes the dataset"
                )
            start = start | "Once" >> beam.Create([before], reshuffle=False)
        progress = Progress.for_store(store)
        ending = JobSummary("evaluate", store, progress, before, works, alone=True)
        return MainJob(ending, self._taxonomy, self._pictures).build_after(start)


def _parse(command: str, flags: Mapping[str, Any]) -> argparse.Namespace:
    """Parses flags that are given by name.

    Args:
      command: name of the command.
      flags: name of each flag to its Python value.

    Raises:
      UsageError: a flag does not exist, is not for a stage, or has a wrong value.
    """
    words = [f"--{name}={text_of(value)}" for name, value in flags.items() if value is not None]
    arguments, rest = build_parser().parse_known_args([command, *words])
    for word in rest:
        refuse_near_misses(flag_of(word), flags_of(command))
    for word in (*rest, *(f"--{name}" for name in AROUND_GRAPH if name in flags)):
        raise UsageError(
            f"{word.partition('=')[0]} is no flag of a stage (see: in9 {command} --help)"
        )
    refuse_cleared(arguments)
    return arguments
