"""Makes the report's figures from the models' results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluate.published import TABLE_5_NAMES
from pipeline.report.by_class import by_class, fooled_by_class, of_model
from pipeline.report.evidence import Evidence, ModelResults
from pipeline.report.figure_files import MATRIX_PARTS, matrix_file
from pipeline.report.figures.decomposition import decomposition_figure
from pipeline.report.figures.heat_map import VERSIONS, heat_map
from pipeline.report.figures.points import Series, lines_figure
from pipeline.report.figures.style import MODELS
from pipeline.report.figures.trend_figure import trend_figure
from pipeline.report.latex import KIND_NAMES
from pipeline.report.measured import attack_measures
from pipeline.report.plot import Plot, point, spoken, titles
from pipeline.report.short_names import shorten
from transforms.analysis import KINDS
from transforms.scoring import PAPER_RULE

COMPARED = len(MODELS)
"""Largest number of models that a figure compares: the models with the highest accuracy on
`original`."""
_VARIANTS = ("original", "mixed_same", "mixed_rand", "mixed_next")


def make_plots(evidence: Evidence) -> tuple[Plot, ...]:
    """Makes all figures for which there are results."""
    return tuple(_plots(evidence))


def _plots(evidence: Evidence) -> Iterator[Plot]:
    taxonomy, models = evidence.taxonomy, evidence.evaluated[:COMPARED]
    if models:
        named = [(model.name, shares) for model in models if (shares := _shares(model))]
        if named:
            alt = "; ".join(
                f"{name}: " + ", ".join(f"{KIND_NAMES[k]} {100 * s.get(k, 0):.1f} %" for k in KINDS)
                for name, s in named
            )
            figure = decomposition_figure("What images need to be recognised", named)
            yield Plot("decomposition", "decomposition.svg", f"Stacked bars. {alt}", figure)
    for variant in _VARIANTS:
        yield from by_class(models, variant, taxonomy)
    for variant in _VARIANTS:
        yield from _by_size(models, variant)
    for model in evidence.evaluated:
        yield from of_model(model, taxonomy)
    attacked = [model for model in evidence.models if attack_measures(model)][:COMPARED]
    yield from fooled_by_class(attacked, taxonomy, evidence.dataset.is_comparable)
    yield from _by_backgrounds(attacked)
    for content in evidence.matrices:
        yield from _matrix(content)
    if evidence.trend:
        yield from _trend(evidence.trend)


def _trend(trend: Mapping[str, Any]) -> Iterator[Plot]:
    if not trend["lines"]:
        return
    slopes = ", ".join(f"{line['variant']} {line['slope']:.2f}" for line in trend["lines"])
    yield Plot(
        "trend",
        "trend.svg",
        f"Accuracy on the variants against accuracy on ImageNet. Slopes: {slopes}",
        trend_figure(trend),
    )


def _matrix(content: Mapping[str, Any]) -> Iterator[Plot]:
    """Draws the heat maps of `MATRIX_PARTS`; those without figures of the paper are left out."""
    name, columns = content["name"], content["columns"]
    short = [TABLE_5_NAMES.get(column, column) for column in columns]
    cells = {(row["train_variant"], row["test_variant"]): row for row in content["rows"]}
    titles_of_parts = (f"{shorten(name)}, %", "ResNet-50 of the paper, %", "difference, points")
    for part, title in zip(MATRIX_PARTS, titles_of_parts, strict=True):
        shares = [[cells.get((row, column), {}).get(part) for column in columns] for row in columns]
        if not any(share is not None for line in shares for share in line):
            continue
        bold = [
            [_is_significant(cells.get((row, column))) for column in columns] for row in columns
        ]
        spoken = "; ".join(
            f"{row}: "
            + ", ".join(
                f"{column} {100 * share:.0f}"
                for column, share in zip(columns, line, strict=True)
                if share is not None
            )
            for row, line in zip(columns, shares, strict=True)
        )
        yield Plot(
            "matrix",
            matrix_file(name, part),
            f"{title}. Trained on the row, tested on the column. {spoken}",
            heat_map(
                title,
                short,
                short,
                shares,
                VERSIONS,
                ("trained on", "tested on"),
                bold=bold if part == "difference" else None,
                is_signed=part == "difference",
            ),
        )


def _is_significant(row: Mapping[str, Any] | None) -> bool:
    """Returns whether the interval of a cell's difference from the published figure excludes 0."""
    if not row or row.get("difference") is None:
        return False
    return bool(row["difference_ci_low"] > 0 or row["difference_ci_high"] < 0)


def _shares(model: ModelResults) -> dict[str, float]:
    rows = model.rows("decomposition", label_rule=PAPER_RULE)
    return {row["kind"]: row["share"] for row in rows if row["images"]}


def _by_size(models: Sequence[ModelResults], variant: str) -> Iterator[Plot]:
    by_model = {
        model.name: {
            row["fg_low"]: row
            for row in model.rows("sizes", label_rule=PAPER_RULE, variant=variant)
        }
        for model in models
    }
    buckets = {low: row for rows in by_model.values() for low, row in rows.items()}
    if not buckets:
        return
    lows = sorted(buckets)
    names = [f"{100 * low:.0f}-{100 * buckets[low]['fg_high']:.0f}" for low in lows]
    counted = [f"{name}\n({buckets[low]['n']:,})" for name, low in zip(names, lows, strict=True)]
    series = [
        Series(name, tuple(point(rows.get(low)) for low in lows)) for name, rows in by_model.items()
    ]
    yield Plot(
        "sizes",
        f"sizes-{variant}.svg",
        f"Accuracy on {variant} by foreground size. {spoken(series, names)}",
        lines_figure(
            f"By foreground size: {variant}",
            range(len(lows)),
            counted,
            series,
            "foreground, % of the picture (images)",
        ),
    )


def _by_backgrounds(models: Sequence[ModelResults]) -> Iterator[Plot]:
    title = titles(models)
    curves = {
        title(model): {
            row["backgrounds"]: row["accuracy"]
            for row in (attack_measures(model) or {}).get("accuracy_by_backgrounds") or ()
        }
        for model in models
    }
    counts = sorted({number for curve in curves.values() for number in curve})
    if len(counts) < 2:
        return
    series = [
        Series(name, tuple((c[n],) * 3 if n in c else None for n in counts))
        for name, c in curves.items()
        if c
    ]
    yield Plot(
        "attack",
        "accuracy_by_backgrounds.svg",
        "Share of foregrounds that no background turns wrong, by number of backgrounds. "
        + spoken(series, [f"{n}" for n in counts]),
        lines_figure(
            "Challenge accuracy",
            counts,
            [f"{n:,}" for n in counts],
            series,
            "backgrounds, drawn at random",
            log=True,
        ),
    )
