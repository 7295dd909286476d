"""Beam's options with our defaults, and a function that runs a graph with one-line errors."""

import argparse
import contextlib
import errno
import logging
import re
from collections.abc import Sequence
from typing import NoReturn

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import (
    DirectOptions,
    PipelineOptions,
    StandardOptions,
)
from apache_beam.runners.runner import create_runner

from pipeline.analyses import ANALYSES
from pipeline.errors import JobError, UsageError, plain
from pipeline.runners.dataflow import Submission, submit
from pipeline.runners.portable import is_portable, prepare, run_to_end
from pipeline.runtime.job_log import in_one_line, job_log
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import Progress, counters_of, show_progress
from pipeline.runtime.workers import Engine, LocalThreads, LocalWorkers

# Beam advises a running mode, which `engine_of` chooses instead.
logging.getLogger("apache_beam.runners.portability.fn_api_runner.fn_runner").addFilter(
    lambda record: not record.getMessage().startswith("If direct_num_workers is not equal to 1")
)
_LOCAL_RUNNERS = ("DirectRunner", "BundleBasedDirectRunner", "FnApiRunner", "SwitchingDirectRunner")


class _BeamParser(argparse.ArgumentParser):
    """A parser that raises errors; Beam's own parser prints its usage and ends the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def unknown_to_beam(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns (the arguments that Beam does not know, all flags that it knows)."""
    parser = _BeamParser(add_help=False, conflict_handler="resolve", allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    return parser.parse_known_args(arguments)[1], re.findall(r"--\w+", parser.format_usage())


def _known_runner(name: str) -> str:
    """Returns a runner's full name: `FlinkRunner` for `flink` or `flinkrunner`, as Beam does."""
    spellings = (name.lower(), f"{name.lower()}runner")
    matching = (known for known in StandardOptions.KNOWN_RUNNER_NAMES if known.lower() in spellings)
    return next(matching, name)


def pipeline_options(arguments: list[str]) -> PipelineOptions:
    """Parses and checks Beam's options, and completes them with our defaults for a local run.

    Every local runner becomes `FnApiRunner`, because for `DirectRunner` Beam would first try to
    download another runner, with a worker for each core that this process may use. Raises
    UsageError if the runner is unknown, it or its running mode gives wrong results, the number of
    workers is negative, or flags of a portable runner are missing or wrong.
    """
    options = PipelineOptions(arguments)
    runner = _known_runner(options.view_as(StandardOptions).runner or "DirectRunner")
    options.view_as(StandardOptions).runner = runner
    direct = options.view_as(DirectOptions)
    if direct.direct_num_workers < 0:
        raise UsageError(
            f"--direct_num_workers must be at least 0, which means one for each core: got "
            f"{direct.direct_num_workers}"
        )
    if runner.rpartition(".")[2] in _LOCAL_RUNNERS:
        options.view_as(StandardOptions).runner = "FnApiRunner"
        if direct.direct_num_workers == 0 or not any(
            argument.startswith("--direct_num_workers") for argument in arguments
        ):
            direct.direct_num_workers = usable_cores()
        return options
    # `prepare` is first, because it refuses runners with wrong results, creatable or not.
    prepare(options, arguments)
    try:
        create_runner(runner)
    except (AttributeError, ImportError, ValueError) as error:
        raise UsageError(f"--runner={runner} cannot be used: {error}") from error
    return options


def engine_of(
    options: PipelineOptions, arguments: Sequence[str], dask: str | None, gpus: int
) -> Engine | None:
    """Chooses the workers of the steps that work on pixels, if they are not Beam's own.

    The options' running mode becomes `in_memory`, since Beam's own processes would be called by
    servers at ports of this machine, and its `multi_threading` silently loses elements. Several
    workers of this machine are processes, because threads would wait for each other's turn with the
    interpreter. So are those of several GPUs, which one interpreter would keep waiting. Raises
    UsageError if flags exclude each other, or no scheduler answers.
    """
    direct = options.view_as(DirectOptions)
    is_local = options.view_as(StandardOptions).runner == "FnApiRunner"
    number, mode = direct.direct_num_workers, direct.direct_running_mode
    if dask:
        if (
            not is_local
            or mode == "multi_processing"
            or any(word.startswith("--runner") for word in arguments)
        ):
            raise UsageError(
                "--dask chooses the workers; leave out --runner and --direct_running_mode"
            )
        # Imported late, because it is an extra, and slow to import.
        try:
            from pipeline.runtime.dask_workers import DaskWorkers
        except ImportError as error:
            raise UsageError(
                f"--dask needs Dask: pip install dask distributed ({error})"
            ) from error
        return DaskWorkers(dask)
    direct.direct_running_mode = "in_memory"
    says_mode = any(word.startswith("--direct_running") for word in arguments)
    if (
        is_local
        and gpus > 1
        and not (says_mode or any(word.startswith("--direct_num") for word in arguments))
    ):
        return LocalWorkers(gpus, has_cards=True)
    has_processes = mode == "multi_processing" if says_mode else number > 1
    workers = LocalWorkers if has_processes else LocalThreads
    return workers(number) if is_local else None


_RAISED = re.compile(r"^(?:Pipeline \S+ failed in state \w+: )?(?:[\w.$]+[.$])?(\w+): (.*)$")
"""A line of a traceback that names an error (group 1) and its message (group 2). Job servers put
something before it."""
_ENDS = ("Error", "Exception")
_USAGE = ("UsageError", "TooLargeError")
"""Names of our errors that become a UsageError."""
_OURS = (*_USAGE, "JobError", "BrokenPictureError", "DamagedError", "ModelError")
"""Names of all our errors. Their messages need no advice on how to go on."""
_NEEDS_CORRECTION = re.compile(
    rf"\[Errno (?:{errno.ENOENT}|{errno.EACCES}|{errno.EEXIST}|{errno.ENOTDIR}|{errno.EISDIR}"
    rf"|{errno.ENOTEMPTY}|{errno.ELOOP})\]"
)
"""Errors that stay if tried again: a file is missing or may not be read, or its path is taken."""
_WORKER_GONE = (
    *("Channel closed prematurely", "StatusRuntimeException: CANCELLED"),
    "IllegalStateException: call already closed",
)
"""Messages for a lost worker, from Beam's Python job server and from Flink's."""
_WHERE = re.compile(r" \[while running .*\]$", re.DOTALL)
"""The end that Beam adds to a message: the name of the step that raised the error."""


def _translate(error: Exception) -> Exception:
    """Returns the UsageError or JobError to raise for an error from a runner.

    An error of ours keeps its message. Otherwise, the last line of its text that names an error
    decides, because runners put the traceback of a worker's error into that text.
    """
    if isinstance(error, UsageError | JobError):
        return type(plain(error))(_WHERE.sub("", str(error)))
    if type(error).__name__ == "DataflowJobAlreadyExistsError":
        return JobError(f"a job of the same name is running; wait until it has ended ({error})")
    advice = "Run the same command again to go on"
    if isinstance(error, grpc.RpcError):
        details = error.details() if hasattr(error, "details") else type(error).__name__
        return JobError(f"the job server no longer answers ({details}). {advice}")
    if any(words in str(error) for words in _WORKER_GONE):
        return JobError(f"a worker process has ended unexpectedly. {advice}")
    text = f"{type(error).__name__}: {error}"
    lines = [_WHERE.sub("", line.strip()) for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        match = _RAISED.match(line)
        # Runners wrap errors, as in `RuntimeError: OSError: ...`; the innermost says what happened.
        while match and (inner := _RAISED.match(match[2])) and inner[1].endswith(_ENDS):
            match = inner
        if match and match[1] in _OURS:
            return (UsageError if match[1] in _USAGE else JobError)(match[2])
        if match and (match[1].endswith((*_ENDS, "Invalid")) or match[1] == "error"):
            if _NEEDS_CORRECTION.match(match[2]):
                advice = "Correct that, then run the same command again to go on"
            return JobError(f"{match[1]}: {match[2]}. {advice}")
    return JobError(f"{lines[-1]}. {advice}")


def run_pipeline(
    pipeline: beam.Pipeline, progress: Progress, log: str, submission: Submission | None = None
) -> dict[str, int] | None:
    """Runs a pipeline to its end, and shows its progress; returns our counters' values by name.

    It returns None if this process does not wait for the job; only Dataflow has a submission. The
    log of tracebacks and Beam's warnings is kept if the job fails. Errors become UsageError or
    JobError.
    """
    waits = submission is None or submission.waits
    items = {one.name: one.items for one in ANALYSES if one.runs_models}
    with (
        in_one_line(log, _translate),
        job_log(log),
        show_progress(progress, items) if waits else contextlib.nullcontext(),
    ):
        if is_portable(type(pipeline.runner).__name__):
            return run_to_end(pipeline, progress)
        if submission:
            result = submit(pipeline, submission, progress.store)
        else:
            result = pipeline.run()
            result.wait_until_finish()
        return counters_of(result) if waits else None
