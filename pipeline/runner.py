"""Beam options: which runner, with how many workers, and which flags Beam knows."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import logging
import os
import re
from collections.abc import Iterable, Iterator

import apache_beam as beam
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineResult

from pipeline.errors import JobError, UsageError

_LOCAL_RUNNERS = ("DirectRunner", "BundleBasedDirectRunner", "FnApiRunner", "SwitchingDirectRunner")
_LOST_ELEMENTS = (
    "--direct_running_mode=multi_threading silently loses elements in Beam 2.77; "
    "use in_memory (the default, with threads) or multi_processing"
)


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def beam_flags() -> list[str]:
    """All flags that Beam's own options define."""
    parser = argparse.ArgumentParser(add_help=False, conflict_handler="resolve")
    for options in PipelineOptions.__subclasses__():
        with contextlib.suppress(argparse.ArgumentError):
            options._add_argparse_args(parser)
    return sorted(parser._option_string_actions)


def check_unknown(arguments: Iterable[str], own: Iterable[str]) -> None:
    """Refuses arguments that neither we nor Beam know.

    Raises:
      UsageError: naming the closest flag there is.
    """
    known = beam_flags()
    expects_value = False
    for argument in arguments:
        if not argument.startswith("-"):
            if not expects_value:
                raise UsageError(f"unexpected argument {argument!r}; flags look like --name=value")
            expects_value = False
            continue
        flag = argument.partition("=")[0]
        if flag not in known:
            close = difflib.get_close_matches(flag, [*own, *known], n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise UsageError(f"unknown flag {flag}{hint}")
        expects_value = "=" not in argument


def pipeline_options(arguments: list[str]) -> PipelineOptions:
    """Beam's options, with our defaults for a local run.

    `DirectRunner` is read as `FnApiRunner`, since Beam's would first try to download
    another runner; it gets as many workers as this process has cores.

    Raises:
      UsageError: a running mode that loses elements.
    """
    options = PipelineOptions(arguments)
    runner = options.view_as(StandardOptions).runner or "DirectRunner"
    direct = options.view_as(DirectOptions)
    if direct.direct_running_mode == "multi_threading":
        raise UsageError(_LOST_ELEMENTS)
    if runner.rpartition(".")[2] in _LOCAL_RUNNERS:
        options.view_as(StandardOptions).runner = "FnApiRunner"
        chosen = any(argument.startswith("--direct_num_workers") for argument in arguments)
        if not chosen or direct.direct_num_workers == 0:
            direct.direct_num_workers = usable_cores()
    return options


class _Unneeded(logging.Filter):
    """Drops what Beam says about our deliberate choice of threads."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "direct_running_mode should be" not in record.getMessage()


@contextlib.contextmanager
def _beam_errors() -> Iterator[None]:
    """Turns what comes out of a runner into the error that went in, where there was one."""
    try:
        yield
    except (UsageError, JobError):
        raise
    except Exception as error:
        raise _translate(error) from error


_RAISED = re.compile(r"^(?:[\w.]+\.)?(\w+): (.*?)(?: \[while running .*)?$")


def _translate(error: Exception) -> Exception:
    """The innermost error of a runner's message, which is a traceback as text."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    for line in reversed(lines):
        match = _RAISED.match(line)
        if match and match[1] in ("UsageError", "JobError"):
            return (UsageError if match[1] == "UsageError" else JobError)(match[2])
        if match and (match[1].endswith(("Error", "Exception", "Invalid")) or match[1] == "error"):
            return JobError(f"{match[1]}: {match[2]}. Run the same command again to go on")
    text = lines[-1] if lines else ""
    return JobError(f"{type(error).__name__}: {text}. Run the same command again to go on")


def run_pipeline(pipeline: beam.Pipeline) -> dict[str, int]:
    """Runs a pipeline to its end; returns our counters by name.

    Raises:
      UsageError, JobError: as raised inside; other errors as JobError.
    """
    logging.getLogger("apache_beam.runners.portability.fn_api_runner.fn_runner").addFilter(
        _Unneeded()
    )
    with _beam_errors():
        result = pipeline.run()
        result.wait_until_finish()
    return _counters(result)


def _counters(result: PipelineResult) -> dict[str, int]:
    found = result.metrics().query()["counters"]
    return {
        counter.key.metric.name: counter.result
        for counter in found
        if counter.key.metric.namespace == "in9"
    }
