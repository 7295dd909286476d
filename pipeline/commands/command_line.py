"""From the words of a command line, and the file of flags that they name, to parsed arguments."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.commands.flags import flags_of
from pipeline.commands.hints import check_rest, flag_of
from pipeline.commands.parser import build_parser
from pipeline.errors import UsageError
from pipeline.storage.files import absolute, files_of


def parse_command_line(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line.

    Args:
      words: behind `in9`.

    Returns:
      (arguments, what is not ours: for Beam).

    Raises:
      UsageError: the first word that is wrong, or what is wrong with the file.
    """
    parser = build_parser()
    arguments, rest = parser.parse_known_args(words)
    # What may stand before the command has been answered.
    command, *others = words
    check_rest(command, rest, others)
    if arguments.config is None:
        return arguments, rest
    given = {flag_of(word) for word in others}
    try:
        of_file = [
            word
            for name, value in _read(absolute(arguments.config)).items()
            for word in _words(command, f"--{name}", value)
            if flag_of(word) not in given
        ]
        arguments, together = parser.parse_known_args([command, *of_file, *others])
        check_rest(command, [word for word in together if word in of_file], of_file)
    except UsageError as error:
        raise UsageError(f"--config {arguments.config}: {error}") from error
    return arguments, together


def text_of(value: Any) -> str:
    """A value as one gives it on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value)


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
    if flag_of(flag) in {one.name for one in flags_of(command)}:
        yield f"{flag}={text_of(value)}"
    elif isinstance(value, bool):
        # Beam's are there or not, and lists of its are flags that are given again.
        yield from [flag] * value
    else:
        yield from (f"{flag}={one}" for one in (value if isinstance(value, list) else [value]))
