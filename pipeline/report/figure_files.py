"""Where the report's figures lie, and what they are called."""

from __future__ import annotations

FOLDER = "results/figures"
_SINGLE = ("decomposition", "fooled_by_class", "accuracy_by_backgrounds", "trend")
_FAMILIES = ("per_class-", "sizes-", "confusion-", "groups-", "matrix-")


def is_ours(path: str) -> bool:
    """Whether a file is called as a figure of these, present or past."""
    stem, dot, kind = path.removeprefix(f"{FOLDER}/").rpartition(".")
    is_figure = path.startswith(f"{FOLDER}/") and f"{dot}{kind}" in (".svg", ".pdf")
    return is_figure and (stem in _SINGLE or stem.startswith(_FAMILIES))
