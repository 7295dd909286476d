"""The report's figures, made of the models' results: files, and what the page says of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.figures.cells import cells_figure
from pipeline.figures.decomposition import decomposition_figure
from pipeline.figures.matrix import matrix_figure
from pipeline.figures.points import Series, lines_figure, rows_figure
from pipeline.figures.style import MODELS, shorten
from pipeline.report.evidence import Evidence, ModelResults
from pipeline.report.judges import RULE, grid_size
from pipeline.report.published import FOOLED_BY_CLASS, FULL_GRID
from transforms.analysis import KINDS
from transforms.taxonomy import OUTSIDE, Taxonomy

COMPARED = len(MODELS)
"""Models that a figure shows side by side: those with the highest accuracy on `original`."""
PANELS = ("matrix", "decomposition", "per_class", "sizes", "confusion", "attack")
_VARIANTS = ("original", "mixed_same", "mixed_rand")


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
      panel: where on the page it belongs.
      file: its file below `FOLDER`.
      alt: what it shows, for those who cannot see it.
      svg: its bytes.
      model: name of its model, "" if it is of several.
    """

    panel: str
    file: str
    alt: str
    svg: bytes
    model: str = ""


def make_plots(evidence: Evidence) -> tuple[Plot, ...]:
    """All figures that there are results for, in the order of the page."""
    return tuple(_plots(evidence))


def _plots(evidence: Evidence) -> Iterator[Plot]:
    taxonomy, models = evidence.taxonomy, evidence.evaluated[:COMPARED]
    if models:
        kinds = [_shares(model) for model in models]
        there = [(m.name, s) for m, s in zip(models, kinds, strict=True) if s]
        if there:
            alt = "; ".join(
                f"{name}: " + ", ".join(f"{k} {100 * s.get(k, 0):.1f} %" for k in KINDS)
                for name, s in there
            )
            svg = decomposition_figure("What images need to be recognised", there)
            yield Plot("decomposition", "decomposition.svg", f"Stacked bars. {alt}", svg)
    for variant in _VARIANTS:
        yield from _by_class(models, variant, taxonomy)
    for variant in _VARIANTS:
        yield from _by_size(models, variant)
    for model in evidence.evaluated:
        yield from _of_model(model, taxonomy)
    attacked = [model for model in evidence.models if _measures(model)][:COMPARED]
    yield from _fooled_by_class(attacked, taxonomy, evidence.dataset.is_imagenet9)
    yield from _by_backgrounds(attacked)
    for content in evidence.matrices:
        yield from _matrix(content)


def _matrix(content: Mapping[str, Any]) -> Iterator[Plot]:
    """Accuracies, the paper's, and their difference."""
    name, columns = content["name"], content["columns"]
    cells = {(row["train_variant"], row["test_variant"]): row for row in content["rows"]}
    for part, title, key in (
        ("accuracy", f"{shorten(name)}, %", "accuracy"),
        ("published", "ResNet-50 of the paper, %", "published"),
        ("difference", "difference, points", "difference"),
    ):
        shares = [[cells.get((row, column), {}).get(key) for column in columns] for row in columns]
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
            f"matrix-{name}-{part}.svg",
            f"{title}. Trained on the row, tested on the column. {spoken}",
            matrix_figure(
                title,
                columns,
                shares,
                bold if part == "difference" else None,
                is_signed=part == "difference",
            ),
        )


def _is_significant(row: Mapping[str, Any] | None) -> bool:
    """Whether the published figure lies outside the interval."""
    if not row or row.get("difference") is None:
        return False
    return bool(row["difference_ci_low"] > 0 or row["difference_ci_high"] < 0)


def _shares(model: ModelResults) -> dict[str, float]:
    rows = model.rows("decomposition", label_rule=RULE)
    return {row["kind"]: row["share"] for row in rows if row["images"]}


def _point(row: dict[str, Any] | None) -> tuple[float, float, float] | None:
    return (row["accuracy"], row["ci_low"], row["ci_high"]) if row and row["n"] else None


def _spoken(series: Sequence[Series], places: Sequence[str]) -> str:
    """Values as text, for those who cannot see the figure."""
    return "; ".join(
        f"{one.name}: "
        + ", ".join(
            f"{place} {100 * value[0]:.0f} %"
            for place, value in zip(places, one.values, strict=True)
            if value
        )
        for one in series
    )


def _by_class(models: Sequence[ModelResults], variant: str, taxonomy: Taxonomy) -> Iterator[Plot]:
    series = []
    for model in models:
        rows = {
            row["label"]: row for row in model.rows("per_class", label_rule=RULE, variant=variant)
        }
        points = tuple(_point(rows.get(label)) for label in range(taxonomy.num_labels))
        if any(points):
            series.append(Series(model.name, points))
    if series:
        yield Plot(
            "per_class",
            f"per_class-{variant}.svg",
            f"Accuracy on {variant} by class. {_spoken(series, taxonomy.names)}",
            rows_figure(f"By class: {variant}", taxonomy.names, series),
        )


