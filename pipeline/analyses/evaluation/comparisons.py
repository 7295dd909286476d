"""Paired differences between any two models, in accuracy on each variant and in BG-Gap.

Because two models see the same pictures, the interval of their difference is far narrower than
their own intervals suggest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from pipeline.analyses.evaluation.contributions import ModelsOnSameImages
from pipeline.display.table import Table
from pipeline.storage.csv_file import read_csv
from pipeline.storage.state_files import convert
from pipeline.storage.store import Store
from transforms.intervals import holm
from transforms.two_way import difference_interval, p_value, variance_of_sums


class ComparisonRow(msgspec.Struct, frozen=True, kw_only=True):
    """The difference of two models. The figure compared is the accuracy on `variant` or, if that is
    `bg_gap`, BG-Gap (the mean over replicates)."""

    first: Annotated[str, Meta(description="name of a model")]
    second: Annotated[str, Meta(description="name of the model that it is compared with")]
    label_rule: str
    variant: str
    difference: Annotated[
        float, Meta(description="accuracy (or gap) of `first` - that of `second`")
    ]
    ci_low: float
    ci_high: float
    p_adjusted: Annotated[
        float,
        Meta(
            description="p value of the difference, with Holm's adjustment for all pairs of "
            "models with this label rule and variant"
        ),
    ]
    n: int
    split: str
    dataset: str


COMPARISONS = Table(
    "comparisons",
    (ComparisonRow,),
    "difference of two models on the same pictures, with its two-way interval: "
    "[intervals](results.md#intervals)",
)


def compare_models(
    fingerprint: str, parts: Iterable[ModelsOnSameImages]
) -> Iterator[ComparisonRow]:
    """Yields the rows of comparisons.csv.

    Any two models that were tested on the same images are compared in each quantity (accuracy on a
    variant, or BG-Gap) that both have predictions for. Pairs are in the order of the summaries.

    Args:
      fingerprint: the dataset's fingerprint.
      parts: models with their predictions on the same images, as `read_contributions` returns them.
    """
    for part in parts:
        if len(part.summaries) < 2:
            continue
        differences = [_differences(part, *quantity) for quantity in part.quantities]
        for pair in itertools.combinations(range(len(part.summaries)), 2):
            first, second = (part.summaries[position] for position in pair)
            for (rule, variant), by_pair in zip(part.quantities, differences, strict=True):
                if pair in by_pair:
                    yield ComparisonRow(
                        first=first.name,
                        second=second.name,
                        label_rule=rule,
                        variant=variant,
                        **by_pair[pair],
                        n=len(part.images.keys),
                        split=first.evaluation.split,
                        dataset=fingerprint,
                    )


def read_comparisons(store: Store) -> list[ComparisonRow]:
    """Reads comparisons.csv; returns no rows if the file is missing."""
    path = f"results/{COMPARISONS.name}.csv"
    if not store.exists(path):
        return []
    return [convert(row, ComparisonRow, strict=False) for row in read_csv(store.read(path))]


def _differences(
    part: ModelsOnSameImages, rule: str, quantity: str
) -> dict[tuple[int, int], dict[str, float]]:
    """Computes the differences of all pairs of models that have predictions for a quantity.

    Returns:
      Positions of the two models in `part.summaries` -> fields of a `ComparisonRow`.
    """
    positions, figures, contributions = part.contributions(rule, quantity)
    if len(positions) < 2:
        return {}
    roles = part.roles(quantity)
    sums = roles.sums(contributions)
    difference = np.concatenate([figure - figures[i + 1 :] for i, figure in enumerate(figures)])
    variance = np.concatenate(
        [
            variance_of_sums([by_model[i] - by_model[i + 1 :] for by_model in sums])
            for i in range(len(figures))
        ]
    )
    low, high = difference_interval(difference, variance, roles.units)
    adjusted = holm(p_value(difference, variance, roles.units))
    names = ("difference", "ci_low", "ci_high", "p_adjusted")
    return {
        pair: dict(zip(names, map(float, values), strict=True))
        for pair, *values in zip(
            itertools.combinations(positions, 2), difference, low, high, adjusted, strict=True
        )
    }
