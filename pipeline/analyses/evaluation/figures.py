"""Figures of the evaluation: BG-Gaps, classes, kinds of images, sizes, confusion, pairings."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from pipeline.analyses.evaluation.differences import kinds_of
from pipeline.analyses.evaluation.panel import make_headline
from pipeline.analyses.evaluation.tables import KIND_NAMES
from pipeline.display.panel import COMPARED
from pipeline.display.plot import (
    CLASSES,
    FEW_IMAGES,
    MOST_CELLS,
    MOST_ROWS,
    Plot,
    Series,
    by_class,
    heat_map,
    lines_figure,
    of_all,
    rows_figure,
    spoken,
    worst_classes,
)
from pipeline.display.style import (
    INK,
    LINE,
    MODELS,
    POINT,
    SOFT,
    TEXT,
    WIDE,
    Drawn,
    drawn,
    styled,
    titled_axes,
)
from pipeline.display.table import Cell, shorten
from pipeline.evaluate.comparisons import GAP
from pipeline.evaluate.evidence import Evidence, ModelResults
from pipeline.evaluate.summary import ClassRow, SizeRow, Summary
from pipeline.models.checkpoint import safe_name
from transforms.analysis import KINDS
from transforms.intervals import estimate_of
from transforms.taxonomy import OUTSIDE, Taxonomy

_VARIANTS = ("original", "mixed_same", "mixed_rand", "mixed_next")
_FEW = 4
"""Largest number of models in figures that are high: two markers by class, or a bar, for each."""

_Evaluated = tuple[ModelResults, Summary]


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figures for which there are results, by the page's label rule."""
    evaluated, taxonomy = evidence.comparable, evidence.taxonomy
    compared = evaluated[:COMPARED]
    yield from _gaps(evidence)
    yield from _by_class(evaluated[:_FEW], taxonomy)
    yield from _decomposition(evaluated[:_FEW])
    for variant in _VARIANTS:
        yield from _by_size(compared, variant)
    for model, summary in evaluated:
        for variant in ("original", "mixed_same", "mixed_rand"):
            yield from _confusion(model, summary, variant, taxonomy)
        yield from _groups(model, summary, taxonomy)


def _decomposition(models: Sequence[_Evaluated]) -> Iterator[Plot]:
    named = [
        (model.name, shares)
        for model, summary in models
        if (shares := {r.kind: r.share for r in summary.by_rule(summary.decomposition) if r.images})
    ]
    if named:
        alt = "; ".join(
            f"{name}: " + ", ".join(f"{KIND_NAMES[k]} {100 * s.get(k, 0):.1f} %" for k in KINDS)
            for name, s in named
        )
        figure = decomposition_figure("What images need to be recognised", named)
        yield Plot("decomposition", "decomposition.svg", f"Stacked bars. {alt}", figure)


def _gaps(evidence: Evidence) -> Iterator[Plot]:
    """Draws BG-Gap of each family, then of each model that is in none.

    Of many, only the first are drawn: of models, those with the highest accuracy on `original`.
    """
    headline = make_headline(evidence).tables[evidence.rule]
    cells = {row.name: row.cells[GAP] for row in headline if GAP in row.cells}
    gaps = [
        (name, cells[name])
        for name, one in evidence.subjects
        if one.headline == evidence.rule and name in cells
    ]
    # Families, which have seeds, come first.
    rows = sorted(gaps[:MOST_ROWS], key=lambda row: (not row[1].seeds, -row[1].value))
    if rows:
        of = kinds_of(bool(cell.seeds) for _, cell in gaps)
        one = of.replace("families", "family").replace("models", "model")
        rest = f" ({len(rows)} of {len(gaps)} {of})" if len(rows) < len(gaps) else ""
        spelled = "; ".join(f"{name} {cell}" for name, cell in rows)
        alt = f"BG-Gap of each {one}{rest}, in points, with 95 % intervals. {spelled}"
        yield Plot("gaps", "gaps.svg", alt, forest_figure(f"BG-Gap by {one}{rest}", rows))