def _by_size(models: Sequence[ModelResults], variant: str) -> Iterator[Plot]:
    by_model = {
        model.name: {
            row["fg_low"]: row for row in model.rows("sizes", label_rule=RULE, variant=variant)
        }
        for model in models
    }
    buckets = {low: row for rows in by_model.values() for low, row in rows.items()}
    if not buckets:
        return
    lows = sorted(buckets)
    names = [f"{100 * low:.0f}-{100 * buckets[low]['fg_high']:.0f}" for low in lows]
    series = [
        Series(name, tuple(_point(rows.get(low)) for low in lows))
        for name, rows in by_model.items()
    ]
    yield Plot(
        "sizes",
        f"sizes-{variant}.svg",
        f"Accuracy on {variant} by foreground size. {_spoken(series, names)}",
        lines_figure(
            f"By foreground size: {variant}",
            range(len(lows)),
            names,
            series,
            "foreground, % of the picture",
        ),
    )


def _of_model(model: ModelResults, taxonomy: Taxonomy) -> Iterator[Plot]:
    """Confusion on original and mixed_rand, and accuracy by foreground and background."""
    names = taxonomy.names
    for variant in ("original", "mixed_rand"):
        counts = [[0] * (len(names) + 1) for _ in names]
        for row in model.rows("confusion", label_rule=RULE, variant=variant):
            column = len(names) if row["prediction"] == OUTSIDE else row["prediction"]
            counts[row["label"]][column] += row["n"]
        if any(map(any, counts)):
            yield Plot(
                "confusion",
                f"confusion-{variant}-{model.folder}.svg",
                f"Confusion of {model.name} on {variant}: of each class, the percent predicted "
                "as each class.",
                cells_figure(
                    f"Confusion: {variant}",
                    names,
                    (*names, "outside"),
                    [[n / sum(line) if sum(line) else None for n in line] for line in counts],
                    labels=("class, %", "prediction"),
                ),
                model.name,
            )
    yield from _groups(model, taxonomy)


def _groups(model: ModelResults, taxonomy: Taxonomy) -> Iterator[Plot]:
    names = taxonomy.names
    rows = model.rows("groups", label_rule=RULE, variant="mixed_rand")
    if not rows:
        return
    shares: list[list[float | None]] = [[None] * len(names) for _ in names]
    marked = None
    for row in rows:
        if row["n"]:
            shares[row["label"]][row["bg_label"]] = row["accuracy"]
        if row["is_worst"]:
            marked = (row["label"], row["bg_label"])
    worst = f" Worst: {names[marked[0]]} on {names[marked[1]]}." if marked else ""
    yield Plot(
        "confusion",
        f"groups-mixed_rand-{model.folder}.svg",
        f"Accuracy of {model.name} on mixed_rand by class of foreground and background.{worst}",
        cells_figure(
            "Accuracy by background: mixed_rand",
            names,
            names,
            shares,
            marked,
            labels=("foreground, %", "background"),
        ),
        model.name,
    )


def _measures(model: ModelResults) -> dict[str, Any] | None:
    rules: dict[str, dict[str, Any]] = (model.attack or {}).get("rules") or {}
    return rules.get(RULE)


def _title(models: Sequence[ModelResults]) -> Callable[[ModelResults], str]:
    """Names of attacked models: with the size of their grid where these differ."""
    sizes = {grid_size(model.attack or {}) for model in models}
    if len(sizes) == 1:
        return lambda model: model.name
    return lambda model: f"{model.name}, {grid_size(model.attack or {})}"


def _fooled_by_class(
    models: Sequence[ModelResults], taxonomy: Taxonomy, is_paper: bool
) -> Iterator[Plot]:
    title = _title(models)
    series = []
    for model in models:
        rows = {row["label"]: row for row in (_measures(model) or {}).get("by_class") or ()}
        values = tuple(
            (rows[label]["fooled"],) * 3 if label in rows and rows[label]["foregrounds"] else None
            for label in range(taxonomy.num_labels)
        )
        if any(values):
            series.append(Series(title(model), values))
    is_full = any(
        (m.attack or {})["full_grid"] and (m.attack or {})["foregrounds"] == FULL_GRID
        for m in models
    )
    if is_paper and is_full and len(series) < COMPARED:
        published = tuple((share, share, share) for share in FOOLED_BY_CLASS)
        series.append(Series("IN-9L ResNet-50 (paper)", published))
    if series:
        yield Plot(
            "attack",
            "fooled_by_class.svg",
            "Share of other-class foregrounds that some background of a class turns into it. "
            + _spoken(series, taxonomy.names),
            rows_figure("Fooled by any background of ...", taxonomy.names, series, "fooled, %"),
        )


def _by_backgrounds(models: Sequence[ModelResults]) -> Iterator[Plot]:
    title = _title(models)
    curves = {
        title(model): {
            row["backgrounds"]: row["accuracy"]
            for row in (_measures(model) or {}).get("accuracy_by_backgrounds") or ()
        }
        for model in models
    }
    places = sorted({number for curve in curves.values() for number in curve})
    if len(places) < 2:
        return
    series = [
        Series(name, tuple((c[n],) * 3 if n in c else None for n in places))
        for name, c in curves.items()
        if c
    ]
    yield Plot(
        "attack",
        "accuracy_by_backgrounds.svg",
        "Share of foregrounds that no background turns wrong, by number of backgrounds. "
        + _spoken(series, [f"{n}" for n in places]),
        lines_figure(
            "Challenge accuracy",
            places,
            [f"{n:,}" for n in places],
            series,
            "backgrounds, drawn at random",
            log=True,
        ),
    )
