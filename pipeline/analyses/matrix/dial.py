"""Estimates of a matrix' rows, and the dial: BG-Gap by strength of the background in training.

In a dial, rows differ in how strongly background goes with class in their training pictures. The
reference is the row of `mixed_rand`, whose backgrounds say nothing of the class. All models answer
the same pictures, so differences from its BG-Gap are paired. A curve has several strengths, so each
interval is at a level at which all of them hold at once.

results/dial.csv    a line for each strength, and for the reference
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from pipeline.display.table import percent_interval
from pipeline.evaluate.comparisons import GAP, Measured, ModelsOnSameImages, measure
from pipeline.evaluate.families import Estimated, Family
from pipeline.evaluate.results import Table, Trained, pick
from pipeline.evaluate.summary import Evaluated, MatrixRow, Summary
from transforms.analysis import groups, worst_group
from transforms.intervals import CONFIDENCE, Estimate, estimate_of, level_of
from transforms.scoring import PAPER_RULE
from transforms.taxonomy import OUTSIDE, Taxonomy
from transforms.two_way import Roles, Seeds
from transforms.variants import BG_GAP, DIAL_VARIANTS, VariantName

NEUTRAL = "mixed_rand"
ROWS: tuple[str, ...] = (*DIAL_VARIANTS, NEUTRAL)
COLUMNS: tuple[str, ...] = ("mixed_same", "mixed_rand", "original", "only_fg")
MIN_PICTURES = 10
"""The fewest pictures of a group that may be the worst."""


class DialRow(Struct, frozen=True, kw_only=True):
    """A row of a dial; the fields of `worst_` are None if no group is large enough."""

    train_variant: Annotated[str, Meta(description="variant that the model was trained on")]
    strength: Annotated[
        float,
        Meta(
            description="share of its pictures whose background is of the own class; of "
            "`mixed_rand`, 1 / classes"
        ),
    ]
    gap: Annotated[float, Meta(description="BG-Gap, on a single draw")]
    gap_ci_low: Annotated[
        float | None, Meta(description="lower end of its interval at the level `level`")
    ]
    gap_ci_high: Annotated[float | None, Meta(description="upper end of that interval")]
    difference: Annotated[
        float | None,
        Meta(description="`gap` - that of `mixed_rand`, on the same pictures; empty for itself"),
    ] = None
    difference_ci_low: Annotated[
        float | None, Meta(description="lower end of its interval at the level `level`")
    ] = None
    difference_ci_high: Annotated[float | None, Meta(description="upper end of that interval")] = (
        None
    )
    level: Annotated[
        float, Meta(description="1 - 0.05 / the number of strengths without `mixed_rand`")
    ]
    n: int
    seeds: Annotated[int, Meta(description="number of trainings; of several, this is the mean")]
    sd: Annotated[float | None, Meta(description="standard deviation of their gaps")]
    groups: Annotated[
        int,
        Meta(
            description="number of groups, of label and own or other class of the background, with "
            "ten pictures or more of `mixed_same` and `mixed_rand`"
        ),
    ]
    worst_class: Annotated[
        str | None,
        Meta(description="class of the worst of these groups: that of the lowest upper end"),
    ] = None
    worst_background: Annotated[
        str | None, Meta(description="its backgrounds: of the `own` class, or of an `other`")
    ] = None
    worst_pictures: Annotated[int | None, Meta(description="number of its pictures")] = None
    worst_accuracy: Annotated[float | None, Meta(description="accuracy on them")] = None
    worst_ci_low: Annotated[
        float | None,
        Meta(description="lower end of its interval at the level 1 - 0.05 / `groups`"),
    ] = None
    worst_ci_high: Annotated[float | None, Meta(description="upper end of that interval")] = None

    @property
    def label(self) -> str:
        """The strength in words; that of `mixed_rand` is a fraction."""
        words = {NEUTRAL: f"1/{round(1 / (self.strength or 1))}", ROWS[0]: "never"}
        return words.get(self.train_variant, f"{100 * self.strength:.0f} %")

    @property
    def figures(self) -> tuple[Estimate | None, ...]:
        """The gap and the difference; without an interval, its ends are the value."""
        return tuple(
            estimate_of(value, value if low is None else low, value if high is None else high)
            for value, low, high in (
                (self.gap, self.gap_ci_low, self.gap_ci_high),
                (self.difference, self.difference_ci_low, self.difference_ci_high),
            )
        )

    @property
    def worst(self) -> str:
        """The worst group in words, with the number of groups; a dash without one."""
        figure = percent_interval(self.worst_accuracy, self.worst_ci_low, self.worst_ci_high)
        return (
            f"{self.worst_class}, {self.worst_background} (of {self.groups}): {figure}"
            if self.worst_class
            else "-"
        )


class DialLine(DialRow, frozen=True, kw_only=True):
    """A row of dial.csv."""

    arch: Annotated[str, Meta(description="architecture of the model")]
    method: Annotated[
        str, Meta(description="`probe`: last layer of a frozen network; `train`: whole network")
    ]
    train_split: Annotated[str, Meta(description="split of the training images")]
    split: str
    holdout: float
    precision: str
    dataset: str


DIAL_TABLE = Table(
    "dial",
    (DialLine,),
    "BG-Gap of a model trained with a strength of background, and its difference from that of "
    "`mixed_rand`: [the dial](training.md#the-dial)",
)


class Row(NamedTuple):
    """A model of a row, its names, and how it was trained.

    `summary` is the model as `ModelsOnSameImages` has it, without figures.
    """

    run: Evaluated
    matrix: MatrixRow
    trained: Trained
    summary: Summary


def estimate(
    models: ModelsOnSameImages,
    quantity: str,
    *methods: Sequence[Row],
    confidence: float = CONFIDENCE,
) -> tuple[float, Estimated]:
    """Computes the mean of a method's models, or what it exceeds a second's by."""
    families = (Family("", tuple(one.summary for one in rows)) for rows in methods)
    answers = (models.answers(one, PAPER_RULE) for one in families)
    seeds = [one for each in answers if (one := models.seeds(quantity, each))]
    pictures = models.pictures[quantity]
    is_share = pictures.is_share and len(methods) == 1
    measured = measure(pictures.roles, pictures.n, *seeds, is_share=is_share)
    low, high = measured.interval(confidence) if measured else (None, None)
    value, *others = (float(one.values.mean()) for one in seeds)
    values = seeds[0].values
    return value - sum(others), Estimated(
        n=pictures.n,
        ci_low=low,
        ci_high=high,
        seeds=len(values),
        sd=float(values.std(ddof=1)) if len(values) > 1 else None,
        lowest=float(values.min()),
        highest=float(values.max()),
    )


def dial_rows(
    models: ModelsOnSameImages,
    by_row: Mapping[str, Sequence[Row]],
    bg_labels: Mapping[VariantName, NDArray[np.int16]],
    taxonomy: Taxonomy,
) -> Iterator[DialRow]:
    """Yields the rows of a dial by strength, from each row's models, which have BG-Gaps.

    `bg_labels` are those of `Predictions`.
    """
    strengths = {
        name: 1 / len(np.unique(models.images.background_labels))
        if name == NEUTRAL
        else VariantName.parse(name).strength or 0.0
        for name in by_row
    }
    level = level_of(len(by_row) - 1)
    for name in sorted(by_row, key=strengths.__getitem__):
        figures = {
            figure: estimate(models, BG_GAP, by_row[name], *others, confidence=level)
            for figure, others in (("gap", []), ("difference", [by_row[NEUTRAL]]))
            if name != NEUTRAL or not others
        }
        yield pick(
            DialRow,
            figures["gap"][1],
            train_variant=name,
            strength=strengths[name],
            level=level,
            **{
                f"{figure}{end}": value
                for figure, (whole, one) in figures.items()
                for end, value in (("", whole), ("_ci_low", one.ci_low), ("_ci_high", one.ci_high))
            },
            **_worst_group(models, by_row[name], bg_labels, taxonomy),
        )


def _worst_group(
    models: ModelsOnSameImages,
    rows: Sequence[Row],
    bg_labels: Mapping[VariantName, NDArray[np.int16]],
    taxonomy: Taxonomy,
) -> dict[str, Any]:
    """Finds the worst group of a row, as `groups.csv` does; returns fields of `DialRow`."""
    parts = [models.pictures[name] for name in ("mixed_same", "mixed_rand")]
    sources: list[Mapping[VariantName, NDArray[Any]]] = [
        bg_labels,
        models.bg_units,
        *models.answers(Family("", tuple(one.summary for one in rows)), PAPER_RULE),
    ]
    backgrounds, units, *answers = (
        np.concatenate([part.of_variants(values) for part in parts]) for values in sources
    )
    shown = np.concatenate([part.images for part in parts])
    labels = models.images.labels[shown]
    roles = Roles.from_units(models.images.unit_numbers[shown], units)
    is_own = np.where(backgrounds == OUTSIDE, OUTSIDE, backgrounds == labels)
    large = [
        group
        for group in groups(labels, is_own, taxonomy.num_labels)
        if len(group.pictures) >= MIN_PICTURES
    ]
    # Of two trainings, no group has an interval to choose by.
    measured = [
        one
        for group in large
        if (one := _accuracy(np.stack(answers)[:, group.pictures], roles.select(group.pictures)))
    ]
    worst = worst_group([one.interval() for one in measured], [one.value for one in measured])
    if worst is None:
        return {"groups": len(large)}
    low, high = measured[worst].interval(level_of(len(large)))
    return {
        "groups": len(large),
        "worst_class": taxonomy.names[large[worst].label],
        "worst_background": "own" if large[worst].bg_label else "other",
        "worst_pictures": len(large[worst].pictures),
        "worst_accuracy": measured[worst].value,
        "worst_ci_low": low,
        "worst_ci_high": high,
    }


def _accuracy(correct: NDArray[np.bool_], roles: Roles) -> Measured | None:
    """Measures the accuracy of (models, pictures) answers; None for two models."""
    n, values = correct.shape[1], correct.mean(axis=1)
    return measure(roles, n, Seeds(values, (correct - values[:, None]) / n), is_share=True)


def describe_dial(rows: Sequence[DialRow]) -> str:
    """Says from which strength on BG-Gap is above that of `mixed_rand`; "" without intervals."""
    judged = [row for row in rows if row.train_variant != NEUTRAL]
    if all(row.difference_ci_low is None for row in judged):
        return ""
    shown = list(
        itertools.takewhile(lambda row: (row.difference_ci_low or 0) > 0, reversed(judged))
    )
    return (
        f"{GAP} above that of {NEUTRAL}: shown "
        + (f"from {shown[-1].train_variant} on" if shown else "at no strength")
        + f" (n = {judged[0].n}, intervals at 1 - 0.05 / {len(judged)})"
        + ", which is no statement that none raises it" * (not shown)
        + "; smaller strengths: not shown, which is no statement that they do not raise it"
        * (0 < len(shown) < len(judged))
    )
