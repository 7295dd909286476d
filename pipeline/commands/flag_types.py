"""What values of flags are, and how they are read."""

from __future__ import annotations

import argparse


def boolean(text: str) -> bool:
    """Parses `true` or `false`, as templates pass them."""
    lowered = text.lower()
    if lowered not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
    return lowered == "true"


def names(text: str) -> tuple[str, ...]:
    """Parses a list, separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def count(text: str) -> int:
    """Parses a number that is at least 1."""
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def share(text: str) -> float:
    """Parses a share from 0 to below 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to below 1, got {text!r}")
    return value


def grid(text: str) -> tuple[int | None, int | None]:
    """Parses how many foregrounds meet how many backgrounds: `all` or a number of images for
    both, or one of these for each, with an x between; None is all."""
    sides = text.split("x")
    if len(sides) > 2 or not all(
        side == "all" or (side.isdecimal() and int(side) > 0) for side in sides
    ):
        raise argparse.ArgumentTypeError(
            f"expected all, a number of images, or two as in 100x200, got {text!r}"
        )
    foregrounds, backgrounds = (
        None if side == "all" else int(side) for side in (sides[0], sides[-1])
    )
    return foregrounds, backgrounds


class Words:
    """Parses a list of some words, separated by commas; none of them is an error that lists them.

    Args:
      known: the words.
    """

    def __init__(self, *known: str) -> None:
        self.known = known

    def __call__(self, text: str) -> tuple[str, ...]:
        given = names(text)
        if not given or set(given) - set(self.known):
            expected = f"{'some of ' if self.known[1:] else ''}{', '.join(self.known)}"
            raise argparse.ArgumentTypeError(f"expected {expected}: got {text!r}")
        return given
