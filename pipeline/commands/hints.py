"""Refuses words that a command does not take, and suggests what was meant."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Sequence

from pipeline.analyses import ANALYSES
from pipeline.commands.flags import flags_of
from pipeline.commands.parser import COMMANDS, underscored
from pipeline.errors import UsageError, did_you_mean
from pipeline.runtime.flag_types import Flag, WordListParser, comma_separated

_NEAR_MISS = 0.85
"""Similarity, as difflib's ratio (0 to 1), from which an unknown flag counts as a misspelling of
our flag. All of Beam's flags are less similar to ours than that."""

_COUNTERPARTS = (
    ("--output", "--to", "--dataset"),
    ("--dataset", "--output", "--to"),
    ("--to", "--output", "--dataset"),
    ("--input", "--from", "--dataset"),
    ("--from", "--input", "--dataset"),
    ("--models", "--arch"),
    ("--arch", "--models"),
    *(
        pair
        for analysis in ANALYSES
        if analysis.runs_models and analysis.sections
        for _, flag in analysis.job_flags
        # The flag of other commands has the value of the first flag of its own command.
        for pair in itertools.permutations((flag.name, analysis.sections[0].flags[0].name))
    ),
    ("--split", "--eval_split"),
    ("--eval_split", "--split"),
)
"""Each row is a flag, then the flags that take its place in other commands, best first."""


def check_rest(command: str, rest: Sequence[str], words: Sequence[str]) -> None:
    """Refuses words that are neither a command's own flags nor, if the command runs a graph, flags
    of Beam.

    Args:
      command: name of the command.
      rest: the words that the parser did not know.
      words: all words after the command.

    Raises:
      UsageError: a word is refused; the message suggests what was meant.
    """
    if not rest:
        return
    own = flags_of(command)
    for word in rest:
        if word.startswith("--"):
            refuse_near_misses(flag_of(word), own)
            _refuse_sibling(flag_of(word), own)
    has_graph = COMMANDS[command].has_graph
    if not has_graph and not rest[0].startswith("-"):
        raise UsageError(_describe_argument(rest[0], own, words))
    # Keep Beam from logging, on import, which of its optional parts are not installed.
    logging.disable(logging.WARNING)
    try:
        from pipeline.runners.beam_options import unknown_to_beam
    finally:
        logging.disable(logging.NOTSET)
    unknown, known = unknown_to_beam(rest)
    if unknown and not unknown[0].startswith("-"):
        raise UsageError(_describe_argument(unknown[0], own, words))
    if unknown:
        flag = flag_of(unknown[0])
        every = [one.name for one in own] + (known if has_graph else [])
        hint = did_you_mean(flag, every) or f"; see: in9 {command} --help all"
        raise UsageError(f"unknown flag {flag}{hint}")
    if not has_graph:
        raise UsageError(f"{rest[0]} is for commands that run a Beam pipeline; leave it out")


def flag_of(word: str) -> str:
    """Returns the name of the flag in a word, without the value that may follow `=`."""
    return underscored(word).partition("=")[0]


def refuse_near_misses(flag: str, own: Iterable[Flag]) -> None:
    """Refuses a misspelt flag of ours, without the slow import of Beam to ask for its flags.

    Args:
      flag: a flag that the parser did not know.
      own: flags of the command.

    Raises:
      UsageError: the flag is a misspelling; the message names the flag that was meant.
    """
    if hint := did_you_mean(flag, (one.name for one in own), _NEAR_MISS):
        raise UsageError(f"unknown flag {flag}{hint}")


def _refuse_sibling(flag: str, own: Sequence[Flag]) -> None:
    """Refuses a flag of other commands, and names its counterpart in this one."""
    others = [name for name in COMMANDS if flag in {one.name for one in flags_of(name)}]
    if not others:
        return
    known = {one.name: one for one in own}
    counterparts = next((names for first, *names in _COUNTERPARTS if first == flag), [])
    meant = next((known[name] for name in counterparts if name in known), None)
    if meant:
        text = meant.help.removesuffix(" (required)")
        raise UsageError(f"this command has no {flag}; say {meant.name} {meant.metavar}: {text}")
    raise UsageError(f"this command has no {flag}, which is a flag of in9 {', '.join(others)}")


def _describe_argument(argument: str, own: Sequence[Flag], words: Sequence[str]) -> str:
    """Describes a word that belongs to no flag, and says which flag the user may have meant."""
    before = list(words[: words.index(argument)])
    while before and not before[-1].startswith("--"):
        before.pop()
    last = underscored(before[-1]) if before else ""
    given_flags = {flag_of(word) for word in words}
    for flag in own:
        if flag.name == last and (
            flag.type is comma_separated or isinstance(flag.type, WordListParser)
        ):
            parts = words[len(before) : words.index(argument) + 1]
            return f"unexpected argument {argument!r}: say {flag.name} {','.join(parts)}"
    for flag in own:
        if flag.name not in given_flags and (flag.is_required or flag.name == "--input"):
            return f"unexpected argument {argument!r}: say {flag.name} {argument}"
    return f"unexpected argument {argument!r}; flags look like --name=value"


def require_cuda(otherwise: str) -> None:
    """Refuses `--device cuda` on a machine without CUDA.

    Args:
      otherwise: what the command can do on a CPU instead, as a verb for the message, such as
        `train`.

    Raises:
      UsageError: CUDA is missing; the message says why.
    """
    import torch

    if torch.cuda.is_available():
        return
    why = (
        "this PyTorch was built without CUDA, so install one with it (https://pytorch.org)"
        if torch.version.cuda is None
        else "PyTorch finds no GPU, so check that nvidia-smi lists one"
    )
    raise UsageError(f"--device cuda: {why}, or leave --device out to {otherwise} on the CPU")
