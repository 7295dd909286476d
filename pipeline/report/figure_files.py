"""Where the report's figures lie, and what they are called."""

from __future__ import annotations

FOLDER = "results/figures"
_SINGLE = (
    *("decomposition.svg", "fooled_by_class.svg", "accuracy_by_backgrounds.svg", "trend.svg"),
)
_FAMILIES = ("per_class-", "sizes-", "confusion-", "groups-", "matrix-")


def is_ours(path: str) -> bool:
    """Whether a file is called as a figure of these, present or past."""
    name = path.rpartition("/")[2]
    return path.startswith(f"{FOLDER}/") and (name in _SINGLE or name.startswith(_FAMILIES))
