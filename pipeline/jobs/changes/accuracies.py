"""Changes of accuracies between two states of a dataset, over the images that both states have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.evaluate.contributions import BG_GAP
from pipeline.evaluate.predictions import EvalImages, Predictions, read_predictions
from pipeline.evaluate.result_files import display_name, tested_part
from pipeline.jobs.changes.images import State, Summary
from transforms.intervals import (
    Floats,
    bootstrap_hashes,
    bootstrap_means,
    percentile_interval,
    sum_units,
)
from transforms.scoring import PAPER_RULE
from transforms.variants import draws_of


def _model_causes(before: Summary, after: Summary) -> list[str]:
    """Names what differs between two evaluations of a model, apart from the dataset: `weights`,
    `evaluation` (flags, device, preprocessing), `code` (version of the stage)."""
    causes = []
    if before["weights_sha256"] != after["weights_sha256"]:
        causes.append("weights")
    if any(before.get(name) != after.get(name) for name in ("preprocessing", "evaluation")):
        causes.append("evaluation")
    if before.get("evaluate_version") != after.get("evaluate_version"):
        causes.append("code")
    return causes


def compare_accuracies(
    before: State, after: State, dataset_causes: list[str]
) -> Iterator[dict[str, Any]]:
    """Yields the differences of each model that was evaluated in both states.

    Args:
      before, after: the states.
      dataset_causes: why the datasets differ; empty if they do not.

    Yields:
      `model`, `causes`, `n` (number of images in both states), and `rows` under the paper's label
      rule, one for each variant that the model has predictions for in both states: `variant` (or
      `bg_gap`) and `difference`, the accuracy (or gap) after minus before on these images, with the
      95 % interval of a paired bootstrap, `ci_low` and `ci_high`.
    """
    for folder, summary in after.summaries.items():
        was = before.summaries.get(folder)
        if was is None:
            continue
        n, rows = _differences(before, was, after, summary)
        causes = [*dataset_causes, *_model_causes(was, summary)]
        yield {
            "model": display_name(summary),
            "causes": list(dict.fromkeys(causes)),
            "n": n,
            "rows": rows,
        }


def _differences(
    before: State, was: Summary, after: State, summary: Summary
) -> tuple[int, list[dict[str, Any]]]:
    """Returns the number of images in both states, and a row for each variant in both."""
    old_images = EvalImages.read(before.dataset, *tested_part(was))
    new_images = EvalImages.read(after.dataset, *tested_part(summary))
    old = _values(read_predictions(before.dataset, old_images, was).by_rule[PAPER_RULE])
    new = _values(read_predictions(after.dataset, new_images, summary).by_rule[PAPER_RULE])
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
    rows = [
        {
            "variant": variant,
            "difference": float(estimate[column]),
            "ci_low": float(low[column]),
            "ci_high": float(high[column]),
        }
        for column, variant in enumerate(names)
    ]
    return len(shared), rows


def _values(predictions: Predictions) -> dict[str, Floats]:
    """Computes for each variant, and for BG-Gap, an array with a value for each image: the share of
    its draws that were classified correctly, or the gap between two such shares."""
    values: dict[str, Floats] = {
        variant: np.mean([predictions.correct(name) for name in draws], axis=0)
        for variant, draws in draws_of(predictions.predicted).items()
    }
    if "mixed_same" in values and "mixed_rand" in values:
        values[BG_GAP] = values["mixed_same"] - values["mixed_rand"]
    return values