def _by_class(models: Sequence[_Evaluated], taxonomy: Taxonomy) -> Iterator[Plot]:
    """Joins accuracy on `mixed_same` and `mixed_rand` by class.

    Of many classes, only those are drawn on which the first model is worst on `mixed_rand`.
    """
    rows = {model.name: _rows_of_mixed(summary) for model, summary in models}
    counts = {label: rand.n for of_model in rows.values() for label, (_, rand) in of_model.items()}
    on_rand = [
        (
            name,
            {label: (rand.accuracy, rand.ci_low, rand.ci_high) for label, (_, rand) in of.items()},
        )
        for name, of in rows.items()
    ]
    shown, series = by_class(on_rand, taxonomy.num_labels)
    if series:
        series = [
            dataclasses.replace(
                one,
                others=tuple(
                    of_model[label][0].accuracy if label in of_model else None for label in shown
                ),
            )
            for one in series
            for of_model in [rows[one.name]]
        ]
        is_any_grey = any(counts.get(label, 0) < FEW_IMAGES for label in shown)
        names, rest = [taxonomy.names[label] for label in shown], of_all(shown, taxonomy)
        figure = rows_figure(
            f"By class: mixed_rand{rest}",
            names,
            series,
            f"accuracy, %; hollow: mixed_same{f'; grey: n < {FEW_IMAGES}' if is_any_grey else ''}",
            counts=[counts.get(label, 0) for label in shown],
        )
        alt = (
            f"Accuracy by class{rest} on mixed_rand, joined to that on mixed_same. On mixed_rand: "
        )
        yield Plot("gaps", "classes.svg", alt + spoken(series, names), figure)


def _rows_of_mixed(summary: Summary) -> dict[int, tuple[ClassRow, ClassRow]]:
    """Returns the rows of each class on `mixed_same` and `mixed_rand`, if both have images."""
    rows = {(row.variant, row.label): row for row in summary.by_rule(summary.per_class) if row.n}
    return {
        label: (rows["mixed_same", label], row)
        for (variant, label), row in rows.items()
        if variant == "mixed_rand" and ("mixed_same", label) in rows
    }


def _by_size(models: Sequence[_Evaluated], variant: str) -> Iterator[Plot]:
    by_model: dict[str, dict[float, SizeRow]] = {
        model.name: {
            row.fg_low: row for row in summary.by_rule(summary.sizes) if row.variant == variant
        }
        for model, summary in models
    }
    buckets = {low: row for rows in by_model.values() for low, row in rows.items()}
    if not buckets:
        return
    lows = sorted(buckets)
    names = [f"{100 * low:.0f}-{100 * buckets[low].fg_high:.0f}" for low in lows]
    series = [
        Series(
            name,
            tuple(
                estimate_of(row.accuracy, row.ci_low, row.ci_high)
                if (row := rows.get(low)) and row.n
                else None
                for low in lows
            ),
        )
        for name, rows in by_model.items()
    ]
    yield Plot(
        "sizes",
        f"sizes-{variant}.svg",
        f"Accuracy on {variant} by foreground size. {spoken(series, names)}",
        lines_figure(
            f"By foreground size: {variant}",
            range(len(lows)),
            [f"{name}\n({buckets[low].n:,})" for name, low in zip(names, lows, strict=True)],
            series,
            "foreground, % of the picture (images)",
        ),
    )


def _confusion(
    model: ModelResults, summary: Summary, variant: str, taxonomy: Taxonomy
) -> Iterator[Plot]:
    counts: dict[int, dict[int, int]] = {}
    for cell in summary.by_rule(summary.confusion):
        if cell.variant == variant:
            counts.setdefault(cell.label, {})[cell.prediction] = cell.pictures
    if not counts:
        return
    recalls = {label: row.get(label, 0) / sum(row.values()) for label, row in counts.items()}
    shown = worst_classes(recalls, taxonomy.num_labels, MOST_CELLS)
    names, rest = [taxonomy.names[label] for label in shown], of_all(shown, taxonomy)
    shares: list[list[float | None]] = []
    for label in shown:
        predicted, total = counts.get(label, {}), sum(counts.get(label, {}).values())
        line = [predicted.get(other, 0) for other in (*shown, OUTSIDE)]
        if rest:
            line.insert(-1, total - sum(line))
        shares.append([n / total if total else None for n in line])
    yield Plot(
        "confusion",
        f"confusion-{variant}-{safe_name(model.name)}.svg",
        f"Confusion of {model.name} on {variant}{rest}: of each class, the percent predicted as "
        "each class.",
        heat_map(
            f"Confusion: {variant}{rest}",
            names,
            (*names, *(["others"] if rest else []), "outside"),
            shares,
            CLASSES,
            ("class, %", "prediction"),
        ),
        model.name,
    )


