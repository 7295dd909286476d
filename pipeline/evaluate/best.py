"""Which accuracies cannot be told from the best: of models that are in no family, and of families.

Tables show them in bold.
"""

import itertools
from collections.abc import Iterable

from msgspec.structs import replace

from pipeline.evaluate.comparisons import BG_GAP, ComparisonRow
from pipeline.evaluate.families import FamilyRow, subjects_of
from pipeline.evaluate.summary import Summary
from transforms.variants import OBJECT_HIDDEN, VariantName

IN_BOLD = (
    "bold: cannot be told from the best in its column (paired, Holm's adjustment, 5 %); never "
    "where the object is hidden, because a high accuracy there means use of the background"
)
"""What bold print means in all tables, on the page and in LaTeX; a star means significant."""

_Figure = tuple[object, str, str]
"""(the images tested on, label rule, variant)."""


def mark_best(summaries: Iterable[Summary], compared: Iterable[ComparisonRow]) -> list[Summary]:
    """Marks accuracies that do not differ measurably from the best on the same images.

    Seeds of families are not marked, because those of one family are not compared.
    """
    summaries = list(summaries)
    subjects = {one.name for one in subjects_of(summaries)}
    best = _among_best(
        (
            ((one.tested_on, row.label_rule, row.variant), one.name, row.accuracy or 0.0)
            for one in summaries
            if one.name in subjects
            for row in one.accuracy
            if row.n
        ),
        compared,
    )
    return [
        replace(
            one,
            accuracy=tuple(
                replace(row, among_best=of_figure.get(one.name))
                for row in one.accuracy
                for of_figure in [best.get((one.tested_on, row.label_rule, row.variant), {})]
            ),
        )
        for one in summaries
    ]


def mark_families(rows: Iterable[FamilyRow], compared: Iterable[ComparisonRow]) -> list[FamilyRow]:
    """Marks families' accuracies as `mark_best` does; those without an interval are left out."""
    figures = {row: ((row.split, row.n), row.label_rule, row.variant) for row in rows}
    best = _among_best(
        (
            (figure, row.family, row.mean)
            for row, figure in figures.items()
            if row.ci_low is not None and row.variant != BG_GAP
        ),
        compared,
    )
    return [
        replace(row, among_best=best.get(figure, {}).get(row.family))
        for row, figure in figures.items()
    ]


def _among_best(
    accuracies: Iterable[tuple[_Figure, str, float]], compared: Iterable[ComparisonRow]
) -> dict[_Figure, dict[str, bool]]:
    """Says whether accuracies, as (figure, name, accuracy), do not differ measurably from the best.

    These are the highest of a figure, and those whose difference from it is known and not
    significant. The differences are adjusted for all pairs, so it does not matter that the best one
    was selected. Nothing is said of a figure that a single one has, nor of one on a variant that
    hides the object.
    """
    rivals: dict[_Figure, dict[str, float]] = {}
    for figure, name, accuracy in accuracies:
        rivals.setdefault(figure, {})[name] = accuracy
    tied = {
        (row.label_rule, row.variant, *pair)
        for row in compared
        if not row.is_significant
        for pair in itertools.permutations((row.first, row.second))
    }
    return {
        figure: {name: name == best or (*figure[1:], name, best) in tied for name in of_figure}
        for figure, of_figure in rivals.items()
        if len(of_figure) > 1 and VariantName.parse(figure[2]).base not in OBJECT_HIDDEN
        for _, best in [max((value, name) for name, value in of_figure.items())]
    }
