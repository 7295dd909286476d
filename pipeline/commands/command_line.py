"""Parses a command line together with the flags of its `--config` file, and runs the command, whose
module is imported only then, so that `in9 verify`, for example, does not wait for Beam and torch.
"""

from __future__ import annotations

import argparse
import logging
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module

from pipeline.commands.flags import flags_of
from pipeline.commands.hints import check_rest, flag_of
from pipeline.commands.parser import COMMANDS, build_parser
from pipeline.errors import UsageError
from pipeline.storage.files import absolute, files_of, is_below, is_remote, join
from transforms.limits import load_nested


def parse_command_line(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line.

    Args:
      words: the words after `in9`.

    Returns:
      (parsed arguments, the words that are flags of Beam).

    Raises:
      UsageError: a word is wrong, or the `--config` file is unreadable or wrong.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words or ["--help"])
    command, *others = words
    if command != arguments.command:
        raise UsageError(f"flags stand behind the command: in9 {arguments.command} {command}")
    check_rest(command, rest, others)
    if arguments.config is None:
        return arguments, rest
    given_flags = {flag_of(word) for word in others}
    try:
        file_words = [
            word
            for name, value in _read(absolute(arguments.config)).items()
            for word in _words(command, f"--{name}", value)
            if flag_of(word) not in given_flags
        ]
        arguments, rest = parser.parse_known_args([command, *file_words, *others])
        check_rest(command, [word for word in rest if word in file_words], file_words)
    except UsageError as error:
        raise UsageError(f"--config {arguments.config}: {error}") from error
    return arguments, rest


def text_of(value: object) -> str:
    """Returns a value as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def _read(path: str) -> Mapping[str, object]:
    files = files_of(path)
    try:
        if files.info(path) is None:
            raise UsageError("there is no such file")
        with files.open(path) as file:
            flags: dict[str, object] = load_nested(tomllib.loads, file.read().decode())  # noqa: TID251
            return flags
    except OSError as error:
        raise UsageError(f"it cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UsageError(f"it is not valid TOML: {error}") from error


def _words(command: str, flag: str, value: object) -> Iterator[str]:
    """Yields the words of a command line that stand for a key of the file and its value."""
    if isinstance(value, dict):
        raise UsageError(f"[{flag[2:]}] is a table; keys are flags of in9 {command}")
    if flag in ("--config", "--help"):
        raise UsageError(f"{flag} is only for the command line; leave it out of the file")
    if flag_of(flag) in {one.name for one in flags_of(command)}:
        yield f"{flag}={text_of(value)}"
    elif isinstance(value, bool):
        # Beam's switches take no value, and a list is given by repeating the flag.
        yield from [flag] * value
    else:
        yield from (f"{flag}={one}" for one in (value if isinstance(value, list) else [value]))


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
