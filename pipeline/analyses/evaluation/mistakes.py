"""Where models go wrong: the worst group of each mixed version.

The panel's template makes its other tables directly from the models' summaries.
"""

from __future__ import annotations

import dataclasses

from pipeline.analyses.evaluation.results import GroupRow, Summary
from pipeline.display.evidence import Evidence
from pipeline.display.panel import Panel


@dataclasses.dataclass(frozen=True)
class WorstGroup:
    """The group of a mixed version on which a model is worst. A group is a pair of foreground class
    and background class.

    Attributes:
      model: name of the model.
      variant: the version.
      foreground, background: names of the group's classes.
      row: the group's row of groups.csv.
    """

    model: str
    variant: str
    foreground: str
    background: str
    row: GroupRow


@dataclasses.dataclass(frozen=True)
class Mistakes:
    """Content of the panel."""

    worst: tuple[WorstGroup, ...]


def make_mistakes(evidence: Evidence) -> Mistakes | None:
    """Collects the panel's content; None if no model was evaluated."""
    evaluated, names = evidence.models_with(Summary), evidence.taxonomy.names
    if not evaluated:
        return None
    return Mistakes(
        tuple(
            WorstGroup(model.name, row.variant, names[row.label], names[row.bg_label], row)
            for model, summary in evaluated
            for row in summary.by_rule(summary.groups)
            if row.is_worst
        )
    )


MISTAKES = Panel(
    id="mistakes",
    place=3,
    template="evaluation/mistakes.html",
    title="Mistakes",
    make=lambda evidence, _: make_mistakes(evidence),
)
