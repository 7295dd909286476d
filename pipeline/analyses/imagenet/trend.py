"""The trend: accuracy on the variants against accuracy on ImageNet, over all models.

Writes results/trend.csv and results/trend.json. The trend follows figure 8 of the paper.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from pipeline.analyses.evaluation.contributions import BG_GAP, ModelsOnSameImages
from pipeline.analyses.evaluation.results import Summary, rules_of
from pipeline.analyses.imagenet.results import PUBLISHED_N, Top1, comparable_top1
from pipeline.display.table import Table
from pipeline.evaluate.result_files import write_result
from pipeline.storage.store import Store
from transforms.taxonomy import Taxonomy
from transforms.trend import MIN_MODELS, fit_line

TREND_FILE = "results/trend.json"

TREND_VARIANTS = ("only_bg_t", "mixed_next", "mixed_rand", "mixed_same", "no_fg")
"""Variants of the paper's figure, in the figure's order."""


class TrendPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A row of trend.csv: a model's accuracy on a variant, or its BG-Gap if `variant` is `bg_gap`.
    Accuracies on ImageNet are empty if unknown."""

    model: str
    variant: str
    imagenet_top1: Annotated[float | None, Meta(description="top-1 accuracy on ImageNet")]
    imagenet_source: Annotated[
        str | None, Meta(description="`measured`, or the source of the published figure")
    ]
    imagenet_n: Annotated[
        int | None, Meta(description="number of images that `imagenet_top1` was measured on")
    ]
    imagenet_input_size: Annotated[
        int | None, Meta(description="side length of the model's input on ImageNet, in pixels")
    ]
    input_size: int
    accuracy: float
    ci_low: float
    ci_high: float
    n: int
    label_rule: str

    @property
    def top1(self) -> Top1 | None:
        """The accuracy on ImageNet; None if it is unknown."""
        value, n = self.imagenet_top1, self.imagenet_n
        source, size = self.imagenet_source, self.imagenet_input_size
        if value is None or n is None or source is None or size is None:
            return None
        return Top1(value, n, source, size)


class TrendLine(msgspec.Struct, frozen=True, kw_only=True):
    """The best-fit line of a variant; see `transforms.trend.Line`."""

    variant: str
    slope: float
    slope_low: float
    slope_high: float
    intercept: float
    models: int


class Trend(msgspec.Struct, frozen=True, kw_only=True):
    """trend.json.

    Attributes:
      dataset: fingerprint of the dataset.
      label_rule: the label rule of points and lines.
      points: the points under this rule.
      lines: the fitted lines.
      left_out: names of models that were run with other settings than most.
      notes: what a reader needs to understand points and lines.
    """

    dataset: str
    label_rule: str
    points: tuple[TrendPoint, ...]
    lines: tuple[TrendLine, ...]
    left_out: tuple[str, ...]
    notes: tuple[str, ...]


TABLES = (
    Table(
        "trend",
        (TrendPoint,),
        "accuracy of a model on a variant beside its accuracy on ImageNet",
    ),
)

_NAMED = 4
"""Largest number of models that a note names."""


def write_trend(
    store: Store,
    dataset: str,
    summaries: Sequence[Summary],
    taxonomy: Taxonomy,
    measured: Sequence[ModelsOnSameImages],
) -> Trend:
    """Rebuilds the trend from the summaries. The caller holds the lock of the tables.

    Args:
      store: the dataset folder.
      dataset: the dataset's fingerprint.
      summaries: summaries of all models on this dataset.
      taxonomy: classes of ImageNet models.
      measured: contributions of the models, from `read_contributions` with these summaries; lines
        are fitted over those of the models whose accuracy on ImageNet is known.
    """
    kept, left_out = _alike(summaries)
    top1, choice = comparable_top1(store, kept, len(taxonomy.wnids))
    rows = [row for pair in zip(kept, top1, strict=True) for row in _points(*pair)]
    (table,) = TABLES
    table.write(store, ([row] for row in rows))
    rule = rules_of(kept)[0]
    points = tuple(row for row in rows if row.label_rule == rule)
    lines = (
        line
        for variant in (*TREND_VARIANTS, BG_GAP)
        for line in _line(zip(kept, top1, strict=True), measured, rule, variant)
    )
    trend = Trend(
        dataset=dataset,
        label_rule=rule,
        points=points,
        lines=tuple(lines),
        left_out=tuple(left_out),
        notes=(*_notes(points), *([choice] if choice else [])),
    )
    write_result(store, TREND_FILE, trend)
    return trend


def remove_trend(store: Store) -> None:
    """Deletes the trend, because other classes than ImageNet-9's have no relation to accuracy on
    ImageNet."""
    for path in (TREND_FILE, "results/trend.csv"):
        store.delete(path)


