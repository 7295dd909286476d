"""Comparisons: the paired difference of any two models, on each variant and in BG-Gap.

Two models see the same pictures, so the interval of their difference is far narrower than
their own intervals suggest.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from pipeline.evaluate.contributions import ModelContributions
from pipeline.evaluate.result_files import display_name
from transforms.intervals import holm
from transforms.two_way import difference_interval, p_value, variance_of_sums

COMPARISON_COLUMNS = (
    *("first", "second", "label_rule", "variant", "difference", "ci_low", "ci_high"),
    *("p_adjusted", "n", "split", "dataset"),
)
"""Columns of comparisons.csv: `difference` = first - second, in accuracy on a variant or in
BG-Gap (`bg_gap`, mean over replicates), a fraction, with its two-way 95 % interval over the n
foregrounds, or over their groups, and their backgrounds; `p_adjusted` by Holm over all pairs."""


def compare_models(
    fingerprint: str, measured: Iterable[ModelContributions]
) -> Iterator[dict[str, Any]]:
    """Rows of comparisons.csv: every two models of a split, in order of their summaries, in what
    both have predictions of.

    Args:
      fingerprint: of the dataset.
      measured: of `read_measured`.
    """
    for part in measured:
        if len(part.summaries) < 2:
            continue
        found = [_differences(part, *quantity) for quantity in part.quantities]
        for pair in itertools.combinations(range(len(part.summaries)), 2):
            first, second = (part.summaries[place] for place in pair)
            for (rule, variant), of_pair in zip(part.quantities, found, strict=True):
                if pair in of_pair:
                    yield {
                        "first": display_name(first),
                        "second": display_name(second),
                        "label_rule": rule,
                        "variant": variant,
                        **of_pair[pair],
                        "n": len(part.images.keys),
                        "split": first["evaluation"]["split"],
                        "dataset": fingerprint,
                    }


def _differences(
    part: ModelContributions, rule: str, quantity: str
) -> dict[tuple[int, int], dict[str, float]]:
    """What is known of the difference of each two models that have predictions of a quantity, by
    their places."""
    places, values, r = part.contributions(rule, quantity)
    if len(places) < 2:
        return {}
    roles = part.roles(quantity)
    sums = roles.sums(r)
    difference = np.concatenate([value - values[i + 1 :] for i, value in enumerate(values)])
    variance = np.concatenate(
        [
            variance_of_sums([of_role[i] - of_role[i + 1 :] for of_role in sums])
            for i in range(len(values))
        ]
    )
    low, high = difference_interval(difference, variance, roles.units)
    adjusted = holm(p_value(difference, variance, roles.units))
    names = ("difference", "ci_low", "ci_high", "p_adjusted")
    return {
        pair: dict(zip(names, map(float, of_pair), strict=True))
        for pair, *of_pair in zip(
            itertools.combinations(places, 2), difference, low, high, adjusted, strict=True
        )
    }
