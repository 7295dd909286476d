"""From the words of a command line, and the file of flags that they name, to parsed arguments."""

from __future__ import annotations

import argparse
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.commands.flags import flags_of
from pipeline.commands.parser import COMMANDS, build_parser, refuse_near_misses, underscored
from pipeline.errors import UsageError
from pipeline.storage.files import absolute, files_of


def parse_command_line(words: Sequence[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line.

    Args:
      words: behind `in9`, those of the process if None.

    Returns:
      (arguments, what is not ours: for Beam).

    Raises:
      UsageError: what is not as argparse wants it, or as a file of flags should be.
    """
    parser = build_parser()
    words = sys.argv[1:] if words is None else list(words)
    arguments, rest = parser.parse_known_args(words)
    if arguments.config is None:
        return arguments, rest
    # Who names a command first says nothing before it that is not answered at once.
    command, others = words[0], words[1:]
    given = {_flag(word) for word in others}
    try:
        of_file = [
            word
            for name, value in _read(absolute(arguments.config)).items()
            for word in _words(command, f"--{name}", value)
            if _flag(word) not in given
        ]
        arguments, together = parser.parse_known_args([command, *of_file, *others])
        check_rest(command, [word for word in together if word in of_file])
    except UsageError as error:
        raise UsageError(f"--config {arguments.config}: {error}") from error
    return arguments, together


def check_rest(command: str, rest: Sequence[str]) -> None:
    """Refuses what is neither a flag of a command nor, where it runs a graph, one of Beam's.

    Args:
      command: its name.
      rest: what the parser did not know.

    Raises:
      UsageError: the first of it, with what was meant.
    """
    if not rest:
        return
    names = [flag.name for flag in flags_of(command)]
    refuse_near_misses(rest, names)
    from pipeline.runners.run import check_unknown

    check_unknown(rest, names)
    if not COMMANDS[command].has_graph:
        raise UsageError(f"{rest[0]} is for commands that run a Beam pipeline")


def text_of(value: Any) -> str:
    """A value as one gives it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


def _flag(word: str) -> str:
    return underscored(word).partition("=")[0]


def _read(path: str) -> Mapping[str, Any]:
    files = files_of(path)
    if files.info(path) is None:
        raise UsageError("there is no such file")
    with files.open(path) as file:
        try:
            return tomllib.loads(file.read().decode())
        except ValueError as error:
            raise UsageError(f"it is no TOML: {error}") from error


def _words(command: str, flag: str, value: Any) -> Iterator[str]:
    """A key and its value as words of a command line."""
    if isinstance(value, dict):
        raise UsageError(f"[{flag[2:]}] is a table; keys are flags of in9 {command}")
    if flag in ("--config", "--help"):
        raise UsageError(f"{flag} is for the command line")
    if _flag(flag) in {one.name for one in flags_of(command)}:
        yield f"{flag}={text_of(value)}"
    elif isinstance(value, bool):
        # Beam's are there or not, and lists of its are flags that are given again.
        yield from [flag] * value
    else:
        yield from (f"{flag}={one}" for one in (value if isinstance(value, list) else [value]))
