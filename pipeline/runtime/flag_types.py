"""Types for the table in `flags.py`: `Flag`, `Section`, and the parsers of flag values."""

import argparse
import functools
from collections.abc import Callable
from typing import NamedTuple

from pipeline.errors import did_you_mean
from transforms.limits import MAX_STATED


def given(text: str) -> str:
    """Refuses an empty value, which a script passes whose variable is not set."""
    if not text:
        raise argparse.ArgumentTypeError("expected a value, got ''")
    return text


KEYS = frozenset(
    {
        *("pixel_cache", "batch_size", "gpu", "images_per_shard", "encoding", "jpeg_quality"),
        *("interpolation", "resize", "max_box", "min_visible", "min_foreground", "grabcut_seed"),
        *("missing_answers", "creator", "contact", "terms"),
    }
)
"""Flags that few jobs need, and that are given as keys of the file of `--config` alone."""


def as_given(name: str) -> str:
    """Returns how a flag's name is written: with dashes, unless it is a key of the file only.

    >>> as_given("seed"), as_given("encoding")
    ('--seed', 'encoding')
    """
    return name if name in KEYS else f"--{name}"


class Flag(NamedTuple):
    """A command-line flag, or positional argument: the arguments of argparse's `add_argument`."""

    name: str
    metavar: str
    help: str
    default: object = None
    type: Callable[[str], object] = given
    choices: tuple[str, ...] | None = None
    nargs: str | None = None
    const: object = None
    action: str = "store"

    @property
    def dest(self) -> str:
        """Name of its value among the parsed arguments."""
        return self.name.removeprefix("--")

    @property
    def default_text(self) -> str:
        """Its default as typed on the command line; empty without one."""
        return "" if self.default is None else text_of(self.default)

    @property
    def full_help(self) -> str:
        """Its help text with its default, unless there is none or the flag is a switch."""
        has_visible_default = self.default_text and not isinstance(self.default, bool)
        return f"{self.help} (default: {self.default_text})" if has_visible_default else self.help

    @property
    def is_path(self) -> bool:
        """Whether its value is a path for the job; that of `--config` is for the command line."""
        return self.metavar in ("DIR", "FILE", "PHOTO") and self.name != "--config"

    @property
    def in_file(self) -> bool:
        """Whether the file of `--config` gives it, and the command line does not.

        `--batch_size` of a training is given by both, because it decides on the result.
        """
        return self.dest in KEYS and self not in LEARNING

    @property
    def is_required(self) -> bool:
        return "(required)" in self.help


class Section(NamedTuple):
    """Flags of a group, and the commands that have them; None for every command.

    In a command's help, sections with the same title share a heading; they must be adjacent, so
    that the flags have the same order everywhere. An empty title means no heading.
    """

    title: str
    commands: tuple[str, ...] | None
    flags: tuple[Flag, ...]


def text_of(value: object) -> str:
    """Returns a value as it is typed on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def boolean(text: str) -> bool:
    """Parses `true` or `false`, as Dataflow templates pass them."""
    lowered = text.lower()
    if lowered not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return lowered == "true"


def comma_separated(text: str) -> tuple[str, ...]:
    """Parses a comma-separated list of at least one word."""
    words = _words(text)
    if not words:
        raise argparse.ArgumentTypeError(f"expected words separated by commas, got {text!r}")
    return words


def statement(text: str) -> str:
    """Parses a line of text for people; it may be empty."""
    if len(text) > MAX_STATED or not text.isprintable():
        raise argparse.ArgumentTypeError(
            f"expected a line of printable text, at most {MAX_STATED} characters: got {text!r:.40}"
        )
    return text.strip()


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def count(text: str) -> int:
    """Parses a whole number of at least 1."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def seeds(text: str) -> tuple[int, ...]:
    """Parses whole numbers that differ."""
    numbers = tuple(int(word) for word in _words(text) if word.isdecimal())
    if len(set(numbers)) != text.count(",") + 1:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers that differ, separated by commas, got {text!r}"
        )
    return numbers


