"""The folder of the report's figures, and their file names."""

from __future__ import annotations

FOLDER = "results/figures"
_SINGLE = ("decomposition", "fooled_by_class", "accuracy_by_backgrounds", "trend")
_FAMILIES = ("per_class-", "sizes-", "confusion-", "groups-", "matrix-")
MATRIX_PARTS = ("accuracy", "published", "difference")
"""The figures of a matrix: our accuracies, the paper's, and their differences."""


def matrix_file(name: str, part: str) -> str:
    """Returns the name of the SVG file of a matrix's figure, one of `MATRIX_PARTS`."""
    return f"matrix-{name}-{part}.svg"


def is_report_figure(path: str) -> bool:
    """Returns whether a path is one that this or an earlier report gives to a figure."""
    stem, dot, kind = path.removeprefix(f"{FOLDER}/").rpartition(".")
    is_figure = path.startswith(f"{FOLDER}/") and f"{dot}{kind}" in (".svg", ".pdf")
    return is_figure and (stem in _SINGLE or stem.startswith(_FAMILIES))
