"""Comparisons: the paired difference of any two models, on each variant and in BG-Gap.

Two models see the same pictures, so the interval of their difference is far narrower than
their own intervals suggest. All models are resampled together, once; a pair costs no more
than the quantiles of a difference.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.answers import Answers, Images, read_answers
from pipeline.evaluate.results import display_name, tested_part
from transforms.intervals import (
    Floats,
    bootstrap_hashes,
    bootstrap_means,
    percentile_interval,
    sum_units,
)

COMPARISON_COLUMNS = (
    *("first", "second", "label_rule", "variant", "difference", "ci_low", "ci_high", "n"),
    *("split", "dataset"),
)
"""Columns of comparisons.csv: `difference` = first - second, in accuracy on a variant or in
BG-Gap (`bg_gap`, mean over replicates), a fraction, with the 95 % interval of a paired
bootstrap over the n foregrounds, or over their groups."""

_HELD = 8_000_000
"""Values of models that are held at a time, 8 bytes each."""


def compare_models(
    dataset: Dataset, summaries: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Rows of comparisons.csv: every two models of a split, in order of their summaries, in what
    both have predictions of."""
    by_part: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for summary in summaries:
        by_part.setdefault(tested_part(summary), []).append(summary)
    for (split, holdout), of_split in by_part.items():
        images = Images.read(dataset, split, holdout)
        if len(of_split) > 1 and len(images.keys):
            for row in _pairs(_resampled(dataset, of_split, images)):
                yield {
                    **row,
                    "n": len(images.keys),
                    "split": split,
                    "dataset": dataset.manifest.fingerprint,
                }


@dataclasses.dataclass(frozen=True, eq=False)
class _Resampled:
    """What is compared of a model.

    Attributes:
      model: its name.
      quantities: (label rule, variant or `bg_gap`) of each that it has.
      means: (quantities,) on all images.
      resampled: (resamples, quantities) on every resample of them.
    """

    model: str
    quantities: list[tuple[str, str]]
    means: Floats
    resampled: Floats


def _resampled(
    dataset: Dataset, summaries: Iterable[Mapping[str, Any]], images: Images
) -> list[_Resampled]:
    """Resamples models, as many at once as memory is meant for."""
    found: list[_Resampled] = []
    waiting: list[tuple[str, list[tuple[str, str]], Floats]] = []

    def resample() -> None:
        values = np.column_stack([values for *_, values in waiting])
        sums, sizes, units = sum_units(values, images.units)
        resampled = bootstrap_means(sums, sizes, bootstrap_hashes(units))
        first = 0
        for model, quantities, own in waiting:
            block = resampled[:, first : first + own.shape[1]]
            found.append(_Resampled(model, quantities, own.mean(axis=0), block))
            first += own.shape[1]
        waiting.clear()

    for summary in summaries:
        answers = read_answers(dataset, images, summary).by_rule
        waiting.append((display_name(summary), *quantities(answers)))
        if sum(values.size for *_, values in waiting) > _HELD:
            resample()
    if waiting:
        resample()
    return found


def quantities(answers: Mapping[str, Answers]) -> tuple[list[tuple[str, str]], Floats]:
    """(label rule, variant or `bg_gap`) of what is compared, and its (n, quantities) values."""
    quantities: list[tuple[str, str]] = []
    columns: list[Floats] = []
    for rule, of_rule in answers.items():
        correct = {
            variant: of_rule.correct(variant).astype(np.float64) for variant in of_rule.predictions
        }
        same, rand = (of_rule.replicates(name) for name in ("mixed_same", "mixed_rand"))
        if same and rand:
            means = [np.mean([correct[name] for name in of], axis=0) for of in (same, rand)]
            correct["bg_gap"] = means[0] - means[1]
        quantities += [(rule, name) for name in correct]
        columns += correct.values()
    return quantities, np.column_stack(columns)


def _pairs(models: Iterable[_Resampled]) -> Iterator[dict[str, Any]]:
    for first, second in itertools.combinations(models, 2):
        shared = [name for name in first.quantities if name in second.quantities]
        left, right = (
            [model.quantities.index(name) for name in shared] for model in (first, second)
        )
        if not shared:
            continue
        low, high = percentile_interval(first.resampled[:, left] - second.resampled[:, right])
        difference = first.means[left] - second.means[right]
        for place, (rule, variant) in enumerate(shared):
            yield {
                "first": first.model,
                "second": second.model,
                "label_rule": rule,
                "variant": variant,
                "difference": float(difference[place]),
                "ci_low": float(low[place]),
                "ci_high": float(high[place]),
            }
