"""Figures with a row for each class: accuracy, confusion, backgrounds, attack.

If there are many classes, only the worst are shown, because a figure of a thousand rows is
unreadable. The CSV files list all classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pipeline.evaluate.published import FOOLED_BY_CLASS
from pipeline.report.evidence import ModelResults
from pipeline.report.figures.heat_map import CLASSES, heat_map
from pipeline.report.figures.points import Series, rows_figure
from pipeline.report.figures.style import MODELS
from pipeline.report.measured import attack_measures, is_authors_grid
from pipeline.report.plot import Plot, point, spoken, titles
from transforms.scoring import PAPER_RULE
from transforms.taxonomy import OUTSIDE, Taxonomy

MOST_ROWS = 24
MOST_CELLS = 9
"""Largest number of classes that a figure shows: `MOST_ROWS` if classes are only its rows,
`MOST_CELLS` if they are its rows and its columns."""


def worst_classes(scores: Mapping[int, float], count: int, most: int) -> list[int]:
    """Selects the labels that a figure shows, and returns them in ascending order.

    Args:
      scores: scores by label. Labels with the lowest scores are selected first, labels without a
        score last.
      count: number of classes.
      most: number of labels that the figure has room for.

    >>> worst_classes({0: 0.9, 1: 0.2, 2: 0.5}, 4, 2)
    [1, 2]
    """
    order = sorted(range(count), key=lambda label: (scores.get(label, 2.0), label))
    return sorted(order[:most])


def _of_all(shown: Sequence[int], taxonomy: Taxonomy) -> str:
    """Returns the note for the title that classes are left out; "" if all classes are shown."""
    if len(shown) == taxonomy.num_labels:
        return ""
    return f" (worst {len(shown)} of {taxonomy.num_labels})"


def by_class(models: Sequence[ModelResults], variant: str, taxonomy: Taxonomy) -> Iterator[Plot]:
    """Draws accuracy by class; if there are many classes, those on which the first model is
    worst."""
    series = []
    shown: list[int] = []
    counts: dict[int, int] = {}
    for model in models:
        rows = {
            row["label"]: row
            for row in model.rows("per_class", label_rule=PAPER_RULE, variant=variant)
        }
        if not shown and rows:
            scores = {label: row["accuracy"] for label, row in rows.items() if row["n"]}
            shown = worst_classes(scores, taxonomy.num_labels, MOST_ROWS)
        counts |= {label: row["n"] for label, row in rows.items() if row["n"]}
        points = tuple(point(rows.get(label)) for label in shown)
        if any(points):
            series.append(Series(model.name, points))
    if series:
        names, rest = [taxonomy.names[label] for label in shown], _of_all(shown, taxonomy)
        yield Plot(
            "per_class",
            f"per_class-{variant}.svg",
            f"Accuracy on {variant} by class{rest}. {spoken(series, names)}",
            rows_figure(
                f"By class: {variant}{rest}",
                names,
                series,
                counts=[counts.get(label, 0) for label in shown],
            ),
        )


def of_model(model: ModelResults, taxonomy: Taxonomy) -> Iterator[Plot]:
    """Draws a model's confusion on three versions, and its accuracy by the classes of foreground
    and background."""
    for variant in ("original", "mixed_same", "mixed_rand"):
        yield from _confusion(model, variant, taxonomy)
    yield from _groups(model, taxonomy)


def _confusion(model: ModelResults, variant: str, taxonomy: Taxonomy) -> Iterator[Plot]:
    counts: dict[int, dict[int, int]] = {}
    for row in model.rows("confusion", label_rule=PAPER_RULE, variant=variant):
        counts.setdefault(row["label"], {})[row["prediction"]] = row["pictures"]
    if not counts:
        return
    recalls = {label: row.get(label, 0) / sum(row.values()) for label, row in counts.items()}
    shown = worst_classes(recalls, taxonomy.num_labels, MOST_CELLS)
    names, rest = [taxonomy.names[label] for label in shown], _of_all(shown, taxonomy)
    shares: list[list[float | None]] = []
    for label in shown:
        predicted, total = counts.get(label, {}), sum(counts.get(label, {}).values())
        line = [predicted.get(other, 0) for other in (*shown, OUTSIDE)]
        if rest:
            line.insert(-1, total - sum(line))
        shares.append([n / total if total else None for n in line])
    yield Plot(
        "confusion",
        f"confusion-{variant}-{model.folder}.svg",
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


def _groups(model: ModelResults, taxonomy: Taxonomy) -> Iterator[Plot]:
    rows = [
        row for row in model.rows("groups", label_rule=PAPER_RULE, variant="mixed_rand") if row["n"]
    ]
    if not rows:
        return
    names = taxonomy.names
    worst = next((row for row in rows if row["is_worst"]), None)
    lowest: dict[int, float] = {}
    for row in rows:
        # Always show the classes of the worst group.
        score = -1.0 if row is worst else row["ci_low"]
        for label in (row["label"], row["bg_label"]):
            lowest[label] = min(score, lowest.get(label, 2.0))
    shown = worst_classes(lowest, taxonomy.num_labels, MOST_CELLS)
    rest = _of_all(shown, taxonomy)
    index = {label: position for position, label in enumerate(shown)}
    shares: list[list[float | None]] = [[None] * len(shown) for _ in shown]
    for row in rows:
        if row["label"] in index and row["bg_label"] in index:
            shares[index[row["label"]]][index[row["bg_label"]]] = row["accuracy"]
    worst_note = f" Worst: {names[worst['label']]} on {names[worst['bg_label']]}." if worst else ""
    yield Plot(
        "confusion",
        f"groups-mixed_rand-{model.folder}.svg",
        f"Accuracy of {model.name} on mixed_rand by class of foreground and background{rest}."
        f"{worst_note}",
        heat_map(
            f"By background: mixed_rand{rest}",
            [names[label] for label in shown],
            [names[label] for label in shown],
            shares,
            CLASSES,
            ("foreground, %", "background"),
            marked=(index[worst["label"]], index[worst["bg_label"]]) if worst else None,
        ),
        model.name,
    )


def fooled_by_class(
    models: Sequence[ModelResults], taxonomy: Taxonomy, is_paper: bool
) -> Iterator[Plot]:
    """Draws the share of foregrounds that each class of backgrounds fools; if there are many
    classes, those that fool the first model most."""
    title = titles(models)
    series = []
    shown: list[int] = []
    for model in models:
        rows = {row["label"]: row for row in (attack_measures(model) or {}).get("by_class") or ()}
        fooled = {label: row["fooled"] for label, row in rows.items() if row["foregrounds"]}
        if not shown and fooled:
            most = {label: 1 - share for label, share in fooled.items()}
            shown = worst_classes(most, taxonomy.num_labels, MOST_ROWS)
        values = tuple((fooled[label],) * 3 if label in fooled else None for label in shown)
        if any(values):
            series.append(Series(title(model), values))
    is_full = any(is_authors_grid(model.attack or {}) for model in models)
    if is_paper and is_full and len(series) < len(MODELS):
        published = tuple((share, share, share) for share in FOOLED_BY_CLASS)
        series.append(Series("IN-9L ResNet-50 (paper)", published))
    if series:
        names, rest = [taxonomy.names[label] for label in shown], _of_all(shown, taxonomy)
        yield Plot(
            "attack",
            "fooled_by_class.svg",
            "Share of other-class foregrounds that some background of a class turns into it"
            f"{rest}. {spoken(series, names)}",
            rows_figure(f"Fooled by any background of ...{rest}", names, series, "fooled, %"),
        )
