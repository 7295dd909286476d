"""Runs a command. Its module is imported only then, so that `in9 verify`, for example, does not
wait for Beam and torch."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from importlib import import_module

from pipeline.commands.flags import flags_of
from pipeline.commands.parser import COMMANDS
from pipeline.errors import UsageError
from pipeline.storage.files import absolute, files_of, is_below, is_remote, join


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
        refuse_cleared(arguments)
    finally:
        logging.disable(logging.NOTSET)
    return run(arguments, rest) if COMMANDS[command].has_graph else run(arguments)


def refuse_cleared(arguments: argparse.Namespace) -> None:
    """Refuses files and folders that the command is to read, but that lie where it removes files.

    Args:
      arguments: the parsed arguments of any command.

    Raises:
      UsageError: a flag names such a place.
    """
    for flag in flags_of(arguments.command):
        value = getattr(arguments, flag.dest, None)
        if flag.dest != "models" and not {"DIR", "FILE"} & {*flag.metavar.split("|")}:
            continue
        for word in value if isinstance(value, tuple) else (value,) if value else ():
            for path in _paths_of_entry(word) if flag.dest == "models" else (absolute(word),):
                for cleared in _cleared_folders(arguments, path):
                    if is_below(path, cleared):
                        raise UsageError(
                            f"{flag.name} {word} lies in {cleared}, where files are replaced and "
                            "removed; name a place outside of it"
                        )


def _paths_of_entry(entry: str) -> Iterator[str]:
    """Yields the absolute paths that an entry of `--models` may name."""
    for mark in ("=", ":", "@"):
        text = entry.partition(mark)[2]
        if is_remote(text) or (text and os.path.exists(os.path.expanduser(text))):
            yield absolute(text)


def _cleared_folders(arguments: argparse.Namespace, path: str) -> Iterator[str]:
    """Yields the folders in which a command removes files and above which a path may lie."""
    from pipeline.dataset.latest import VERSION
    from pipeline.dataset.shards import DATA_FOLDERS
    from pipeline.storage.store import WORK_FOLDER

    dataset = (*DATA_FOLDERS, "results", WORK_FOLDER)
    for name, folders in (("output", dataset), ("dataset", dataset), ("to", (WORK_FOLDER,))):
        if root := getattr(arguments, name, None):
            yield from (join(absolute(root), folder) for folder in folders)
    if (root := getattr(arguments, "publish", None)) and is_below(path, absolute(root)):
        names = files_of(root).folder_names(absolute(root))
        yield from (join(absolute(root), name) for name in names if VERSION.fullmatch(name))


def find_command(command: str) -> Callable[..., int]:
    """Imports the function of a command."""
    module, _, function = COMMANDS[command].function.partition(":")
    run: Callable[..., int] = getattr(import_module(f"pipeline.commands.{module}"), function)
    return run
