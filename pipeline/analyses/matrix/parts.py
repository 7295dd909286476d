"""The parts of the matrix, which has its own training and command."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.analyses.matrix.panel import CLAIMS, MATRIX
from pipeline.analyses.matrix.results import TABLES, read_matrices, write_matrix_tables
from pipeline.analyses.parts import Found, Parts
from pipeline.dataset.folder import Dataset
from pipeline.display.evidence import Evidence

if TYPE_CHECKING:
    from pipeline.display.plot import Plot


class MatrixParts(Parts):
    """The parts of the matrix."""

    tables = TABLES
    figures = ("matrix-",)
    panels = (MATRIX,)
    claims = CLAIMS

    def find(self, dataset: Dataset) -> Found:
        """Same as `Parts.find`."""
        return Found(of_dataset=read_matrices(dataset))

    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        """Same as `Parts.write`."""
        write_matrix_tables(dataset)

    def plots(self, evidence: Evidence) -> Iterator[Plot]:
        """Same as `Parts.plots`."""
        # Imported here, because Matplotlib is slow to import.
        from pipeline.analyses.matrix.figures import make_plots

        return make_plots(evidence)


PARTS = MatrixParts()
