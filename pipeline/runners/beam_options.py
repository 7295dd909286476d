"""Runs a graph, with our defaults for Beam's options, and turns each error into one line."""

from __future__ import annotations

import argparse
import contextlib
import errno
import re
from collections.abc import Sequence
from typing import NoReturn

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import create_runner

from pipeline.errors import JobError, UsageError
from pipeline.runners.dataflow_submission import Submission, submit
from pipeline.runners.portable import cancel_if_stopped, explain, prepare, servers_stopped
from pipeline.runtime.counters import counters_of
from pipeline.runtime.job_log import in_one_line, job_log
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.progress import Progress, show_progress

_LOCAL_RUNNERS = ("DirectRunner", "BundleBasedDirectRunner", "FnApiRunner", "SwitchingDirectRunner")
_LOST_ELEMENTS = (
    "--direct_running_mode=multi_threading silently loses elements in Beam 2.77; "
    "use in_memory (the default, with threads) or multi_processing"
)


class _BeamParser(argparse.ArgumentParser):
    """A parser that raises errors, whereas Beam's own parser prints its usage and ends the
    process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def _beam_parser() -> argparse.ArgumentParser:
    parser = _BeamParser(add_help=False, conflict_handler="resolve", allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        with contextlib.suppress(argparse.ArgumentError):
            options._add_argparse_args(parser)
    return parser


def unknown_to_beam(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Finds arguments that Beam does not know.

    Returns:
      (the arguments that Beam does not know, all flags that Beam knows).

    Raises:
      UsageError: Beam refuses a value.
    """
    parser = _beam_parser()
    unknown = parser.parse_known_args(arguments)[1]
    return unknown, re.findall(r"--\w+", parser.format_usage())


def _known_runner(name: str) -> str:
    """Returns the full name of a runner, such as `FlinkRunner` for `flink` or `flinkrunner`, which
    Beam also accepts."""
    spellings = (name.lower(), f"{name.lower()}runner")
    known = (known for known in StandardOptions.KNOWN_RUNNER_NAMES if known.lower() in spellings)
    return next(known, name)


def pipeline_options(arguments: list[str]) -> PipelineOptions:
    """Returns Beam's options, with our defaults for a local run.

    `DirectRunner` becomes `FnApiRunner`, because for `DirectRunner` Beam would first try to
    download another runner. By default, it gets as many workers as this process has cores.

    Raises:
      UsageError: the runner is unknown, the runner or its running mode gives wrong results, or
        flags of a portable runner are missing or wrong.
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
    if direct.direct_running_mode == "multi_threading":
        raise UsageError(_LOST_ELEMENTS)
    if runner.rpartition(".")[2] in _LOCAL_RUNNERS:
        options.view_as(StandardOptions).runner = "FnApiRunner"
        chosen = any(argument.startswith("--direct_num_workers") for argument in arguments)
        if not chosen or direct.direct_num_workers == 0:
            direct.direct_num_workers = usable_cores()
        prepare(options, arguments)
        return options
    # `prepare` must come first, because it refuses runners whose results are wrong.
    prepare(options, arguments)
    try:
        create_runner(runner)
    except (AttributeError, ImportError, ValueError) as error:
        raise UsageError(f"--runner={runner} cannot be used: {error}") from error
    return options


_RAISED = re.compile(r"^(?:[\w.]+\.)?(\w+): (.*)$")
_USAGE = ("UsageError", "TooLargeError")
_OURS = (*_USAGE, "JobError", "BrokenPictureError", "DamagedError", "ModelError")
_NEEDS_CORRECTION = re.compile(
    rf"\[Errno (?:{errno.ENOENT}|{errno.EACCES}|{errno.EEXIST}|{errno.ENOTDIR}|{errno.EISDIR}"
    rf"|{errno.ENOTEMPTY}|{errno.ELOOP})\]"
)
"""Errors that do not go away by trying again: a file is missing or may not be read, or its path is
taken by something else."""
_WHERE = re.compile(r" \[while running .*\]$", re.DOTALL)


def _translate(error: Exception) -> Exception:
    """Returns the UsageError or JobError to raise for an error from a runner. The runner's error is
    our own error, or holds the traceback of our error as text."""
    if isinstance(error, UsageError | JobError):
        return type(error)(_WHERE.sub("", str(error)))
    if type(error).__name__ == "DataflowJobAlreadyExistsError":
        return JobError(f"a job of the same name is running; wait until it has ended ({error})")
    explained = explain(error)
    if explained is not None:
        return JobError(f"{explained}. Run the same command again to go on")
    text = f"{type(error).__name__}: {error}"
    lines = [_WHERE.sub("", line.strip()) for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        match = _RAISED.match(line)
        # Runners wrap errors: RuntimeError: OSError: ...
        while match and (inner := _RAISED.match(match[2])) and inner[1].endswith("Error"):
            match = inner
        if match and match[1] in _OURS:
            return (UsageError if match[1] in _USAGE else JobError)(match[2])
        if match and (match[1].endswith(("Error", "Exception", "Invalid")) or match[1] == "error"):
            again = not _NEEDS_CORRECTION.match(match[2])
            advice = "Run" if again else "Correct that, then run"
            return JobError(f"{match[1]}: {match[2]}. {advice} the same command again to go on")
    return JobError(f"{lines[-1]}. Run the same command again to go on")


def _has_worker_processes(options: PipelineOptions) -> bool:
    return bool(options.view_as(DirectOptions).direct_running_mode == "multi_processing")


def run_pipeline(
    pipeline: beam.Pipeline, progress: Progress, log: str, submission: Submission | None = None
) -> dict[str, int] | None:
    """Runs a pipeline to its end, and shows its progress.

    Args:
      pipeline: the graph.
      progress: the notes in which workers count finished work.
      log: path of a file for tracebacks and Beam's warnings, which is kept if the job fails.
      submission: how to submit the job; None if it runs here.

    Returns:
      Our counters by name; None if this process does not wait for the job.

    Raises:
      UsageError, JobError: raised in the pipeline; other errors become a JobError.
    """
    waits = submission is None or submission.waits
    processes = _has_worker_processes(pipeline.options)
    with (
        in_one_line(log, _translate),
        job_log(log, worker_processes=processes),
        show_progress(progress) if waits else contextlib.nullcontext(),
        servers_stopped(pipeline.runner),
    ):
        if submission is None:
            result = pipeline.run()
            with cancel_if_stopped(result):
                result.wait_until_finish()
        else:
            result = submit(pipeline, submission, progress.store)
        return counters_of(result) if waits else None
