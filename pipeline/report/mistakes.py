"""Where models go wrong: the worst group of each mixed version.

The panel's template and `pipeline.report.plots` make its other tables and its figures directly from
the models' summaries.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.report.evidence import Evidence
from pipeline.report.panel import Panel
from transforms.scoring import PAPER_RULE


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
    row: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Mistakes:
    """Content of the panel."""

    worst: tuple[WorstGroup, ...]


def make_mistakes(evidence: Evidence) -> Mistakes | None:
    """Collects the panel's content; None if no model was evaluated."""
    if not evidence.evaluated:
        return None
    names = evidence.taxonomy.names
    return Mistakes(
        tuple(
            WorstGroup(model.name, row["variant"], names[row["label"]], names[row["bg_label"]], row)
            for model in evidence.evaluated
            for row in model.rows("groups", label_rule=PAPER_RULE, is_worst=True)
        )
    )


MISTAKES = Panel(id="mistakes", title="Mistakes", make=lambda evidence, _: make_mistakes(evidence))
