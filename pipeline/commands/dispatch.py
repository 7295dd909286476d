"""Which function runs which command.

It is imported when the command is given: who verifies a dataset waits for neither Beam nor torch.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable

from pipeline.commands.flags import flags_of
from pipeline.commands.parser import COMMANDS
from pipeline.errors import UsageError


def run_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Runs a parsed command.

    Args:
      arguments: of `parse_command_line`.
      rest: what it did not know, for Beam.

    Returns:
      The exit code.

    Raises:
      UsageError: wrong usage or unreadable input.
      JobError: the job failed.
    """
    command = arguments.command
    own = flags_of(command)
    has_graph = COMMANDS[command].has_graph
    # Beam announces at import which of its optional parts are not installed.
    logging.disable(logging.WARNING)
    try:
        # Not argparse's business: it would name what is missing before what is misspelt.
        for flag in own:
            if flag.is_required and not getattr(arguments, flag.dest):
                what = f"{flag.name} {flag.metavar}"
                raise UsageError(f"{what} is required (see: in9 {command} --help)")
        run = find_command(command)
    finally:
        logging.disable(logging.NOTSET)
    return run(arguments, rest) if has_graph else run(arguments)


def find_command(command: str) -> Callable[..., int]:
    """The function of a command: it takes the parsed arguments, and the flags of Beam if the
    command runs a graph; it returns the exit code."""
    match command:
        case "run" | "generate" | "evaluate" | "attack" | "saliency":
            from pipeline.commands.run import run_main

            return run_main
        case "train":
            from pipeline.commands.train import run_train

            return run_train
        case "matrix":
            from pipeline.commands.matrix import run_matrix

            return run_matrix
        case "models":
            from pipeline.commands.models import run_models

            return run_models
        case "report":
            from pipeline.commands.report import run_report

            return run_report
        case "export":
            from pipeline.commands.export_released import run_export

            return run_export
        case "import":
            from pipeline.commands.import_released import run_import

            return run_import
        case "verify":
            from pipeline.commands.verify import run_verify

            return run_verify
    raise KeyError(command)