def _groups(model: ModelResults, summary: Summary, taxonomy: Taxonomy) -> Iterator[Plot]:
    rows = [row for row in summary.by_rule(summary.groups) if row.variant == "mixed_rand" and row.n]
    if not rows:
        return
    names = taxonomy.names
    worst = next((row for row in rows if row.is_worst), None)
    lowest: dict[int, float] = {}
    for row in rows:
        # Always show the classes of the worst pairing.
        score = -1.0 if row is worst else row.ci_low
        for label in (row.label, row.bg_label):
            lowest[label] = min(score, lowest.get(label, 2.0))
    shown = worst_classes(lowest, taxonomy.num_labels, MOST_CELLS)
    rest = of_all(shown, taxonomy)
    accuracies = {(row.label, row.bg_label): row.accuracy for row in rows}
    worst_note = f" Worst: {names[worst.label]} on {names[worst.bg_label]}." if worst else ""
    yield Plot(
        "confusion",
        f"groups-mixed_rand-{safe_name(model.name)}.svg",
        f"Accuracy of {model.name} on mixed_rand by class of foreground and background{rest}."
        f"{worst_note}",
        heat_map(
            f"By background: mixed_rand{rest}",
            [names[label] for label in shown],
            [names[label] for label in shown],
            [[accuracies.get((label, bg_label)) for bg_label in shown] for label in shown],
            CLASSES,
            ("foreground, %", "background"),
            marked=(shown.index(worst.label), shown.index(worst.bg_label)) if worst else None,
        ),
        model.name,
    )


_CHARACTER = 0.55 * TEXT * POINT
"""Width of a character of an interval, in points."""


def forest_figure(title: str, rows: Sequence[tuple[str, Cell]]) -> Drawn:
    """Draws BG-Gaps in points, from the top, each between a name and its figures.

    The seeds of a family are small dots on the line of its interval.
    """
    texts = [str(cell) for _, cell in rows]
    known = [(row, cell.low, cell.high) for row, (_, cell) in enumerate(rows) if not cell.is_range]
    seeds = [(seed, row) for row, (_, cell) in enumerate(rows) for seed in cell.seeds]
    with styled():
        locator = MaxNLocator(7, steps=[1, 2, 5, 10])
        figure, axes = titled_axes(title, 68 + 13 * len(rows), "x", locator, WIDE)
        axes.axvline(0, color=INK, linewidth=0.8, zorder=1)
        axes.hlines(*np.reshape(known, (-1, 3)).T, color=MODELS[0], alpha=0.55)
        axes.plot([cell.value for _, cell in rows], range(len(rows)), "s", color=MODELS[0])
        axes.plot(*np.reshape(seeds, (-1, 2)).T, "o", color=MODELS[1], markersize=1.8)
        axes.set_yticks(range(len(rows)), [shorten(name, 36) for name, _ in rows])
        axes.tick_params(axis="y", length=0)
        for row, text in enumerate(texts):
            axes.annotate(
                text,
                (1, row),
                (_CHARACTER * max(map(len, texts)), 0),
                axes.get_yaxis_transform(),
                "offset points",
                ha="right",
                va="center_baseline",
            )
        dots = "; dots: single trainings" if seeds else ""
        axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel=f"points, 95 % interval{dots}")
        axes.autoscale(axis="x")
        return drawn(figure)


_COLOURS = dict(zip(KIND_NAMES, (*MODELS[:4], LINE, SOFT), strict=True))
_LABELLED = 0.06
"""Smallest share whose number fits beneath its part of the bar."""


def decomposition_figure(title: str, models: Sequence[tuple[str, Mapping[str, float]]]) -> Drawn:
    """Draws a stacked bar for each model, from the top, of shares of images by kind."""
    with styled():
        figure, axes = titled_axes(title, 120 + 58 * len(models), "x")
        for row, (name, shares) in enumerate(models):
            left = 0.0
            for kind, colour in _COLOURS.items():
                share = shares.get(kind, 0.0)
                axes.barh(row, share, left=left, height=0.34, color=colour, linewidth=0)
                if share >= _LABELLED:
                    axes.text(
                        left + share / 2,
                        row + 0.2,
                        f"{100 * share:.1f}",
                        ha="center",
                        va="top",
                        color=INK,
                    )
                left += share
            axes.text(0, row - 0.2, shorten(name, 40), ha="left", va="bottom")
        axes.set(yticks=[], ylim=(len(models) - 0.45, -0.6), xlabel="share of images, %")
        swatches = [
            Patch(facecolor=colour, linewidth=0, label=KIND_NAMES[kind])
            for kind, colour in _COLOURS.items()
        ]
        figure.legend(
            handles=swatches, loc="outside lower left", ncols=2, handlelength=1, columnspacing=1.2
        )
        return drawn(figure)
