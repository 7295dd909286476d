"""The headline table: models x variants with intervals, BG-Gap, and what is published."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from pipeline.evaluate.gap_power import is_gap_near_zero
from pipeline.evaluate.published import PRETRAINED, TRAINED, published_for
from pipeline.report.evidence import Evidence, ModelResults
from pipeline.report.measured import training_of
from pipeline.report.panel import EVALUATE_COMMAND, Panel
from transforms.scoring import LABEL_RULES, PAPER_RULE

GAP = "BG-Gap"


@dataclasses.dataclass(frozen=True)
class HeadlineCell:
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
class HeadlineRow:
    """One model.

    Attributes:
      name: of the model.
      error: why it has no numbers, "" if it has.
      cells: BG-Gap, then by variant.
      warning: what to know before believing them, "" for nothing.
    """

    name: str
    error: str
    cells: dict[str, HeadlineCell]
    warning: str = ""


@dataclasses.dataclass(frozen=True)
class Headline:
    """A table for each label rule.

    Attributes:
      variants: columns, after BG-Gap.
      tables: rows by label rule.
      published: (name, source, accuracy by variant, BG-Gap) of the authors' models.
    """

    variants: tuple[str, ...]
    tables: dict[str, tuple[HeadlineRow, ...]]
    published: tuple[tuple[str, str, dict[str, float], float], ...]


def make_headline(evidence: Evidence) -> Headline:
    """Makes the tables of all models; those that failed are rows with their error."""
    variants = evidence.dataset.picture_variants
    models = _tried(evidence)
    manifest = evidence.dataset.manifest
    is_whole, is_paper = manifest.config.segment.is_whole, evidence.dataset.is_comparable
    return Headline(
        variants=variants,
        tables={
            rule: tuple(
                _row(
                    model,
                    rule,
                    variants,
                    _published(model, is_whole) if is_paper and rule == PAPER_RULE else [],
                )
                for model in models
            )
            for rule in LABEL_RULES
        },
        published=tuple(
            (entry.name, entry.source, dict(entry.accuracy), entry.gap)
            for entry in (PRETRAINED if is_paper and not is_whole else ())
        ),
    )


def _row(
    model: ModelResults,
    rule: str,
    variants: Sequence[str],
    known: Sequence[tuple[str, dict[str, float]]],
) -> HeadlineRow:
    cells = {GAP: HeadlineCell()}
    for variant in variants:
        found = model.row("accuracy", label_rule=rule, variant=variant)
        published = tuple((source, of[variant]) for source, of in known if variant in of)
        note = "missing" if variant in model.missing else _draws(found)
        cells[variant] = _cell(found, "accuracy", published, note)
    gap = model.row("gaps", label_rule=rule)
    published = tuple((source, of[GAP]) for source, of in known if GAP in of)
    power = model.row("power")
    is_unclear = power and not power["has_power"] and is_gap_near_zero(model.summary or {})
    note = ", ".join(filter(None, (_draws(gap), "power not shown" if is_unclear else "")))
    cells[GAP] = _cell(gap, "gap", published, note)
    seen = f"trained on {model.overlap:,} of these images" if model.overlap else ""
    return HeadlineRow(model.name, model.errors.get("evaluate", ""), cells, seen)


def _cell(
    found: dict[str, Any] | None, name: str, published: tuple[tuple[str, float], ...], note: str
) -> HeadlineCell:
    if not found or not found["n"]:
        return HeadlineCell(note=note, published=published)
    return HeadlineCell(found[name], found["ci_low"], found["ci_high"], note, published)


def _draws(row: dict[str, Any] | None) -> str:
    """How far the draws lie apart that a figure is the mean of; nothing of a single one."""
    if not row or row["seed_sd"] is None:
        return ""
    return f"{row['replicates']} draws, sd {100 * row['seed_sd']:.1f}"


def _published(model: ModelResults, is_whole: bool) -> list[tuple[str, dict[str, float]]]:
    """Published figures of the same model on the same kind of images, by source: accuracies and
    BG-Gap. On IN-9L there are those of table 5 alone."""
    summary = model.summary or {}
    trained = training_of(model)
    if model.trained.get("method") == "probe":
        # Of features that come from elsewhere: not what the authors trained.
        return []
    if trained in TRAINED:
        row = TRAINED[trained]
        if is_whole:
            return [("paper", {"original": row["in9l"]})]
        return [("paper", {**row, GAP: row["mixed_same"] - row["mixed_rand"]})]
    if "=" in model.model or is_whole:
        # A checkpoint of one's own has the architecture alone in common.
        return []
    entries = published_for(summary.get("architecture", ""))
    return [(entry.source, {**entry.accuracy, GAP: entry.gap}) for entry in entries]


def reading(gaps: Sequence[HeadlineCell], images: str) -> str:
    """What the intervals of BG-Gap say, in words.

    Args:
      gaps: of all models, with values.
      images: how many they are of, in words.
    """
    above = sum(gap.low is not None and gap.low > 0 for gap in gaps)
    below = sum(gap.high is not None and gap.high < 0 for gap in gaps)
    is_one = len(gaps) == 1
    if not above and not below:
        intervals = "The interval includes" if is_one else "All intervals include"
        it = "the model relies" if is_one else "these models rely"
        return f"{intervals} 0: {images} do not show that {it} on the background."
    if is_one:
        what = "relies on the background" if above else "does better on other backgrounds"
        return f"The whole interval is {'above' if above else 'below'} 0: the model {what}."
    said = f"The whole interval is above 0 for {above} of {len(gaps)} models"
    if below:
        said += f", and below 0 for {below}"
    return f"{said}." if above + below == len(gaps) else f"{said}; else it includes 0."


def span(headline: Headline, rule: str, column: str) -> tuple[float, float] | None:
    """The lowest and the highest value of a column, None if it is empty."""
    values = [row.cells[column].value for row in headline.tables[rule] if column in row.cells]
    there = [value for value in values if value is not None]
    return (min(there), max(there)) if there else None


def _tried(evidence: Evidence) -> list[ModelResults]:
    return [m for m in evidence.models if m.summary or "evaluate" in m.errors]


ACCURACY = Panel(
    id="accuracy",
    title="Accuracy",
    make=lambda evidence, _: _tried(evidence),
    answers="Accuracy on each version, and BG-Gap",
    command=EVALUATE_COMMAND,
    needs_backgrounds=False,
)