def share(text: str) -> float:
    """Parses a fraction: at least 0 and less than 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(
            f"expected a fraction, at least 0 and less than 1, got {text!r}"
        )
    return value


def grid(text: str) -> tuple[int | None, int | None]:
    """Parses numbers of foregrounds and backgrounds: one value, or two as in 100x200.

    Each is `all` (returned as None) or a number of images.
    """
    sides = text.split("x")
    if len(sides) > 2 or not all(
        side == "all" or (side.isdecimal() and int(side) > 0) for side in sides
    ):
        raise argparse.ArgumentTypeError(
            "expected 'all', a number of images, or two of these joined by x, as in 100x200, "
            f"got {text!r}"
        )
    foregrounds, backgrounds = (
        None if side == "all" else int(side) for side in (sides[0], sides[-1])
    )
    return foregrounds, backgrounds


def some_of(known: tuple[str, ...], text: str) -> tuple[str, ...]:
    """Parses a comma-separated list of at least one of the known words."""
    words = _words(text)
    unknown = [word for word in words if word not in known]
    if not words or unknown:
        expected = f"{'some of ' if known[1:] else ''}{', '.join(known)}"
        hint = did_you_mean("".join(unknown[:1]), known)
        raise argparse.ArgumentTypeError(f"expected {expected}: got {text!r}{hint}")
    return words


def switch(name: str, text: str) -> Flag:
    """Makes a flag that is true if given without a value or with the value `true`."""
    return Flag(name, "true", text, default=False, type=boolean, nargs="?", const=True)


def choice(name: str, words: tuple[str, ...], text: str, metavar: str = "") -> Flag:
    """Makes a flag whose value is one of the words; the first word is the default."""
    return Flag(name, metavar or "|".join(words), text, words[0], choices=words)


def overwrite(*known: str) -> Flag:
    """Makes an `--overwrite` flag from the words that it takes; each word lifts one refusal."""
    text = "accept changes that a run refuses; its error message names the word for each"
    parse = functools.partial(some_of, known)
    return Flag("--overwrite", ",".join(known), text, (), parse, nargs="?", const="")


ALLOW_OVERLAP = switch(
    "--allow_overlap", "also test on images that the model was trained on, and mark the results"
)

RENDERINGS = Flag(
    "--renderings",
    "A,B",
    "fills of your own for the background's box, python:MODULE:FUNCTION; see docs/variants.md",
    (),
    comma_separated,
)

WATERBIRDS = (
    Flag(
        "--variants",
        "A,B",
        "waterbirds: mixed variants of training and of the test",
        type=comma_separated,
    ),
    Flag(
        "--classes",
        "A,B",
        "waterbirds: keep what shows only these superclasses, as 0 and 1 (default: all)",
        type=comma_separated,
    ),
    Flag("--holdout", "X", "waterbirds: hold this share out for the test", 0.0, share),
)
"""Flags of `--layout waterbirds`."""

LEARNING = (
    Flag("--weights", "DIR", "folder of initial weights; see: in9 models fetch"),
    Flag("--epochs", "N", "passes over the training images", 200, count),
    Flag("--batch_size", "N", "images in a training step", 256, count),
    Flag(
        "--lr",
        "X",
        "initial learning rate; divided by 10 after each quarter of the epochs",
        0.1,
        float,
    ),
    Flag(
        "--seeds",
        "A,B",
        "seeds of training, each of which makes a model of its own; on a CPU, the same seed gives "
        "the same weights",
        (0,),
        seeds,
    ),
)

TRAIN_JOB = (
    choice(
        "--device", ("auto", "cpu", "cuda"), "device to train on; cuda fails if there is no GPU"
    ),
    choice(
        "--precision",
        ("auto", "fp32", "tf32", "bf16", "fp16"),
        "numeric precision of training: fp32, tf32, bf16, fp16; auto is fp32 on a CPU, bf16 on a "
        "GPU, and fp16 on a GPU without bf16",
        "NAME",
    ),
    Flag(
        "--workers",
        "N",
        "processes that load pictures (default: 1 on a CPU; on a GPU one per core, up to 16)",
        type=int,
    ),
)
"""`LEARNING` and `TRAIN_JOB` are flags of training, which two commands share."""


def section(title: str, commands: tuple[str, ...] | None, *flags: Flag) -> Section:
    """Makes a section from its flags."""
    return Section(title, commands, flags)
