"""The rows of families.csv, and those of comparisons.csv that compare families."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.evaluate.comparisons import ComparisonRow, ModelsOnSameImages
from pipeline.evaluate.families import Family, FamilyRow
from pipeline.evaluate.results import pick
from transforms.families import spread_of_further
from transforms.intervals import holm
from transforms.two_way import p_value


def family_rows(fingerprint: str, compared: Iterable[ModelsOnSameImages]) -> Iterator[FamilyRow]:
    """Yields the rows of families.csv, without those of missing predictions."""
    for models in compared:
        for family, (rule, quantity) in itertools.product(models.families, models.quantities):
            if models.has(quantity, models.answers(family, rule)):
                yield _row(fingerprint, models, family, rule, quantity)


def _row(
    fingerprint: str, models: ModelsOnSameImages, family: Family, rule: str, quantity: str
) -> FamilyRow:
    seeds = models.seeds(quantity, models.answers(family, rule))
    bounds: dict[str, float] = {}
    if measured := models.measure_seeds(quantity, seeds):
        further = spread_of_further(measured.roles, seeds)
        for name, spread in (("ci", measured.spread), ("further", further)):
            low, high = dataclasses.replace(measured, spread=spread).interval()
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
            p_values = [p_value(np.asarray(one.value), one.spread) for *_, one in measured]
            adjusted = holm(np.asarray(p_values)) if measured else ()
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
                    p_adjusted=float(p_adjusted),
                    n=one.n,
                    split=first.tested_on[0],
                    dataset=fingerprint,
                )
