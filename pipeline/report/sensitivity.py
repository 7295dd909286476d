"""Sensitivity: how often answers change with the background alone, and what noise does where."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.report.evidence import Evidence
from transforms.scoring import PAPER_RULE

Compared = tuple[str, str]
"""Variants of the two pictures of each pair."""


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """All of the panel, by the paper's label rule.

    Attributes:
      compared: columns of the table of flip rates: what any model has.
      flips: (model, row of flips.csv by column) of each model that has one.
      noise: (model, row of rfs.csv), likewise.
    """

    compared: tuple[Compared, ...]
    flips: tuple[tuple[str, dict[Compared, dict[str, Any]]], ...]
    noise: tuple[tuple[str, dict[str, Any]], ...]


def make_sensitivity(evidence: Evidence) -> Sensitivity:
    """Collects the panel."""
    flips = []
    for model in evidence.evaluated:
        rows = model.rows("flips", label_rule=PAPER_RULE)
        if rows:
            flips.append((model.name, {(r["variant"], r["other_variant"]): r for r in rows}))
    return Sensitivity(
        compared=tuple(dict.fromkeys(pair for _, of_model in flips for pair in of_model)),
        flips=tuple(flips),
        noise=tuple(
            (model.name, row)
            for model in evidence.evaluated
            if (row := model.row("rfs", label_rule=PAPER_RULE))
        ),
    )
