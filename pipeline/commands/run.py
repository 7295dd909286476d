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

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
)

from pipeline.analyses import ANALYSES
from pipeline.analyses.evaluation import EVALUATION
from pipeline.commands.command_line import (
    build_parser,
    check_device,
    flag_of,
    flags_as,
    refuse_cleared,
    refuse_near_misses,
)
from pipeline.commands.flags import NOT_IN_TRANSFORMS, flags_of
from pipeline.commands.job_flags import analyses_from_flags, job_from_flags
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import last_manifest, read_manifest, writing_store
from pipeline.errors import JobError, UsageError, escaped
from pipeline.evaluate.results import errors_by_model, read_failures
from pipeline.generate.origin import GenerateJob
from pipeline.inputs.source_images import CHECKSUMS
from pipeline.jobs.conditions import GateFlags, conclude, gate_from_flags, judge
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
from pipeline.report.write import describe_report
from pipeline.runners.beam_options import engine_of, pipeline_options, run_pipeline
from pipeline.runners.dataflow import (
    Submission,
    WorkerFlags,
    is_dataflow,
    submission_from_flags,
)
from pipeline.runners.portable import is_portable
from pipeline.runtime.flag_types import text_of
from pipeline.runtime.lock import (
    DATASET_LOCK,
    locked,
    remove_leftovers,
    removed_if_refused,
    this_process,
    with_new_job,
)
from pipeline.runtime.progress import Progress
from pipeline.runtime.spread import spread_over
from pipeline.runtime.workers import Engine
from pipeline.storage.store import Store
from transforms.variants import VariantName


class MainFlags(msgspec.Struct, frozen=True, kw_only=True):
    """Flags of a main job as a whole; those that a command lacks have their default."""

    command: str
    output: str = ""
    dataset: str = ""
    publish: str | None
    keep: int | None
    pictures: str
    dry_run: bool = False

    @property
    def generates(self) -> bool:
        """Whether the command makes the dataset."""
        return self.command in ("run", "generate")


