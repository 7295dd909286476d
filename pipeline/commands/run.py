"""The main job: `in9 run`, `generate`, `evaluate`, `attack` and `saliency`.

It checks the flags, builds and runs one graph, and prints the results. `in9.Generate` and
`in9.Evaluate` are the stages as transforms for custom Beam pipelines, configured by the same flags.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

from pipeline.analyses import ANALYSES
from pipeline.analyses.evaluation import EVALUATION
from pipeline.commands.command_line import (
    check_device,
    flag_of,
    refuse_cleared,
    refuse_near_misses,
)
from pipeline.commands.flags import NOT_IN_TRANSFORMS, flags_of
from pipeline.commands.job_flags import analyses_from_flags, job_from_flags
from pipeline.commands.parser import build_parser
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import read_manifest, writing_store
from pipeline.errors import JobError, UsageError, escaped
from pipeline.evaluate.planned import PlannedAnalysis
from pipeline.evaluate.results import errors_by_model, read_failures
from pipeline.generate.custom_variants import custom_names
from pipeline.inputs.source_images import CHECKSUMS
from pipeline.jobs.conditions import Gate, conclude, gate_from_flags, judge, parse_conditions
from pipeline.jobs.dry_run import dry_run
from pipeline.jobs.main_job import (
    JobSummary,
    MainJob,
    TakeLock,
    check_unchanged,
    manifest_state,
    print_summary,
)
from pipeline.jobs.messages import describe_dataset, describe_recipe
from pipeline.jobs.publish import check_publishing, describe_published
from pipeline.report.write import REPORT
from pipeline.runners.beam_options import engine_of, pipeline_options, run_pipeline
from pipeline.runners.dataflow import flags_of_workers, submission_from_flags
from pipeline.runners.portable import is_portable
from pipeline.runtime.dataflow_jobs import is_dataflow
from pipeline.runtime.flag_types import text_of
from pipeline.runtime.lock import (
    DATASET_LOCK,
    locked,
    remove_leftovers,
    removed_if_refused,
    this_process,
    with_job_of_this_process,
    with_new_job,
)
from pipeline.runtime.progress import Progress
from pipeline.runtime.spread import spread_over
from pipeline.storage.store import Store


def run_main(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Runs a command of the main job.

    Args:
      arguments: the parsed arguments.
      rest: flags for Beam.

    Returns:
      The exit code: 3 if a condition of `--fail_if` holds, else 0, also if a job was only
      submitted.

    Raises:
      UsageError: wrong usage or unreadable input.
      JobError: the job failed, every model failed in an analysis, the dataset holds no
        image to run models on, or `--fail_if` could not be tested.
    """
    options = pipeline_options(rest)
    engine = engine_of(options, rest, arguments.dask, arguments.gpus or 1)
    submission = submission_from_flags(
        arguments, options, [flag.dest for flag in flags_of(arguments.command) if flag.is_path]
    )
    if not (submission or arguments.dask or is_portable(options.view_as(StandardOptions).runner)):
        check_device(arguments, "run")
        arguments.gpus = arguments.gpus or 1
    arguments = flags_of_workers(arguments, submission)
    generates = arguments.command in ("run", "generate")
    if generates:
        # Checked before the input is read.
        parse_conditions(
            getattr(arguments, "fail_if", None),
            custom=custom_names(arguments.variants, arguments.renderings),
        )
    flag = "output" if generates else "dataset"
    store = with_new_job(writing_store(flag, getattr(arguments, flag)))
    publishing = check_publishing(store, arguments.publish, arguments.keep)
    seen = manifest_state(store)
    # Flags are checked before the lock is taken, because taking it creates the output folder.
    job = job_from_flags(arguments, store) if generates else None
    dataset = None if generates else Dataset.open(store)
    config = job.config if job else dataset.manifest.config  # type: ignore[union-attr]
    taxonomy = job.taxonomy if job else dataset.taxonomy  # type: ignore[union-attr]
    works = analyses_from_flags(arguments, store, config, taxonomy)
    gate = _gate(arguments, store, config, works)
    if job and arguments.dry_run:
        dry_run(job, works, options.view_as(DirectOptions).direct_num_workers)
        return 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(spread_over(engine))
        if generates:
            stack.enter_context(removed_if_refused(store, CHECKSUMS))
            if submission is None:
                _lock(store, stack)
                check_unchanged(store, seen)
        # Removed now, because the job needs the disk space that leftovers of killed jobs occupy.
        remove_leftovers(store)
        manifest = read_manifest(store)
        ending = JobSummary(
            command=arguments.command,
            store=store,
            progress=Progress.for_store(store),
            before=manifest.fingerprint if manifest else None,
            works=works,
            has_lock=bool(submission and job),
            alone=submission is not None and not submission.waits,
            gate=gate,
        )
        pipeline = beam.Pipeline(options=options)
        MainJob(
            ending,
            taxonomy,
            arguments.pictures,
            job=job,
            lock=TakeLock(store, submission.owner, seen) if submission and job else None,
            publishing=publishing,
        ).build(pipeline)
        # A dataset has one writer, but several evaluations may run at once, each with its own log.
        log = store.log(arguments.command + ("" if generates else f"-{os.getpid()}"))
        started = time.monotonic()
        counters = run_pipeline(pipeline, ending.progress, log, submission)
        if counters is None:
            return 0
        seconds = time.monotonic() - started
    dataset = Dataset.open(store)
    recipe = job and job.recipe  # It has decided on its images.
    print(describe_dataset(dataset.manifest, counters, seconds, may_advise=not recipe))
    for split in {work.evaluation.split for work in works.values()} - {"val"}:
        print(f"tested on split {split}")
    if recipe:
        for line in describe_recipe(recipe.manifest, dataset.manifest, counters):
            print(f"recipe: {line}")
    failures = _failures(dataset, works)
    # An analysis in which all models have failed has nothing to show.
    lost = [name for name, of in failures.items() if len(of) == len(works[name].evaluation.entries)]
    for analysis in ANALYSES:
        if analysis.name not in lost:
            for line in analysis.parts.lines(dataset, works.get(analysis.name)):
                print(line)
    if len(lost) < len(works):
        print(f"report: {dataset.store.path(REPORT)}")
    if publishing:
        print(describe_published(publishing.target, bool(counters.get("versions_published"))))
    details = f" (details: {log})" if os.path.exists(log) else ""
    for analysis in ANALYSES:
        if analysis.name not in lost:
            for model, error in failures.get(analysis.name, {}).items():
                print(escaped(f"{analysis.not_done}: {model}: {error}{details}"), file=sys.stderr)
    if lost:
        raise JobError("; ".join(map(": ".join, failures[lost[0]].items())) + details)
    print_summary(store)
    if works and not any(images["selected"] for images in dataset.manifest.images.values()):
        raise JobError(
            "no model was evaluated, because the dataset holds no image; the lines of its splits "
            "above say why, and what to change"
        )
    return conclude(judge(gate, dataset), gate) if gate else 0


