"""The train x test matrix: the effect of training on each variant, compared with table 5 of the
paper."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.report.evidence import Evidence
from pipeline.report.figure_files import MATRIX_PARTS, matrix_file
from pipeline.report.panel import MATRIX_COMMAND, Panel
from pipeline.training.penalty import describe_penalty


@dataclasses.dataclass(frozen=True)
class Matrix:
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
    rows: tuple[tuple[str, int, dict[str, dict[str, Any]], dict[str, Any] | None], ...]
    gaps: str
    gains: tuple[dict[str, Any], ...]
    images: tuple[int, int]
    chance: str
    overlap: int
    figures: tuple[str, ...]


def make_matrices(evidence: Evidence) -> tuple[Matrix, ...]:
    """Collects the panel's content."""
    return tuple(_matrix(content) for content in evidence.matrices)


def _matrix(content: dict[str, Any]) -> Matrix:
    gaps = {row["train_variant"]: row for row in content["gaps"]}
    by_row: dict[str, dict[str, dict[str, Any]]] = {}
    for row in content["rows"]:
        by_row.setdefault(row["train_variant"], {})[row["test_variant"]] = row
    counts = [row["n"] for row in content["rows"]]
    return Matrix(
        name=content["name"],
        method=_describe_method(content),
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
        figures=tuple(matrix_file(content["name"], part) for part in MATRIX_PARTS),
    )


def describe_chance(rows: Iterable[Mapping[str, Any]]) -> str:
    """Says what a constant answer would score on the pictures tested; "" if no pictures were
    tested."""
    levels = sorted({f"{100 * row['chance']:.1f}" for row in rows if row["n"]}, key=float)
    if not levels:
        return ""
    span = levels[0] if len(levels) == 1 else f"{levels[0]} to {levels[-1]}"
    return (
        f"A constant answer gets {span} %, the share of the largest class among the pictures tested"
    )


def describe_gaps(content: dict[str, Any]) -> str:
    """Says which rows' BG-Gaps differ from 0 by their intervals; "" if no row has a BG-Gap."""
    variants: dict[str, list[str]] = {"is above 0": [], "is below 0": [], "may be 0": []}
    for row in content["gaps"]:
        above, below = row["ci_low"] > 0, row["ci_high"] < 0
        outcome = "is above 0" if above else "is below 0" if below else "may be 0"
        variants[outcome].append(row["train_variant"])
    parts = [
        f"{outcome} when trained on {', '.join(rows)}" for outcome, rows in variants.items() if rows
    ]
    return f"BG-Gap {'; '.join(parts)}" if parts else ""


def _describe_method(content: dict[str, Any]) -> str:
    if content["method"] == "probe":
        training = (
            f"the last layer of {content['arch']} fitted on each variant (a linear probe), with "
            "all other layers as pretrained on ImageNet"
        )
    else:
        training = f"{content['arch']}, trained on each variant"
    if content["holdout"]:
        share = f"{100 * content['holdout']:.0f} %"
        return f"{training}; {share} of {content['split']} is held out for testing"
    return f"{training} of {content['train_split']}, tested on {content['split']}"


MATRIX = Panel(
    id="matrix",
    title="Training",
    make=lambda evidence, _: make_matrices(evidence),
    answers="Trained on one variant, tested on all",
    command=MATRIX_COMMAND,
)