def _alike(summaries: Sequence[Summary]) -> tuple[list[Summary], list[str]]:
    """Selects the summaries with the most common settings, so that no model counts twice; returns
    these summaries, and the names of the models with other settings."""
    counts = Counter(_settings(s) for s in summaries)
    if not counts:
        return [], []
    # Of equally common settings, `max` keeps the first.
    common = max(counts, key=lambda settings: counts[settings])
    kept = [s for s in summaries if _settings(s) == common]
    return kept, [s.name for s in summaries if s not in kept]


def _settings(summary: Summary) -> tuple[str, str, str, float]:
    one = summary.evaluation
    return one.split, one.eval_input, one.precision, one.holdout


def _points(summary: Summary, top1: Top1 | None) -> Iterator[TrendPoint]:
    """Yields a model's rows of trend.csv: for each label rule, a row for each variant and for
    BG-Gap."""
    point = functools.partial(
        TrendPoint,
        model=summary.model,
        imagenet_top1=top1.value if top1 else None,
        imagenet_source=top1.source if top1 else None,
        imagenet_n=top1.n if top1 else None,
        imagenet_input_size=top1.input_size if top1 else None,
        input_size=summary.evaluation.input_size,
    )
    for rule in summary.label_rules:
        for variant in TREND_VARIANTS:
            row = summary.accuracy_on(variant, rule)
            if row and row.accuracy is not None:
                yield point(
                    variant=variant,
                    accuracy=row.accuracy,
                    ci_low=row.ci_low,
                    ci_high=row.ci_high,
                    n=row.n,
                    label_rule=rule,
                )
        if gap := summary.gap(rule):
            yield point(
                variant=BG_GAP,
                accuracy=gap.gap,
                ci_low=gap.ci_low,
                ci_high=gap.ci_high,
                n=gap.n,
                label_rule=rule,
            )


def _line(
    models: Iterable[tuple[Summary, Top1 | None]],
    measured: Sequence[ModelsOnSameImages],
    rule: str,
    variant: str,
) -> Iterator[TrendLine]:
    """Yields the best-fit line of a variant, unless too few models have known accuracies."""
    known = [(summary, top1.value) for summary, top1 in models if top1]
    for part in measured:
        if (rule, variant) not in part.quantities:
            continue
        indices, values, r = part.contributions(rule, variant)
        row_of = {part.summaries[index].folder: row for row, index in enumerate(indices)}
        points = [
            (row_of[summary.folder], value) for summary, value in known if summary.folder in row_of
        ]
        if len(points) < MIN_MODELS:
            continue
        chosen = [row for row, _ in points]
        line = fit_line(
            [top1 for _, top1 in points], values[chosen], part.roles(variant).sums(r[chosen])
        )
        if line:
            yield TrendLine(variant=variant, **dataclasses.asdict(line))


def _notes(points: Sequence[TrendPoint]) -> list[str]:
    """Writes the notes that a reader needs to understand the points and lines."""
    models = dict.fromkeys(point.model for point in points)
    known = {point.model: top1 for point in points if (top1 := point.top1)}
    notes = []
    if len(known) < len(models):
        unknown = [model for model in models if model not in known]
        notes.append(f"no accuracy on ImageNet is known for {', '.join(unknown)}")
    if points and len(known) < MIN_MODELS:
        notes.append(
            f"lines need at least {MIN_MODELS} models whose accuracy on ImageNet is known; "
            f"there {'is' if len(known) == 1 else 'are'} {len(known)}"
        )
    elif known:
        notes.append(
            "intervals of slopes allow for other models and other images; they treat models as "
            "independent, which models of one family are not"
        )
    others = {
        p.model: f"{p.model} ({p.imagenet_input_size} px, here {p.input_size})"
        for p in points
        if p.imagenet_input_size not in (None, p.input_size)
    }
    if others:
        shown = ", ".join(list(others.values())[:_NAMED])
        more = f" and {len(others) - _NAMED} more (trend.csv)" if len(others) > _NAMED else ""
        notes.append(
            "accuracy on ImageNet was measured at another input size than these pictures have for "
            f"{shown}{more}; it might be higher or lower at the size of these pictures"
        )
    by_source = Counter(top1.source.partition(",")[0] for top1 in known.values())
    if by_source:
        shown = "; ".join(f"{source} ({n})" for source, n in sorted(by_source.items()))
        notes.append(f"sources of accuracies on ImageNet, with numbers of models: {shown}")
    if any(top1.n < PUBLISHED_N for top1 in known.values()):
        notes.append(
            f"some accuracies on ImageNet were measured on fewer than the {PUBLISHED_N:,} "
            "validation images; their errors make lines flatter"
        )
    return notes
