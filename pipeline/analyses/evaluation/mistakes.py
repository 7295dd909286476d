"""Where models go wrong: the worst group of each mixed version.

The panel's template makes its other tables directly from the models' summaries.
"""

from __future__ import annotations

from pipeline.analyses.evaluation.results import GroupRow, Summary
from pipeline.display.evidence import Evidence
from pipeline.display.panel import Panel


def make_mistakes(evidence: Evidence) -> dict[str, list[tuple[str, str, str, GroupRow]]]:
    """Collects the panel's content; empty if no model was evaluated.

    Returns:
      `worst`: (model, names of the classes of foreground and background, row of groups.csv) of the
      group of each mixed version on which a model is worst.
    """
    evaluated, names = evidence.models_with(Summary), evidence.taxonomy.names
    worst = [
        (model.name, names[row.label], names[row.bg_label], row)
        for model, summary in evaluated
        for row in summary.by_rule(summary.groups)
        if row.is_worst
    ]
    return {"worst": worst} if evaluated else {}


MISTAKES = Panel(
    id="mistakes",
    place=3,
    template="evaluation/mistakes.html",
    title="Mistakes",
    make=lambda evidence, _: make_mistakes(evidence),
)
