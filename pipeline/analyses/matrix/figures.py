"""Figures of matrices: our accuracies, the paper's, their differences, and curves of dials."""

from collections.abc import Iterator

from pipeline.analyses.matrix.results import MATRIX_FIGURES, Matrix, matrix_file
from pipeline.display.plot import VERSIONS, Plot, Series, heat_map, lines_figure, spoken
from pipeline.display.table import shorten
from pipeline.evaluate.comparisons import GAP
from pipeline.evaluate.evidence import TABLE_5_NAMES, Evidence


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figures of all matrices; those without figures of the paper are left out."""
    for matrix in evidence.get(Matrix):
        yield from _of_matrix(matrix)
        if matrix.dial:
            yield _of_dial(matrix)


def _of_dial(matrix: Matrix) -> Plot:
    gaps, differences = zip(*(row.figures for row in matrix.dial), strict=True)
    labels = [row.label.removesuffix(" %") for row in matrix.dial]
    series = [Series(GAP, gaps), Series("minus that of mixed_rand", differences)]
    return Plot(
        "matrix",
        matrix_file(matrix.name, "dial"),
        f"{GAP} by strength of the background in training. {spoken(series, labels)}",
        lines_figure(
            shorten(matrix.name, 20 if len(matrix.trainings) > 1 else 30)
            + f", mean of {len(matrix.trainings)}" * (len(matrix.trainings) > 1),
            range(len(labels)),
            labels,
            series,
            "training backgrounds of the own class, %",
            signed=True,
        ),
    )


def _of_matrix(matrix: Matrix) -> Iterator[Plot]:
    columns = matrix.columns
    names, short = (
        [TABLE_5_NAMES.get(one, one) for one in each] for each in (matrix.trained_on, columns)
    )
    by_row = matrix.by_row
    cells = [[by_row.get(row, {}).get(column) for column in columns] for row in matrix.trained_on]
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
            for row, line in zip(matrix.trained_on, shares, strict=True)
        )
        yield Plot(
            "matrix",
            matrix_file(matrix.name, kind),
            f"{title}. Trained on the row, tested on the column. {spoken}",
            heat_map(
                title,
                names,
                short,
                shares,
                VERSIONS,
                ("trained on", "tested on"),
                starred=starred if kind == "difference" else None,
                is_signed=kind == "difference",
            ),
        )
