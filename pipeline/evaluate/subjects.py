"""What tables say of families, and of families and models in none together.

These are the rows of families.csv, those of comparisons.csv that compare families, and which
accuracies cannot be told from the best: of models that are in no family, and of families. Tables
show them in bold.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from msgspec.structs import replace

from pipeline.evaluate.comparisons import (
    GAP,
    ComparisonRow,
    Measured,
    ModelsOnSameImages,
    adjusted_p_values,
)
from pipeline.evaluate.families import FamilyRow, subjects_of
from pipeline.evaluate.results import pick
from pipeline.evaluate.summary import Summary
from transforms.intervals import CONFIDENCE, t_quantile
from transforms.two_way import Seeds, spread_of_methods
from transforms.variants import BG_GAP, OBJECT_HIDDEN, VariantName

IN_BOLD = (
    "bold: cannot be told from the best in its column (paired, Holm's adjustment, 5 %); never "
    "where the object is hidden, because a high accuracy there means use of the background"
)
"""What bold print means in all tables, on the page and in LaTeX; a star means significant."""

_Figure = tuple[object, str, str]
"""(the images tested on, label rule, variant)."""


def column_of(quantity: str) -> str:
    """Returns the column of a quantity in tables for readers: its name, or `BG-Gap X` of a gap."""
    return re.sub(f"^{BG_GAP}_?", f"{GAP} ", quantity).strip()


def family_rows(fingerprint: str, compared: Iterable[ModelsOnSameImages]) -> Iterator[FamilyRow]:
    """Yields the rows of families.csv, without those of missing predictions."""
    for models in compared:
        for family, (rule, quantity) in itertools.product(models.families, models.quantities):
            seeds = models.seeds(quantity, models.answers(family, rule))
            if seeds is None:
                continue
            measured, none = models.measure(quantity, family, rule), (None, None)
            low, high = measured.interval() if measured else none
            further_low, further_high = interval_of_further(measured, seeds) if measured else none
            yield pick(
                FamilyRow,
                family.members[0].evaluation,
                family=family.name,
                label_rule=rule,
                variant=quantity,
                seeds=len(family.members),
                mean=float(seeds.values.mean()),
                sd=float(seeds.values.std(ddof=1)),
                lowest=float(seeds.values.min()),
                highest=float(seeds.values.max()),
                ci_low=low,
                ci_high=high,
                further_low=further_low,
                further_high=further_high,
                n=models.pictures[quantity].n,
                members="; ".join(one.name for one in family.members),
                dataset=fingerprint,
            )


def interval_of_further(measured: Measured, seeds: Seeds) -> tuple[float, float]:
    """Computes the 95 % interval (low, high) of one further seed, from those of a method.

    `measured` is the mean of the seeds. The interval of a mean is short on the side of 1, or of 0,
    because means that lie there have small errors. A further seed scatters around the mean as the
    others do, so its interval reaches t standard errors to both sides, or more.
    """
    spread = spread_of_methods(measured.roles, seeds, further=True)
    low, high = dataclasses.replace(measured, spread=spread).interval()
    if spread.units < 2:
        return low, high
    reach = t_quantile(spread.units - 1, CONFIDENCE) * float(spread.variance) ** 0.5
    low, high = min(low, measured.value - reach), max(high, measured.value + reach)
    return max(low, -1.0 if measured.trials is None else 0.0), min(high, 1.0)


def compare_families(
    fingerprint: str, compared: Iterable[ModelsOnSameImages]
) -> Iterator[ComparisonRow]:
    """Yields the rows of comparisons.csv on any two families that were tested on the same images.

    P values are adjusted for all pairs of families with a label rule and quantity.
    """
    for models in compared:
        for rule, quantity in models.quantities:
            measured = [
                (first, second, one)
                for first, second in itertools.combinations(models.families, 2)
                if (one := models.measure(quantity, first, rule, models.answers(second, rule)))
            ]
            adjusted = adjusted_p_values(one for *_, one in measured)
            for (first, second, one), p_adjusted in zip(measured, adjusted, strict=True):
                low, high = one.interval()
                yield ComparisonRow(
                    first=first.name,
                    second=second.name,
                    label_rule=rule,
                    variant=quantity,
                    difference=one.value,
                    ci_low=low,
                    ci_high=high,
                    p_adjusted=p_adjusted,
                    n=one.n,
                    split=first.tested_on[0],
                    dataset=fingerprint,
                )


def mark_best(
    summaries: Sequence[Summary],
    compared: Iterable[ComparisonRow],
    figures: Sequence[FamilyRow] = (),
) -> tuple[list[Summary], list[FamilyRow]]:
    """Marks accuracies that do not differ measurably from the best on the same images.

    These are the highest of a label rule and variant, and those whose difference from it is known
    and not significant: among models in no family, and among families that have an interval. The
    differences are adjusted for all pairs, so it does not matter that the best one was selected.
    Nothing is said of what has no rival, nor of a variant that hides the object.
    """
    subjects = {one.name for one in subjects_of(summaries)}
    known = [
        ((one.tested_on, row.label_rule, row.variant), one.name, row.accuracy or 0.0)
        for one in summaries
        if one.name in subjects
        for row in one.accuracy
        if row.n
    ]
    known += [
        (((row.split, row.n), row.label_rule, row.variant), row.family, row.mean)
        for row in figures
        if row.ci_low is not None and not row.variant.startswith(BG_GAP)
    ]
    rivals: dict[_Figure, dict[str, float]] = {}
    for figure, name, accuracy in known:
        rivals.setdefault(figure, {})[name] = accuracy
    tied = {
        (row.label_rule, row.variant, *pair)
        for row in compared
        if not row.is_significant
        for pair in itertools.permutations((row.first, row.second))
    }
    best: dict[_Figure, dict[str, bool]] = {
        figure: {name: name == first or (*figure[1:], name, first) in tied for name in of_figure}
        for figure, of_figure in rivals.items()
        if len(of_figure) > 1 and VariantName.parse(figure[2]).base not in OBJECT_HIDDEN
        for _, first in [max((accuracy, name) for name, accuracy in of_figure.items())]
    }
    marked = [
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
    return marked, [
        replace(row, among_best=of_figure.get(row.family))
        for row in figures
        for of_figure in [best.get(((row.split, row.n), row.label_rule, row.variant), {})]
    ]
