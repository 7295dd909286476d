"""Which function runs which command.

It is imported when the command is given: who verifies a dataset waits for neither Beam nor torch.
"""

from __future__ import annotations

import argparse
import importlib
import logging
from collections.abc import Mapping
from types import ModuleType

from pipeline.commands.flags import flags_of
from pipeline.errors import UsageError

_MAIN = ("pipeline.commands.run", "run_main")

WITH_BEAM: Mapping[str, tuple[str, str]] = {
    "run": _MAIN,
    "generate": _MAIN,
    "evaluate": _MAIN,
    "attack": ("pipeline.commands.attack", "run_attack"),
    "saliency": ("pipeline.commands.saliency", "run_saliency"),
}
"""Commands that run a graph: module and function, which takes the flags of Beam, too."""

WITHOUT_BEAM: Mapping[str, tuple[str, str]] = {
    "train": ("pipeline.commands.train", "run_train"),
    "matrix": ("pipeline.commands.matrix", "run_matrix"),
    "models": ("pipeline.commands.models", "run_models"),
    "report": ("pipeline.commands.report", "run_report"),
    "export": ("pipeline.commands.export_released", "run_export"),
    "import": ("pipeline.commands.import_released", "run_import"),
    "verify": ("pipeline.commands.verify", "run_verify"),
}
"""All others."""


def run_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Runs a parsed command.

    Args:
      arguments: of `build_parser`.
      rest: what it did not know, for Beam.

    Returns:
      The exit code.

    Raises:
      UsageError: wrong usage or unreadable input.
      JobError: the job failed.
    """
    command = arguments.command
    own = flags_of(command)
    has_graph = command in WITH_BEAM
    if rest:
        _load("pipeline.runners.run").check_unknown(rest, [flag.name for flag in own])
        if not has_graph:
            raise UsageError(f"{rest[0]} is for commands that run a Beam pipeline")
    # Not argparse's business: it would name what is missing before what is misspelt.
    for flag in own:
        if flag.is_required and not getattr(arguments, flag.dest):
            what = f"{flag.name} {flag.metavar}"
            raise UsageError(f"{what} is required (see: in9 {command} --help)")
    module, function = WITH_BEAM[command] if has_graph else WITHOUT_BEAM[command]
    given = (arguments, rest) if has_graph else (arguments,)
    return int(getattr(_load(module), function)(*given))


def _load(module: str) -> ModuleType:
    # Beam announces at import which of its optional parts are not installed.
    logging.disable(logging.WARNING)
    try:
        return importlib.import_module(module)
    finally:
        logging.disable(logging.NOTSET)