def run_main(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Runs a command of the main job; returns the exit code.

    It is 3 if a condition of `--fail_if` holds, else 0, also if a job was only submitted.

    Raises:
      JobError: the job failed, every model failed in an analysis, the dataset holds no image to run
        models on, or `--fail_if` could not be tested.
    """
    options, engine, submission = _choose_workers(arguments, rest)
    main = _plan_job(arguments, submission)
    if flags_as(MainFlags, arguments).dry_run:
        workers = options.view_as(DirectOptions).direct_num_workers
        dry_run(main.job, main.ending.plans, main.ending.gate, workers)
        return 0
    ended = _run_job(main, options, engine, submission)
    return _say_result(main, *ended) if ended else 0


def _choose_workers(
    arguments: argparse.Namespace, rest: list[str]
) -> tuple[PipelineOptions, Engine | None, Submission | None]:
    """Decides what runs the job, and thereby `--device` and `--gpus`, where they were left open.

    Returns Beam's options, an engine for steps on pixels, and a job for Dataflow.
    """
    flags, options = flags_as(WorkerFlags, arguments), pipeline_options(rest)
    engine = engine_of(options, rest, flags.dask, flags.gpus or 1)
    paths = [flag.dest for flag in flags_of(flags.command) if flag.is_path]
    submission = submission_from_flags(flags, options, vars(arguments), paths)
    if submission and flags.device:
        # The workers' device, which may be another than this machine's.
        arguments.device = "cuda" if flags.gpu else "cpu"
    elif not (flags.dask or is_portable(options.view_as(StandardOptions).runner)):
        check_device(flags.device, "run", is_compiled=flags.compile)
        arguments.gpus = flags.gpus or 1
    return options, engine, submission


def _plan_job(
    arguments: argparse.Namespace,
    submission: Submission | None = None,
    *,
    is_stage: bool = False,
    made: GenerateJob | None = None,
) -> MainJob:
    """Decides what a job does. Nothing is written, as even a lock creates the output folder.

    A stage, which is a part of someone's own pipeline, may use a dataset that is `made` before it.
    """
    flags = flags_as(MainFlags, arguments)
    folder = ("output", flags.output) if flags.generates else ("dataset", flags.dataset)
    may_repeat = is_stage and flags.generates
    store = made.store if made else with_new_job(writing_store(*folder), may_repeat=may_repeat)
    publishing = check_publishing(store, flags.publish, flags.keep)
    seen = manifest_state(store)
    job = job_from_flags(arguments, store) if flags.generates else None
    dataset = made or job or Dataset.open(store)
    plans = analyses_from_flags(arguments, dataset) if flags.command != "generate" else {}
    before, last, gate = read_manifest(store), last_manifest(store), None
    outside = tuple(map(VariantName, last.outside if last else ()))
    if flags.command in ("run", "evaluate") and not is_stage:
        evaluation = plans[EVALUATION.name].evaluation
        asked = flags_as(GateFlags, arguments)
        gate = gate_from_flags(
            asked, store, (*dataset.config.compose.composed, *outside), evaluation
        )
    ending = JobSummary(
        flags.command,
        store,
        Progress.for_store(store),
        before=before.fingerprint if before else None,
        outside=tuple(map(str, outside)),
        plans=plans,
        has_lock=bool(job and (submission or is_stage)),
        is_detached=is_stage or (submission is not None and not submission.waits),
        gate=gate,
    )
    return MainJob(
        ending,
        dataset.taxonomy,
        flags.pictures,
        job=job,
        lock=TakeLock(store, submission.owner if submission else this_process(), seen),
        publishing=publishing,
    )


def _run_job(
    main: MainJob, options: PipelineOptions, engine: Engine | None, submission: Submission | None
) -> tuple[dict[str, int], float, str] | None:
    """Runs a planned job to its end; None if this process does not wait for that.

    Returns the job's counters, its time in seconds, and the path of its log.
    """
    ending, store = main.ending, main.ending.store
    with contextlib.ExitStack() as stack:
        stack.enter_context(spread_over(engine))
        if main.job:
            stack.enter_context(removed_if_refused(store, CHECKSUMS))
            if main.lock and not submission:
                _lock(store, stack)
                check_unchanged(store, main.lock.seen)
        # Removed now, because the job needs the disk space that leftovers of killed jobs occupy.
        remove_leftovers(store)
        pipeline = beam.Pipeline(options=options)
        main.build(pipeline)
        # A dataset has one writer, but several evaluations may run at once, each with its own log.
        log = store.log(ending.command + ("" if main.job else f"-{os.getpid()}"))
        started = time.monotonic()
        counters = run_pipeline(pipeline, ending.progress, log, submission)
        return None if counters is None else (counters, time.monotonic() - started, log)


def _say_result(main: MainJob, counters: dict[str, int], seconds: float, log: str) -> int:
    """Prints what a job has done; returns its exit code."""
    store, plans = main.ending.store, main.ending.plans
    dataset = Dataset.open(store)
    recipe = main.job and main.job.origin.recipe  # It has decided on its images.
    had = main.ending.outside
    print(describe_dataset(dataset.manifest, counters, seconds, may_advise=not recipe, had=had))
    for split in {plan.evaluation.split for plan in plans.values()} - {"val"}:
        print(f"tested on split {split}")
    if recipe:
        for line in describe_recipe(recipe.manifest, dataset.manifest, counters):
            print(f"recipe: {line}")
    failures = {
        one.name: errors_by_model(
            read_failures(store, dataset.manifest.fingerprint, one.name)[0],
            plans[one.name].evaluation.entries,
        )
        for one in ANALYSES
        if one.name in plans and one.not_done
    }
    # An analysis in which all models have failed has nothing to show.
    lost = [name for name, of in failures.items() if len(of) == len(plans[name].evaluation.entries)]
    shown = [analysis for analysis in ANALYSES if analysis.name not in lost]
    for analysis in shown:
        for line in analysis.parts.lines(dataset, plans.get(analysis.name)):
            print(line)
    if len(lost) < len(plans):
        print(describe_report(store))
    if main.publishing:
        print(describe_published(main.publishing.target, counters.get("versions_published", 0) > 0))
    details = f" (details: {log})" if os.path.exists(log) else ""
    for analysis in shown:
        for model, error in failures.get(analysis.name, {}).items():
            print(escaped(f"{analysis.not_done}: {model}: {error}{details}"), file=sys.stderr)
    if lost:
        raise JobError("; ".join(map(": ".join, failures[lost[0]].items())) + details)
    print_summary(store)
    if plans and not any(images["selected"] for images in dataset.manifest.images.values()):
        raise JobError(
            "no model was evaluated, because the dataset holds no image; the lines of its splits "
            "above say why, and what to change"
        )
    return conclude(judge(main.ending.gate, dataset), main.ending.gate) if main.ending.gate else 0


def _lock(store: Store, stack: contextlib.ExitStack) -> None:
    """Holds the dataset's lock, whose files a run writes first, until the stack unwinds."""
    try:
        stack.enter_context(locked(store, DATASET_LOCK))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM):
            raise  # The machine is short of something, whatever the folder is.
        reason = error.strerror or error
        where = f" ({error.filename})" if error.filename else ""
        raise UsageError(f"--output {store.root} cannot be written: {reason}{where}") from error


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

    def __init__(self, output: str | os.PathLike[str], **flags: object) -> None:
        super().__init__()
        self.output, self.flags = os.fspath(output), flags
        arguments = parse_flags("generate", {**flags, "output": self.output})
        self.main = _plan_job(arguments, is_stage=True)

    def expand(
        self, start: beam.pvalue.PBegin | beam.pvalue.PCollection
    ) -> beam.pvalue.PCollection:
        return self.main.build(start)


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

    def __init__(self, dataset: str | os.PathLike[str] | Generate, **flags: object) -> None:
        super().__init__()
        self._made, folder = None, dataset
        if isinstance(dataset, Generate):
            self._made, folder = dataset.main.job, dataset.output
            flags = {"pictures": dataset.flags.get("pictures"), **flags}
        arguments = parse_flags("evaluate", {**flags, "dataset": os.fspath(folder)})
        self._main = _plan_job(arguments, is_stage=True, made=self._made)

    def expand(
        self, start: beam.pvalue.PBegin | beam.pvalue.PCollection
    ) -> beam.pvalue.PCollection:
        runner = type(start.pipeline.runner).__name__
        if not (is_dataflow(runner) or is_portable(runner)):
            for plan in self._main.ending.plans.values():
                plan.evaluation = dataclasses.replace(plan.evaluation, blocks=1)
        if self._made and isinstance(start, beam.pvalue.PBegin):
            raise UsageError("apply Evaluate to the output of Generate, which makes the dataset")
        return self._main.build(start)


def parse_flags(command: str, flags: Mapping[str, object]) -> argparse.Namespace:
    """Parses flags that are given by name.

    Raises UsageError if a flag does not exist, is not for a stage, or has a wrong value.
    """
    words = [f"--{name}={text_of(value)}" for name, value in flags.items() if value is not None]
    arguments, rest = build_parser([command, *words]).parse_known_args([command, *words])
    for word in rest:
        refuse_near_misses(flag_of(word), flags_of(command))
    for word in (*rest, *(f"--{name}" for name in NOT_IN_TRANSFORMS if name in flags)):
        raise UsageError(
            f"{word.partition('=')[0]} is no flag of a stage (see: in9 {command} --help)"
        )
    refuse_cleared(arguments)
    return arguments
