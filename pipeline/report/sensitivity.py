"""Sensitivity: flip rates, and relative foreground sensitivity."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.report.evidence import Evidence
from pipeline.report.panel import Panel
from transforms.scoring import PAPER_RULE

Compared = tuple[str, str]
"""The variants of the two pictures in a pair."""


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Content of the panel, by the paper's label rule.

    Attributes:
      compared: columns of the table of flip rates.
      flips: (model, row of flips.csv by column) of each model that has flip rates.
      noise: (model, row of rfs.csv) of each model that was evaluated on both variants with noise.
    """

    compared: tuple[Compared, ...]
    flips: tuple[tuple[str, dict[Compared, dict[str, Any]]], ...]
    noise: tuple[tuple[str, dict[str, Any]], ...]


def make_sensitivity(evidence: Evidence) -> Sensitivity | None:
    """Collects the panel's content; None if no model has such results."""
    flips = []
    for model in evidence.evaluated:
        rows = model.rows("flips", label_rule=PAPER_RULE)
        if rows:
            flips.append((model.name, {(r["variant"], r["other_variant"]): r for r in rows}))
    noise = tuple(
        (model.name, row)
        for model in evidence.evaluated
        if (row := model.row("rfs", label_rule=PAPER_RULE))
    )
    if not flips and not noise:
        return None
    return Sensitivity(
        compared=tuple(dict.fromkeys(pair for _, of_model in flips for pair in of_model)),
        flips=tuple(flips),
        noise=noise,
    )


SENSITIVITY = Panel(
    id="sensitivity", title="Sensitivity", make=lambda evidence, _: make_sensitivity(evidence)
)
