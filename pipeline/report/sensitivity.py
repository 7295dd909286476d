"""Sensitivity: flip rates, and relative foreground sensitivity."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.report.evidence import Evidence
from pipeline.report.panel import Panel
from transforms.scoring import PAPER_RULE

Compared = tuple[str, str]
"""Variants of the two pictures of each pair."""


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Content of the panel, by the paper's label rule.

    Attributes:
      compared: columns of the table of flip rates.
      flips: (model, row of flips.csv by column) of each model that has one.
      noise: (model, row of rfs.csv) of each model that has one.
    """

    compared: tuple[Compared, ...]
    flips: tuple[tuple[str, dict[Compared, dict[str, Any]]], ...]
    noise: tuple[tuple[str, dict[str, Any]], ...]


def make_sensitivity(evidence: Evidence) -> Sensitivity | None:
    """Collects the panel; None without results."""
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
