"""Text for a terminal: aligned tables, and estimates with their intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from pipeline.display.verdicts import estimate_of

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
