"""Paired differences between any two models, in accuracy on each variant and in BG-Gap.

Because two models see the same pictures, the interval of their difference is far narrower than
their own intervals suggest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from pipeline.evaluate.contributions import ModelsOnSameImages
from pipeline.evaluate.result_files import display_name
from transforms.intervals import holm
from transforms.two_way import difference_interval, p_value, variance_of_sums

COMPARISON_COLUMNS = (
    *("first", "second", "label_rule", "variant", "difference", "ci_low", "ci_high"),
    *("p_adjusted", "n", "split", "dataset"),
)
"""Columns of comparisons.csv. `difference` is the figure of `first` minus that of `second`, as a
fraction. The figure is the accuracy on `variant` or, if `variant` is `bg_gap`, BG-Gap (the mean
over replicates). `ci_low` and `ci_high` are a two-way 95 % interval, over the n foregrounds (or
their groups) and over their backgrounds. `p_adjusted` is a p-value of no difference, adjusted by
Holm's method over all pairs of models with this figure under this label rule."""


def compare_models(
    fingerprint: str, parts: Iterable[ModelsOnSameImages]
) -> Iterator[dict[str, Any]]:
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
                    yield {
                        "first": display_name(first),
                        "second": display_name(second),
                        "label_rule": rule,
                        "variant": variant,
                        **by_pair[pair],
                        "n": len(part.images.keys),
                        "split": first["evaluation"]["split"],
                        "dataset": fingerprint,
                    }


def _differences(
    part: ModelsOnSameImages, rule: str, quantity: str
) -> dict[tuple[int, int], dict[str, float]]:
    """Computes the differences of all pairs of models that have predictions for a quantity.

    Returns:
      Positions of the two models in `part.summaries` -> columns of comparisons.csv.
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