def _lock(store: Store, stack: contextlib.ExitStack) -> None:
    """Holds the lock of the dataset until the stack unwinds.

    The files of the lock are the first that a run writes.

    Raises:
      UsageError: the folder cannot be written.
      JobError: another job is at work on it.
    """
    try:
        stack.enter_context(locked(store, DATASET_LOCK))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
            raise  # The machine is short of something, whatever the folder is.
        reason = error.strerror or error
        where = f" ({error.filename})" if error.filename else ""
        raise UsageError(f"--output {store.root} cannot be written: {reason}{where}") from error


def _gate(
    arguments: argparse.Namespace,
    store: Store,
    config: DatasetConfig,
    works: Mapping[str, PlannedAnalysis],
) -> Gate | None:
    """Makes the gate of a job; None if it does not evaluate models."""
    if arguments.command not in ("run", "evaluate"):
        return None
    evaluation = works[EVALUATION.name].evaluation
    return gate_from_flags(arguments, store, config.compose.composed, evaluation)


def _failures(dataset: Dataset, works: Mapping[str, PlannedAnalysis]) -> dict[str, dict[str, str]]:
    """Returns by analysis which models have failed in it, each with its error."""
    return {
        one.name: errors_by_model(
            read_failures(dataset.store, dataset.manifest.fingerprint, one.name)[0],
            works[one.name].evaluation.entries,
        )
        for one in ANALYSES
        if one.name in works and one.not_done
    }


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
        self._arguments = parse_flags("generate", self.flags)
        store = with_job_of_this_process(writing_store("output", self._arguments.output))
        self._seen = manifest_state(store)
        self.job = job_from_flags(self._arguments, store)

    def expand(
        self, start: beam.pvalue.PBegin | beam.pvalue.PCollection
    ) -> beam.pvalue.PCollection:
        job, manifest = self.job, read_manifest(self.job.store)
        before = manifest.fingerprint if manifest else None
        ending = JobSummary("generate", job.store, job.progress, before, has_lock=True, alone=True)
        return MainJob(
            ending,
            job.taxonomy,
            self._arguments.pictures,
            job=job,
            lock=TakeLock(job.store, this_process(), self._seen),
        ).build(start)


class Evaluate(beam.PTransform):
    """Evaluates models on a dataset, and writes its tables and page.

    A model that fails gets a row with its error.

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
            parse_flags("evaluate", {**flags, "dataset": self._store.root})
            arguments = parse_flags("run", {**dataset.flags, **flags})
        else:
            arguments = parse_flags("evaluate", {**flags, "dataset": os.fspath(dataset)})
            self._store = with_new_job(writing_store("dataset", arguments.dataset))
            existing = Dataset.open(self._store)
            config, self._taxonomy = existing.manifest.config, existing.taxonomy
        self._works = analyses_from_flags(arguments, self._store, config, self._taxonomy)
        self._pictures = arguments.pictures

    def expand(
        self, start: beam.pvalue.PBegin | beam.pvalue.PCollection
    ) -> beam.pvalue.PCollection:
        store, works = self._store, self._works
        runner = type(start.pipeline.runner).__name__
        if not (is_dataflow(runner) or is_portable(runner)):
            for work in works.values():
                work.evaluation = dataclasses.replace(work.evaluation, blocks=1)
        manifest = read_manifest(store)
        before = manifest.fingerprint if manifest else None
        if self._follows and isinstance(start, beam.pvalue.PBegin):
            raise UsageError("apply Evaluate to the output of Generate, which makes the dataset")
        ending = JobSummary("evaluate", store, Progress.for_store(store), before, works, alone=True)
        return MainJob(ending, self._taxonomy, self._pictures).build(start)


def parse_flags(command: str, flags: Mapping[str, Any]) -> argparse.Namespace:
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
    for word in (*rest, *(f"--{name}" for name in NOT_IN_TRANSFORMS if name in flags)):
        raise UsageError(
            f"{word.partition('=')[0]} is no flag of a stage (see: in9 {command} --help)"
        )
    refuse_cleared(arguments)
    return arguments
