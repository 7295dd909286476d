"""The rows of families.csv, and those of comparisons.csv that compare families."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

from pipeline.evaluate.comparisons import (
    ComparisonRow,
    Measured,
    ModelsOnSameImages,
    adjusted_p_values,
)
from pipeline.evaluate.families import Family, FamilyRow
from pipeline.evaluate.results import pick
from transforms.families import Seeds, spread_of_further
from transforms.intervals import CONFIDENCE, t_quantile


def family_rows(fingerprint: str, compared: Iterable[ModelsOnSameImages]) -> Iterator[FamilyRow]:
    """Yields the rows of families.csv, without those of missing predictions."""
    for models in compared:
        for family, (rule, quantity) in itertools.product(models.families, models.quantities):
            if seeds := models.seeds(quantity, models.answers(family, rule)):
                yield _row(fingerprint, models, family, rule, quantity, seeds)


def interval_of_further(measured: Measured, seeds: Seeds) -> tuple[float, float]:
    """Computes the 95 % interval (low, high) of one further seed, from those of a method.

    `measured` is the mean of the seeds. The interval of a mean is short on the side of 1, or of 0,
    because means that lie there have small errors. A further seed scatters around the mean as the
    others do, so its interval reaches t standard errors to both sides, or more.
    """
    spread = spread_of_further(measured.roles, seeds)
    low, high = dataclasses.replace(measured, spread=spread).interval()
    if spread.units < 2:
        return low, high
    reach = t_quantile(spread.units - 1, CONFIDENCE) * float(spread.variance) ** 0.5
    low, high = min(low, measured.value - reach), max(high, measured.value + reach)
    return max(low, -1.0 if measured.trials is None else 0.0), min(high, 1.0)


def _row(
    fingerprint: str,
    models: ModelsOnSameImages,
    family: Family,
    rule: str,
    quantity: str,
    seeds: Seeds,
) -> FamilyRow:
    bounds: dict[str, float] = {}
    if measured := models.measure(quantity, family, rule):
        further = interval_of_further(measured, seeds)
        for name, (low, high) in (("ci", measured.interval()), ("further", further)):
            bounds |= {f"{name}_low": low, f"{name}_high": high}
    return pick(
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
        n=len(models.images.keys),
        members="; ".join(one.name for one in family.members),
        dataset=fingerprint,
        **bounds,
    )


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
