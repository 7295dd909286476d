"""Tables of results as text, aligned for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.evaluate.results import display_name
from transforms.variants import base_of


def accuracy_table(summaries: list[dict[str, Any]]) -> str:
    """Models x variants in percent, the paper's label rule, with BG-Gap; aligned."""
    variants: list[str] = []
    for summary in summaries:
        for row in summary["accuracy"]:
            # Replicates would make it too wide; BG-Gap is their mean.
            if row["variant"] not in variants and base_of(row["variant"]) == row["variant"]:
                variants.append(row["variant"])
    table = [["accuracy, %", *variants, "BG-Gap"]]
    for summary in summaries:
        accuracy = {
            row["variant"]: f"{100 * row['accuracy']:.1f}"
            for row in summary["accuracy"]
            if row["label_rule"] == "argmax_then_map" and row["n"]
        }
        gaps = [
            interval(row["gap"], row["ci_low"], row["ci_high"])
            for row in summary["gaps"]
            if row["label_rule"] == "argmax_then_map"
        ]
        cells = [accuracy.get(variant, "-") for variant in variants]
        table.append([display_name(summary), *cells, gaps[0] if gaps else "-"])
    return aligned(table)


def interval(value: float, low: float, high: float) -> str:
    """A fraction and its interval in percent: `7.1 [-1.6, 16.7]`."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def aligned(table: Sequence[Sequence[str]]) -> str:
    """Lines of a table of cells: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    )
