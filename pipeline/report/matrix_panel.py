"""The train x test matrix: what training on a variant does, beside the paper's table 5."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.report.evidence import Evidence
from pipeline.report.panel import MATRIX_COMMAND, Panel
from pipeline.training.penalty import describe_penalty


@dataclasses.dataclass(frozen=True)
class Matrix:
    """One network.

    Attributes:
      name: of the matrix.
      how: in words.
      penalties: (trained on, penalty of its probe, in words).
      columns: names of rows and columns.
      rows: (trained on, images it was trained on, its cells by column, its BG-Gap).
      gaps: which rows' BG-Gaps differ from 0, in words.
      gains: what training on Mixed-Rand instead of Original changes, by tested variant.
      images: how many a cell was tested on, the least and the most.
      chance: accuracy of a constant answer to them, in words; "" where no cell has images.
      overlap: most tested images of a cell that were trained on.
      figures: names of its figure files begin so.
    """

    name: str
    how: str
    penalties: tuple[tuple[str, str], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, int, dict[str, dict[str, Any]], dict[str, Any] | None], ...]
    gaps: str
    gains: tuple[dict[str, Any], ...]
    images: tuple[int, int]
    chance: str
    overlap: int
    figures: str


def make_matrices(evidence: Evidence) -> tuple[Matrix, ...]:
    """Collects the panel."""
    return tuple(_matrix(content) for content in evidence.matrices)


def _matrix(content: dict[str, Any]) -> Matrix:
    gaps = {row["train_variant"]: row for row in content["gaps"]}
    by_row: dict[str, dict[str, dict[str, Any]]] = {}
    for row in content["rows"]:
        by_row.setdefault(row["train_variant"], {})[row["test_variant"]] = row
    counts = [row["n"] for row in content["rows"]]
    return Matrix(
        name=content["name"],
        how=_how(content),
        penalties=tuple(
            (name, describe_penalty(penalty))
            for name, cells in by_row.items()
            if (penalty := next(iter(cells.values()))["penalty"]) is not None
        ),
        columns=tuple(content["columns"]),
        rows=tuple(
            (name, next(iter(cells.values()))["train_n"], cells, gaps.get(name))
            for name, cells in by_row.items()
        ),
        gaps=describe_gaps(content),
        gains=tuple(content["gains"]),
        images=(min(counts), max(counts)),
        chance=describe_chance(content["rows"]),
        overlap=max(row["overlap"] for row in content["rows"]),
        figures=f"matrix-{content['name']}-",
    )


def describe_chance(rows: Iterable[Mapping[str, Any]]) -> str:
    """What a constant answer gets on the pictures that rows of accuracies are of; "" of none."""
    levels = sorted({f"{100 * row['chance']:.1f}" for row in rows if row["n"]}, key=float)
    if not levels:
        return ""
    span = levels[0] if len(levels) == 1 else f"{levels[0]} to {levels[-1]}"
    return f"A constant answer gets {span} %: the largest class of the pictures tested"


def describe_gaps(content: dict[str, Any]) -> str:
    """Which rows' BG-Gaps are told from 0 by their intervals, and which are not; "" without."""
    found: dict[str, list[str]] = {"is above 0": [], "is below 0": [], "may be 0": []}
    for row in content["gaps"]:
        above, below = row["ci_low"] > 0, row["ci_high"] < 0
        said = "is above 0" if above else "is below 0" if below else "may be 0"
        found[said].append(row["train_variant"])
    parts = [f"{said} trained on {', '.join(rows)}" for said, rows in found.items() if rows]
    return f"BG-Gap {'; '.join(parts)}" if parts else ""


def _how(content: dict[str, Any]) -> str:
    if content["method"] == "probe":
        what = (
            f"the last layer of {content['arch']}, whose other layers stay as ImageNet made them, "
            "fitted on each variant (a linear probe)"
        )
    else:
        what = f"{content['arch']}, trained on each variant"
    if content["holdout"]:
        share = f"{100 * content['holdout']:.0f} %"
        return f"{what}; {share} of {content['split']} are held out for the test"
    return f"{what}: on {content['train_split']}, tested on {content['split']}"


MATRIX = Panel(
    id="matrix",
    title="Training",
    make=lambda evidence, _: make_matrices(evidence),
    answers="Trained on one version, tested on all",
    command=MATRIX_COMMAND,
)
