"""The train x test matrix: the effect of training on each variant, compared with table 5 of the
paper."""

from __future__ import annotations

import dataclasses

from pipeline.analyses.matrix.results import CellRow, Gain, Matrix, RowGap
from pipeline.display.evidence import Evidence
from pipeline.display.panel import Panel
from pipeline.display.text import aligned, describe_chance
from pipeline.errors import counted
from pipeline.training.penalty import describe_penalty

COMMAND = "in9 matrix --dataset . --probe --holdout 0.5"
MATRIX_PARTS = ("accuracy", "published", "difference")
"""The figures of a matrix: our accuracies, the paper's, and their differences."""


def matrix_file(name: str, part: str) -> str:
    """Returns the name of the SVG file of a matrix's figure, one of `MATRIX_PARTS`."""
    return f"matrix-{name}-{part}.svg"


@dataclasses.dataclass(frozen=True)
class ShownMatrix:
    """The matrix of one network.

    Attributes:
      name: name of the matrix.
      method: how the network was trained and tested, in words.
      penalties: (variant that a probe was trained on, its penalty in words).
      columns: variants that the network was tested on.
      rows: (variant trained on, number of training images, cells by column, BG-Gap or None).
      gaps: which rows' BG-Gaps differ from 0, in words.
      gains: for each tested variant, a row with the change in accuracy from training on Mixed-Rand
        instead of Original.
      images: smallest and largest number of images that a cell was tested on.
      chance: accuracy of a constant answer to these images, in words; "" if no cell has images.
      overlap: largest number of test images of a cell that were also training images.
      figures: names of its figures' files, whether they are drawn or not.
    """

    name: str
    method: str
    penalties: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, int, dict[str, CellRow], RowGap | None], ...]
    gaps: str
    gains: tuple[Gain, ...]
    images: tuple[int, int]
    chance: str
    overlap: int
    figures: tuple[str, ...]


def make_matrices(evidence: Evidence) -> tuple[ShownMatrix, ...]:
    """Collects the panel's content."""
    return tuple(_shown(matrix) for matrix in evidence.get(Matrix))


def _shown(matrix: Matrix) -> ShownMatrix:
    gaps = {row.train_variant: row for row in matrix.gaps}
    by_row = matrix.by_row
    counts = [row.n for row in matrix.rows]
    return ShownMatrix(
        name=matrix.name,
        method=_describe_method(matrix),
        penalties=tuple(
            (name, describe_penalty(penalty))
            for name, cells in by_row.items()
            if (penalty := next(iter(cells.values())).penalty) is not None
        ),
        columns=matrix.columns,
        rows=tuple(
            (name, next(iter(cells.values())).train_n, cells, gaps.get(name))
            for name, cells in by_row.items()
        ),
        gaps=describe_gaps(matrix),
        gains=matrix.gains,
        images=(min(counts), max(counts)),
        chance=describe_chance(matrix.rows),
        overlap=max(row.overlap for row in matrix.rows),
        figures=tuple(matrix_file(matrix.name, part) for part in MATRIX_PARTS),
    )


def matrix_table(matrix: Matrix) -> str:
    """Formats a matrix as an aligned table of accuracies in percent: a row for each training
    variant, a column for each test variant.

    A note below it gives the smallest number of test images, the longer side of the widest interval
    and, if they matter, the draws and the test images that were trained on.
    """
    by_row = matrix.by_row
    table = [[f"{matrix.name}, %", *matrix.columns]]
    for train in matrix.columns:
        estimates = [
            cell.estimate if (cell := by_row.get(train, {}).get(test)) else None
            for test in matrix.columns
        ]
        table.append([train, *(f"{100 * one[0]:.1f}" if one else "-" for one in estimates)])
    sides = (
        max(value - low, high - value)
        for row in matrix.rows
        for value, low, high in ([row.estimate] if row.estimate else [])
    )
    fewest = counted(min(row.n for row in matrix.rows), "image")
    note = (
        f"trained on the row, tested on the column: at least {fewest}, "
        f"at most ± {100 * max(sides, default=0.0):.1f} points (95 %)"
    )
    if matrix.replicates > 1:
        note += f"; mixed variants: first of {matrix.replicates} draws"
    overlap = max((row.overlap for row in matrix.rows), default=0)
    if overlap:
        note += f"; up to {overlap} of the images were trained on"
    return f"{aligned(table)}\n{note}"


def describe_gaps(matrix: Matrix) -> str:
    """Says which rows' BG-Gaps differ from 0 by their intervals; "" if no row has a BG-Gap."""
    variants: dict[str, list[str]] = {"is above 0": [], "is below 0": [], "may be 0": []}
    for row in matrix.gaps:
        above, below = row.ci_low > 0, row.ci_high < 0
        outcome = "is above 0" if above else "is below 0" if below else "may be 0"
        variants[outcome].append(row.train_variant)
    parts = [
        f"{outcome} when trained on {', '.join(rows)}" for outcome, rows in variants.items() if rows
    ]
    return f"BG-Gap {'; '.join(parts)}" if parts else ""


def _describe_method(matrix: Matrix) -> str:
    if matrix.method == "probe":
        training = (
            f"the last layer of {matrix.arch} fitted on each variant (a linear probe), with "
            "all other layers as pretrained on ImageNet"
        )
    else:
        training = f"{matrix.arch}, trained on each variant"
    if matrix.holdout:
        share = f"{100 * matrix.holdout:.0f} %"
        return f"{training}; {share} of {matrix.split} is held out for testing"
    return f"{training} of {matrix.train_split}, tested on {matrix.split}"


MATRIX = Panel(
    id="matrix",
    place=7,
    template="matrix/panel.html",
    title="Training",
    make=lambda evidence, _: make_matrices(evidence),
    answers="Trained on one variant, tested on all",
    command=COMMAND,
)
