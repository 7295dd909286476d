"""Text for little room: aligned tables, estimates with their intervals, short names of models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from pipeline.display.verdicts import estimate_of
from pipeline.evaluate.results import Named

TIMES = "\N{MULTIPLICATION SIGN}"


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Aligns the cells of a table: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )


class _Tested(Protocol):
    @property
    def n(self) -> int: ...
    @property
    def chance(self) -> float | None: ...


def describe_chance(rows: Iterable[_Tested]) -> str:
    """Says what a constant answer would score on the pictures tested; "" if no pictures were
    tested."""
    levels = sorted(
        {f"{100 * row.chance:.1f}" for row in rows if row.n and row.chance is not None}, key=float
    )
    if not levels:
        return ""
    span = levels[0] if len(levels) == 1 else f"{levels[0]} to {levels[-1]}"
    return (
        f"A constant answer gets {span} %, the share of the largest class among the pictures tested"
    )


def interval(value: float, low: float, high: float) -> str:
    """Formats a fraction and its interval in percent, such as `7.1 [-1.6, 16.7]`."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def percent_interval(value: float | None, low: float | None, high: float | None) -> str:
    """Formats a fraction and its interval in percent; a dash if one of them is None."""
    estimate = estimate_of(value, low, high)
    return interval(*estimate) if estimate else "-"


class ShortName(NamedTuple):
    """A model's short name in two parts: its architecture, and what distinguishes it from other
    models of the same architecture (its weights, its source, and settings that are not the
    default)."""

    first: str
    rest: str


def names_of(models: Sequence[Named]) -> list[ShortName]:
    """Returns the short names of models. Folders of their files are left out, unless two names
    would then be the same."""
    short = [_name(one, with_folders=False) for one in models]
    return [
        name if short.count(name) == 1 else _name(one, with_folders=True)
        for one, name in zip(models, short, strict=True)
    ]


def _name(named: Named, *, with_folders: bool) -> ShortName:
    model = named.model
    settings = named.name.removeprefix(model).strip()
    kind, colon, name = model.partition(":")
    if "=" in (kind if colon else model):
        first, _, rest = model.partition("=")
        rest = rest if with_folders else rest.rpartition("/")[2]
    elif colon:
        is_file = kind == "onnx" and not with_folders
        first, rest = name.rpartition("/")[2] if is_file else name, kind
    else:
        first, _, rest = model.partition(".")
    return ShortName(first, " ".join(filter(None, (rest, settings))))


def shorten(name: str, length: int = 30) -> str:
    """Cuts the middle out of a name that is too long, because tags at the end tell models apart.

    >>> shorten("vit_base_patch16_clip_224.openai", 12)
    'vit_ba…penai'
    """
    if len(name) <= length:
        return name
    tail = (length - 1) // 2
    return f"{name[: length - 1 - tail]}…{name[-tail:]}"
