"""Sensitivity: flip rates, and relative foreground sensitivity."""

from __future__ import annotations

from pipeline.analyses.evaluation.results import Summary
from pipeline.display.evidence import Evidence
from pipeline.display.panel import Panel


def make_sensitivity(evidence: Evidence) -> dict[str, object]:
    """Collects the panel's content, by the label rule of each model's headline; empty if no model
    has such results.

    Returns:
      `flips`: (model, row of flips.csv by the variants of its two pictures) of each model that has
      flip rates; `compared`: the keys of all these rows; `noise`: (model, row of rfs.csv) of each
      model that was evaluated on both variants with noise.
    """
    evaluated = evidence.models_with(Summary)
    flips = [
        (model.name, {(row.variant, row.other_variant): row for row in rows})
        for model, summary in evaluated
        if (rows := list(summary.by_rule(summary.flips)))
    ]
    noise = [
        (model.name, row) for model, summary in evaluated for row in summary.by_rule(summary.rfs)
    ]
    compared = list(dict.fromkeys(pair for _, of_model in flips for pair in of_model))
    return {"flips": flips, "compared": compared, "noise": noise} if flips or noise else {}


SENSITIVITY = Panel(
    id="sensitivity",
    place=2,
    template="evaluation/sensitivity.html",
    title="Sensitivity",
    make=lambda evidence, _: make_sensitivity(evidence),
)
