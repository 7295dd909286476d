"""The headline table: models x variants with intervals, BG-Gap, and what is published."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pipeline.report.evidence import Evidence, ModelResults
from pipeline.report.published import PRETRAINED, TRAINED, published_for, trained_on
from transforms.scoring import LABEL_RULES

GAP = "BG-Gap"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One number of the table.

    Attributes:
      value, low, high: fractions; None where nothing was measured.
      note: what else to know of it, "" for nothing.
      published: (source, value) of the same model.
    """

    value: float | None = None
    low: float | None = None
    high: float | None = None
    note: str = ""
    published: tuple[tuple[str, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
    """One model.

    Attributes:
      name: of the model.
      error: why it has no numbers, "" if it has.
      cells: by variant, and BG-Gap.
    """

    name: str
    error: str
    cells: dict[str, Cell]


@dataclasses.dataclass(frozen=True)
class Headline:
    """A table for each label rule.

    Attributes:
      variants: columns, before BG-Gap.
      tables: rows by label rule.
      published: (name, source, accuracy by variant, BG-Gap) of the authors' models.
    """

    variants: tuple[str, ...]
    tables: dict[str, tuple[Row, ...]]
    published: tuple[tuple[str, str, dict[str, float], float], ...]


def make_headline(evidence: Evidence) -> Headline:
    """The tables of all models; those that failed are rows with their error."""
    variants = evidence.dataset.picture_variants
    models = [model for model in evidence.models if model.summary]
    is_paper = evidence.dataset.is_imagenet9
    return Headline(
        variants=variants,
        tables={
            rule: tuple(
                _row(model, rule, variants, is_paper and rule == next(iter(LABEL_RULES)))
                for model in models
            )
            for rule in LABEL_RULES
        },
        published=tuple(
            (entry.name, entry.source, dict(entry.accuracy), entry.gap)
            for entry in PRETRAINED
            if is_paper
        ),
    )


def _row(model: ModelResults, rule: str, variants: Sequence[str], is_paper_rule: bool) -> Row:
    known = _published(model) if is_paper_rule else []
    cells = {}
    for variant in variants:
        found = model.row("accuracy", label_rule=rule, variant=variant)
        published = tuple((source, of[variant]) for source, of in known if variant in of)
        cells[variant] = _cell(found, "accuracy", published, "")
    gap = model.row("gaps", label_rule=rule)
    published = tuple((source, of[GAP]) for source, of in known if GAP in of)
    cells[GAP] = _cell(gap, "gap", published, _replicates(gap))
    return Row(model.name, model.error, cells)


def _cell(
    found: dict[str, Any] | None, name: str, published: tuple[tuple[str, float], ...], note: str
) -> Cell:
    if not found or not found["n"]:
        return Cell(published=published)
    return Cell(found[name], found["ci_low"], found["ci_high"], note, published)


def _replicates(gap: dict[str, Any] | None) -> str:
    if not gap or gap.get("replicates", 1) < 2:
        return ""
    spread = f", sd {100 * gap['seed_sd']:.1f}" if gap.get("seed_sd") is not None else ""
    return f"mean of {gap['replicates']} seeds{spread}"


def _published(model: ModelResults) -> list[tuple[str, dict[str, float]]]:
    """Published figures of the same model, by source: accuracies and BG-Gap."""
    summary = model.summary or {}
    trained = trained_on(model.model, summary.get("num_outputs", 0))
    if trained:
        row = TRAINED[trained]
        return [("paper", {**row, GAP: row["mixed_same"] - row["mixed_rand"]})]
    if "=" in model.model:
        # A checkpoint of one's own has the architecture alone in common.
        return []
    entries = published_for(summary.get("architecture", ""))
    return [(entry.source, {**entry.accuracy, GAP: entry.gap}) for entry in entries]


def span(headline: Headline, rule: str, column: str) -> tuple[float, float] | None:
    """The lowest and the highest value of a column, None if it is empty."""
    values = [row.cells[column].value for row in headline.tables[rule] if column in row.cells]
    there = [value for value in values if value is not None]
    return (min(there), max(there)) if there else None
