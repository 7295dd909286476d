"""Runs a command. Its module is imported only then, so that `in9 verify`, for example, does not
wait for Beam and torch."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable
from importlib import import_module

from pipeline.commands.flags import flags_of
from pipeline.commands.parser import COMMANDS
from pipeline.errors import UsageError


def run_command(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Runs a parsed command.

    Args:
      arguments: the parsed arguments, from `parse_command_line`.
      rest: the words that the parser did not know, which are flags for Beam.

    Returns:
      The exit code.

    Raises:
      UsageError: wrong usage or unreadable input.
      JobError: the job failed.
    """
    command = arguments.command
    # Keep Beam from logging, on import, which of its optional parts are not installed.
    logging.disable(logging.WARNING)
    try:
        # Checked here because argparse would name a missing flag before a misspelt one.
        for flag in flags_of(command):
            if flag.is_required and not getattr(arguments, flag.dest):
                raise UsageError(
                    f"{flag.name} {flag.metavar} is required (see: in9 {command} --help)"
                )
        run = find_command(command)
    finally:
        logging.disable(logging.NOTSET)
    return run(arguments, rest) if COMMANDS[command].has_graph else run(arguments)


def find_command(command: str) -> Callable[..., int]:
    """Imports the function of a command."""
    module, _, function = COMMANDS[command].function.partition(":")
    run: Callable[..., int] = getattr(import_module(f"pipeline.commands.{module}"), function)
    return run
