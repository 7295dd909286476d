"""The headline table: models x variants with intervals, BG-Gap, and published figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.analyses.evaluation.results import AccuracyRow, GapRow, Summary, rules_of
from pipeline.analyses.evaluation.trained import training_of
from pipeline.display.evidence import Evidence, ModelResults
from pipeline.display.panel import Panel
from pipeline.evaluate.published import PRETRAINED, TRAINED, published_for
from transforms.scoring import PAPER_RULE

GAP = "BG-Gap"
COMMAND = "in9 evaluate --dataset . --models MODELS"


@dataclasses.dataclass(frozen=True)
class HeadlineCell:
    """One number of the table.

    Attributes:
      value, low, high: fractions; None where nothing was measured.
      note: text shown below the number; "" for none.
      published: (source, value) of each published figure for the same model.
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
      name: name of the model.
      error: why the model has no numbers; "" if it has some.
      cells: the cell of each column: BG-Gap, then the variants.
      warning: why the numbers should not be trusted; "" if nothing speaks against them.
    """

    name: str
    error: str
    cells: dict[str, HeadlineCell]
    warning: str = ""


@dataclasses.dataclass(frozen=True)
class Headline:
    """A table for each label rule.

    Attributes:
      variants: the columns after BG-Gap.
      tables: rows by label rule.
      published: (name, source, accuracy by variant, BG-Gap) of the authors' models.
    """

    variants: tuple[str, ...]
    tables: dict[str, tuple[HeadlineRow, ...]]
    published: tuple[tuple[str, str, dict[str, float], float], ...]


def make_headline(evidence: Evidence) -> Headline:
    """Makes the tables of all models; a model that failed gets a row with its error."""
    variants = evidence.dataset.picture_variants
    models = tried(evidence)
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
            for rule in rules_of(summary for _, summary in evidence.models_with(Summary))
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
    summary = model.get(Summary)
    for variant in variants:
        row = summary.accuracy_on(variant, rule) if summary else None
        published = tuple(
            (source, values[variant]) for source, values in known if variant in values
        )
        is_missing = summary is not None and variant in summary.missing
        value, low, high = (row and row.estimate) or (None, None, None)
        note = "missing" if is_missing else _draws(row)
        cells[variant] = HeadlineCell(value, low, high, note, published)
    gap = summary.gap(rule) if summary else None
    published = tuple((source, values[GAP]) for source, values in known if GAP in values)
    is_unclear = summary is not None and any(
        not power.has_power and summary.is_gap_near_zero for power in summary.power
    )
    note = ", ".join(filter(None, (_draws(gap), "power not shown" if is_unclear else "")))
    value, low, high = gap.estimate if gap else (None, None, None)
    cells[GAP] = HeadlineCell(value, low, high, note, published)
    overlap = summary.overlap if summary else 0
    warning = f"trained on {overlap:,} of these images" if overlap else ""
    return HeadlineRow(model.name, model.errors.get("evaluate", ""), cells, warning)


def _draws(row: AccuracyRow | GapRow | None) -> str:
    """Describes the spread of the draws that a figure averages; "" if it has a single draw."""
    if row is None or row.seed_sd is None:
        return ""
    return f"{row.replicates} draws, sd {100 * row.seed_sd:.1f}"


def _published(model: ModelResults, is_whole: bool) -> list[tuple[str, dict[str, float]]]:
    """Returns published accuracies and BG-Gap of the same model on the same kind of images, as
    (source, values). For whole images (IN-9L), only table 5 of the paper has figures."""
    summary = model.get(Summary)
    trained = training_of(model)
    if model.trained and model.trained.method == "probe":
        # The authors trained whole networks, not the last layer alone.
        return []
    if trained in TRAINED:
        row = TRAINED[trained]
        if is_whole:
            return [("paper", {"original": row["in9l"]})]
        return [("paper", {**row, GAP: row["mixed_same"] - row["mixed_rand"]})]
    if "=" in model.model or is_whole:
        # A user's own checkpoint has only its architecture in common with the published model.
        return []
    entries = published_for(summary.architecture if summary else "")
    return [(entry.source, {**entry.accuracy, GAP: entry.gap}) for entry in entries]


def reading(gaps: Sequence[HeadlineCell], images: str) -> str:
    """Says in words what the intervals of BG-Gap show.

    Args:
      gaps: BG-Gaps of all models that have one.
      images: number of images that the intervals are based on, in words.
    """
    above = sum(gap.low is not None and gap.low > 0 for gap in gaps)
    below = sum(gap.high is not None and gap.high < 0 for gap in gaps)
    is_one = len(gaps) == 1
    if not above and not below:
        intervals = "The interval includes" if is_one else "All intervals include"
        rely = "the model relies" if is_one else "these models rely"
        return f"{intervals} 0: {images} do not show that {rely} on the background."
    if is_one:
        behaviour = "relies on the background" if above else "does better on other backgrounds"
        return f"The whole interval is {'above' if above else 'below'} 0: the model {behaviour}."
    sentence = f"The whole interval is above 0 for {above} of {len(gaps)} models"
    if below:
        sentence += f", and below 0 for {below}"
    return (
        f"{sentence}." if above + below == len(gaps) else f"{sentence}; for the rest it includes 0."
    )


def span(headline: Headline, rule: str, column: str) -> tuple[float, float] | None:
    """Returns the lowest and the highest value of a column; None if the column is empty."""
    values = [row.cells[column].value for row in headline.tables[rule] if column in row.cells]
    known = [value for value in values if value is not None]
    return (min(known), max(known)) if known else None


def tried(evidence: Evidence) -> list[ModelResults]:
    """Returns the models that were evaluated, or failed."""
    return [m for m in evidence.models if m.get(Summary) or "evaluate" in m.errors]


ACCURACY = Panel(
    id="accuracy",
    place=1,
    template="evaluation/accuracy.html",
    title="Accuracy",
    make=lambda evidence, _: tried(evidence),
    answers="Accuracy on each variant, and BG-Gap",
    command=COMMAND,
    needs_backgrounds=False,
)
