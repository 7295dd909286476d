"""Figures of the attack: foregrounds fooled by class, and accuracy by number of backgrounds."""

from collections.abc import Iterator, Sequence

from pipeline.analyses.attack.results import AttackResult
from pipeline.display.panel import COMPARED
from pipeline.display.plot import (
    Plot,
    Series,
    by_class,
    lines_figure,
    of_all,
    rows_figure,
    spoken,
)
from pipeline.evaluate.evidence import FOOLED_BY_CLASS, Evidence
from transforms.taxonomy import Taxonomy


def make_plots(evidence: Evidence) -> Iterator[Plot]:
    """Makes the figures with results; models are named with their grid's size if sizes differ."""
    attacked = evidence.models_with(AttackResult)[:COMPARED]
    has_sizes = len({attack.size for _, attack in attacked}) > 1
    named = [
        (f"{model.name}, {attack.size}" if has_sizes else model.name, attack)
        for model, attack in attacked
    ]
    yield from _fooled_by_class(named, evidence.taxonomy, evidence.dataset.is_comparable)
    yield from _by_backgrounds(named)


def _fooled_by_class(
    attacked: Sequence[tuple[str, AttackResult]], taxonomy: Taxonomy, is_paper: bool
) -> Iterator[Plot]:
    """Draws the share of foregrounds that each class of backgrounds fools.

    If there are many classes, it draws those that fool the first model most.
    """
    fooled = [
        (
            name,
            {row.label: (row.fooled,) * 3 for row in attack.measures.by_class if row.foregrounds},
        )
        for name, attack in attacked
    ]
    shown, series = by_class(fooled, taxonomy.num_labels, is_high_worse=True)
    if not series:
        return
    is_full = any(attack.is_authors_grid for _, attack in attacked)
    if is_paper and is_full and len(series) < COMPARED:
        series.append(
            Series("IN-9L ResNet-50 (paper)", tuple((share,) * 3 for share in FOOLED_BY_CLASS))
        )
    names, rest = [taxonomy.names[label] for label in shown], of_all(shown, taxonomy)
    yield Plot(
        "attack",
        "fooled_by_class.svg",
        "Share of other-class foregrounds that some background of a class turns into it"
        f"{rest}. {spoken(series, names)}",
        rows_figure(f"Fooled by any background of ...{rest}", names, series, "fooled, %"),
    )


def _by_backgrounds(attacked: Sequence[tuple[str, AttackResult]]) -> Iterator[Plot]:
    curves = {
        name: {row.backgrounds: row.accuracy for row in attack.measures.accuracy_by_backgrounds}
        for name, attack in attacked
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
