"""Changes of accuracies between two states of a dataset, over the images that both states have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.analyses.evaluation.contributions import BG_GAP
from pipeline.analyses.evaluation.results import Summary
from pipeline.evaluate.predictions import EvalImages, Predictions, read_predictions
from pipeline.jobs.changes.images import State
from transforms.intervals import (
    Floats,
    bootstrap_hashes,
    bootstrap_means,
    percentile_interval,
    sum_units,
)
from transforms.variants import draws_of


class Difference(NamedTuple):
    """Difference of the accuracies on a variant, or of BG-Gaps: after minus before.

    Attributes:
      variant: name of the variant, or `bg_gap`.
      difference: the difference, -1 to 1, over the images that both states have.
      ci_low, ci_high: 95 % interval of a paired bootstrap.
    """

    variant: str
    difference: float
    ci_low: float
    ci_high: float


@dataclasses.dataclass(frozen=True)
class ModelChange:
    """Differences of a model that was evaluated in both states.

    Attributes:
      model: name of the model.
      causes: why they differ; may be empty.
      n: number of images in both states.
      label_rule: the label rule of its headline.
      rows: differences under this rule, for each variant in both states.
    """

    model: str
    causes: Sequence[str]
    n: int
    label_rule: str
    rows: Sequence[Difference]


def _model_causes(before: Summary, after: Summary) -> list[str]:
    """Names what differs between two evaluations of a model, apart from the dataset: `weights`,
    `evaluation` (flags, device, preprocessing), `code` (version of the stage)."""
    causes = []
    if before.weights_sha256 != after.weights_sha256:
        causes.append("weights")
    if (before.preprocessing, before.evaluation) != (after.preprocessing, after.evaluation):
        causes.append("evaluation")
    if before.evaluate_version != after.evaluate_version:
        causes.append("code")
    return causes


def compare_accuracies(
    before: State, after: State, dataset_causes: Sequence[str]
) -> Iterator[ModelChange]:
    """Yields the differences of each model that was evaluated in both states.

    Args:
      before, after: the states.
      dataset_causes: why the datasets differ; empty if they do not.
    """
    for folder, summary in after.summaries.items():
        was = before.summaries.get(folder)
        if was is None:
            continue
        n, rows = _differences(before, was, after, summary)
        causes = dict.fromkeys([*dataset_causes, *_model_causes(was, summary)])
        yield ModelChange(summary.name, list(causes), n, summary.headline, rows)


def _differences(
    before: State, was: Summary, after: State, summary: Summary
) -> tuple[int, list[Difference]]:
    """Returns the number of images in both states, and a row for each variant in both."""
    old_images = EvalImages.read(before.dataset, *was.tested_part)
    new_images = EvalImages.read(after.dataset, *summary.tested_part)
    old, new = (
        _values(read_predictions(state.dataset, images, one).by_rule.get(summary.headline))
        for state, images, one in ((before, old_images, was), (after, new_images, summary))
    )
    positions = old_images.positions(pa.chunked_array([new_images.keys]))
    shared = np.flatnonzero(positions >= 0)
    names = [name for name in new if name in old]
    if not len(shared) or not names:
        return 0, []
    first = np.column_stack([old[name][positions[shared]] for name in names])
    second = np.column_stack([new[name][shared] for name in names])
    estimate = (second - first).mean(axis=0)
    sums, sizes, units = sum_units(second - first, [new_images.units[i] for i in shared])
    means = bootstrap_means(sums, sizes, bootstrap_hashes(units))
    low, high = percentile_interval(means) if len(means) else (estimate, estimate)
    columns = (estimate.tolist(), low.tolist(), high.tolist())
    rows = [Difference(*row) for row in zip(names, *columns, strict=True)]
    return len(shared), rows


def _values(predictions: Predictions | None) -> dict[str, Floats]:
    """Computes for each variant, and for BG-Gap, an array with a value for each image: the share of
    its draws that were classified correctly, or the gap between two such shares."""
    if predictions is None:
        return {}
    values: dict[str, Floats] = {
        variant: np.mean([predictions.correct(name) for name in draws], axis=0)
        for variant, draws in draws_of(predictions.predicted).items()
    }
    if "mixed_same" in values and "mixed_rand" in values:
        values[BG_GAP] = values["mixed_same"] - values["mixed_rand"]
    return values
