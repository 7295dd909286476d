"""Figures of matrices: heat maps of our accuracies, the paper's, and their differences."""

from collections.abc import Iterator

from pipeline.analyses.matrix.results import MATRIX_FIGURES, Matrix, matrix_file
from pipeline.display.plot import VERSIONS, Plot, heat_map
from pipeline.display.table import shorten
from pipeline.evaluate.evidence import TABLE_5_NAMES, Evidence


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figures of all matrices; those without figures of the paper are left out."""
    for matrix in evidence.get(Matrix):
        yield from _of_matrix(matrix)


def _of_matrix(matrix: Matrix) -> Iterator[Plot]:
    columns = matrix.columns
    short = [TABLE_5_NAMES.get(column, column) for column in columns]
    by_row = matrix.by_row
    cells = [[by_row.get(row, {}).get(column) for column in columns] for row in columns]
    of = f", mean of {len(matrix.trainings)}" if len(matrix.trainings) > 1 else ""
    titles = (
        f"{shorten(matrix.name, 30 - len(of))}{of}, %",
        "ResNet-50 of the paper, %",
        "difference, points",
    )
    for kind, title in zip(MATRIX_FIGURES, titles, strict=True):
        shares = [[getattr(cell, kind, None) for cell in line] for line in cells]
        if not any(share is not None for line in shares for share in line):
            continue
        starred = [[cell is not None and cell.differs for cell in line] for line in cells]
        spoken = "; ".join(
            f"{row}: "
            + ", ".join(
                f"{column} {100 * share:.0f}"
                for column, share in zip(columns, line, strict=True)
                if share is not None
            )
            for row, line in zip(columns, shares, strict=True)
        )
        yield Plot(
            "matrix",
            matrix_file(matrix.name, kind),
            f"{title}. Trained on the row, tested on the column. {spoken}",
            heat_map(
                title,
                short,
                short,
                shares,
                VERSIONS,
                ("trained on", "tested on"),
                starred=starred if kind == "difference" else None,
                is_signed=kind == "difference",
            ),
        )
