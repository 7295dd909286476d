"""Parses a command line together with the flags of its `--config` file, and runs the command.

The command's module is imported only then, so that `in9 verify`, for example, does not wait for
Beam and torch.

Words that a command does not take are refused, and the message suggests what was meant.
"""

import argparse
import os
import pkgutil
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from pipeline.commands.flags import flags_of
from pipeline.commands.parser import COMMANDS, build_parser, underscored
from pipeline.errors import UsageError, did_you_mean
from pipeline.runtime.flag_types import Flag, text_of
from pipeline.runtime.machine import missing_to_compile
from pipeline.storage.files import absolute, files_of, is_below, is_remote, join
from transforms.limits import load_nested

T = TypeVar("T")

_NEAR_MISS = 0.8
"""Similarity, as difflib's ratio (0 to 1), from which an unknown flag counts as a misspelling of
our flag. All of Beam's flags are less similar to ours than that."""


def check_rest(command: str, rest: Sequence[str]) -> None:
    """Refuses words that are neither the command's flags nor, if it runs a graph, Beam's."""
    own, (_, example, _, has_graph) = flags_of(command), COMMANDS[command]
    advice = f"; example: {example} (see: in9 {command} --help all)"
    for flag in (flag_of(word) for word in rest if word.startswith("--")):
        refuse_near_misses(flag, own)
        if others := [one for one in COMMANDS if flag in {known.name for known in flags_of(one)}]:
            raise UsageError(
                f"this command has no {flag}, which is a flag of in9 {', '.join(others)}{advice}"
            )
    unknown, known = list(rest), [one.name for one in own]
    if rest and has_graph:
        from pipeline.runners.beam_options import unknown_to_beam

        unknown, of_beam = unknown_to_beam(rest)
        known += of_beam
    if unknown and unknown[0].startswith("-"):
        flag = flag_of(unknown[0])
        raise UsageError(f"unknown flag {flag}{did_you_mean(flag, known) or advice}")
    if unknown:
        raise UsageError(f"unexpected argument {unknown[0]!r}{advice}")


def flag_of(word: str) -> str:
    """Returns the name of the flag in a word, without the value that may follow `=`."""
    return underscored(word).partition("=")[0]


def refuse_near_misses(flag: str, own: Iterable[Flag]) -> None:
    """Refuses a misspelt flag of this project without importing Beam, which is slow.

    Raises:
      UsageError: the flag is a misspelling; the message names the flag that was meant.
    """
    if hint := did_you_mean(flag, (one.name for one in own), _NEAR_MISS):
        raise UsageError(f"unknown flag {flag}{hint}")


def flags_as(kind: type[T], arguments: argparse.Namespace) -> T:
    """Makes the frozen value of a type whose fields have the names of flags.

    Files and folders become absolute paths. Only commands see parsed arguments; what lies below
    them gets such values, whose types are defined where they are used.
    """
    # Imported late, because it imports NumPy, and help should not wait for that.
    from pipeline.storage.state_files import convert

    paths = {flag.dest for flag in flags_of(arguments.command) if flag.is_path}
    given = vars(arguments).items()
    return convert({n: absolute(v) if v and n in paths else v for n, v in given}, kind)


def check_device(device: str | None, otherwise: str, *, is_compiled: bool = False) -> None:
    """Refuses `--device cuda` on a machine without CUDA, and `--compile` without a compiler.

    Args:
      otherwise: what the command can do on a CPU instead, as a verb for the message, such as
        `train`.

    Raises:
      UsageError: CUDA or a compiler is missing; the message says why.
    """
    if device != "cuda" and not is_compiled:
        return
    import torch

    has_gpu = device != "cpu" and torch.cuda.is_available()
    if is_compiled and (missing := missing_to_compile(has_gpu)):
        raise UsageError(f"--compile needs {missing}: install it, or leave --compile out")
    if has_gpu or device != "cuda":
        return
    why = (
        "this PyTorch was built without CUDA, so install one with it (https://pytorch.org)"
        if torch.version.cuda is None
        else "PyTorch finds no GPU, so check that nvidia-smi lists one"
    )
    raise UsageError(f"--device cuda: {why}, or leave --device out to {otherwise} on the CPU")


def parse_command_line(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parses a command line.

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
    check_rest(command, rest)
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
        check_rest(command, [word for word in rest if word in file_words])
    except UsageError as error:
        raise UsageError(f"--config {arguments.config}: {error}") from error
    return arguments, rest


def _read(path: str) -> Mapping[str, object]:
    try:
        with files_of(path).open(path) as file:
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
      rest: the words that the parser did not know, which are flags for Beam.
    """
    command = arguments.command
    # Checked here because argparse would name a missing flag before a misspelt one.
    for flag in flags_of(command):
        if flag.is_required and not getattr(arguments, flag.dest):
            raise UsageError(f"{flag.name} {flag.metavar} is required (see: in9 {command} --help)")
    run = find_command(command)
    refuse_cleared(arguments)
    return run(arguments, rest) if COMMANDS[command].has_graph else run(arguments)


def refuse_cleared(arguments: argparse.Namespace) -> None:
    """Refuses files and folders to read that lie where the command removes files."""
    for flag in flags_of(arguments.command):
        value = getattr(arguments, flag.dest, None)
        # A baseline is among what jobs leave there: the results of a model, or a version.
        if flag.dest == "baseline" or (
            flag.dest != "models" and not {"DIR", "FILE"} & {*flag.metavar.split("|")}
        ):
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
    from pipeline.dataset.manifest import VERSION
    from pipeline.dataset.records import DATA_FOLDERS
    from pipeline.storage.store import WORK_FOLDER

    dataset = (*DATA_FOLDERS, "results", WORK_FOLDER)
    for name, folders in (("output", dataset), ("dataset", dataset), ("to", (WORK_FOLDER,))):
        if root := getattr(arguments, name, None):
            yield from (join(absolute(root), folder) for folder in folders)
    if (root := getattr(arguments, "publish", None)) and is_below(path, absolute(root)):
        names = files_of(root).folder_names(absolute(root))
        yield from (join(absolute(root), name) for name in names if VERSION.fullmatch(name))


def find_command(command: str) -> Callable[..., int]:
    run: Callable[..., int] = pkgutil.resolve_name(
        f"pipeline.commands.{COMMANDS[command].function}"
    )
    return run
