"""Sensitivity: flip rates, and relative foreground sensitivity."""

from __future__ import annotations

import dataclasses

from pipeline.analyses.evaluation.results import FlipRow, SensitivityRow, Summary
from pipeline.display.evidence import Evidence
from pipeline.display.panel import Panel

Compared = tuple[str, str]
"""The variants of the two pictures in a pair."""


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Content of the panel, by the label rule of each model's headline.

    Attributes:
      compared: columns of the table of flip rates.
      flips: (model, row of flips.csv by column) of each model that has flip rates.
      noise: (model, row of rfs.csv) of each model that was evaluated on both variants with noise.
    """

    compared: tuple[Compared, ...]
    flips: tuple[tuple[str, dict[Compared, FlipRow]], ...]
    noise: tuple[tuple[str, SensitivityRow], ...]


def make_sensitivity(evidence: Evidence) -> Sensitivity | None:
    """Collects the panel's content; None if no model has such results."""
    flips = []
    evaluated = evidence.models_with(Summary)
    for model, summary in evaluated:
        rows = {(row.variant, row.other_variant): row for row in summary.by_rule(summary.flips)}
        if rows:
            flips.append((model.name, rows))
    noise = tuple(
        (model.name, row) for model, summary in evaluated for row in summary.by_rule(summary.rfs)
    )
    if not flips and not noise:
        return None
    return Sensitivity(
        compared=tuple(dict.fromkeys(pair for _, of_model in flips for pair in of_model)),
        flips=tuple(flips),
        noise=noise,
    )


SENSITIVITY = Panel(
    id="sensitivity",
    place=2,
    template="evaluation/sensitivity.html",
    title="Sensitivity",
    make=lambda evidence, _: make_sensitivity(evidence),
)
