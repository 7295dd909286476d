"""Figures of the attack: foregrounds fooled by class, and accuracy by number of backgrounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from pipeline.analyses.attack.results import AttackResult
from pipeline.display.evidence import Evidence, ModelResults
from pipeline.display.plot import (
    COMPARED,
    MOST_ROWS,
    Plot,
    Series,
    lines_figure,
    of_all,
    rows_figure,
    spoken,
    worst_classes,
)
from pipeline.evaluate.published import FOOLED_BY_CLASS
from transforms.taxonomy import Taxonomy

_Attacked = tuple[ModelResults, AttackResult]


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figures for which there are results."""
    attacked = evidence.models_with(AttackResult)[:COMPARED]
    yield from _fooled_by_class(attacked, evidence.taxonomy, evidence.dataset.is_comparable)
    yield from _by_backgrounds(attacked)


def _titles(attacked: Sequence[_Attacked]) -> Callable[[_Attacked], str]:
    """Returns a function that names attacked models, with the size of their grid if sizes
    differ."""
    if len({attack.size for _, attack in attacked}) == 1:
        return lambda one: one[0].name
    return lambda one: f"{one[0].name}, {one[1].size}"


def _fooled_by_class(
    attacked: Sequence[_Attacked], taxonomy: Taxonomy, is_paper: bool
) -> Iterator[Plot]:
    """Draws the share of foregrounds that each class of backgrounds fools; if there are many
    classes, those that fool the first model most."""
    title = _titles(attacked)
    series = []
    shown: list[int] = []
    for one in attacked:
        fooled = {row.label: row.fooled for row in one[1].measures.by_class if row.foregrounds}
        if not shown and fooled:
            most = {label: 1 - share for label, share in fooled.items()}
            shown = worst_classes(most, taxonomy.num_labels, MOST_ROWS)
        values = tuple((fooled[label],) * 3 if label in fooled else None for label in shown)
        if any(values):
            series.append(Series(title(one), values))
    is_full = any(attack.is_authors_grid for _, attack in attacked)
    if is_paper and is_full and len(series) < COMPARED:
        published = tuple((share, share, share) for share in FOOLED_BY_CLASS)
        series.append(Series("IN-9L ResNet-50 (paper)", published))
    if series:
        names, rest = [taxonomy.names[label] for label in shown], of_all(shown, taxonomy)
        yield Plot(
            "attack",
            "fooled_by_class.svg",
            "Share of other-class foregrounds that some background of a class turns into it"
            f"{rest}. {spoken(series, names)}",
            rows_figure(f"Fooled by any background of ...{rest}", names, series, "fooled, %"),
        )


def _by_backgrounds(attacked: Sequence[_Attacked]) -> Iterator[Plot]:
    title = _titles(attacked)
    curves = {
        title(one): {
            row.backgrounds: row.accuracy for row in one[1].measures.accuracy_by_backgrounds
        }
        for one in attacked
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
