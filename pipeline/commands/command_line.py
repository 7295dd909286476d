"""Parses a command line together with the flags of its `--config` file."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Iterator, Mapping, Sequence

from pipeline.commands.flags import flags_of
from pipeline.commands.hints import check_rest, flag_of
from pipeline.commands.parser import build_parser
from pipeline.errors import UsageError
from pipeline.storage.files import absolute, files_of
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
