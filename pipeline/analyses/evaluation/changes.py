"""Changes of accuracies between two states of a dataset, over the images that both states have."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.analyses.evaluation.comparisons import BG_GAP
from pipeline.analyses.evaluation.results import Summary
from pipeline.analyses.evaluation.summaries import read_summaries
from pipeline.analyses.parts import Changed
from pipeline.dataset.card import markdown
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.predictions import EvalImages, Predictions, read_predictions
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
    """Names what differs between two evaluations of a model, apart from the dataset.

    The names are `weights`, `evaluation` (flags, device, preprocessing) and `code` (version of the
    stage).
    """
    differs = {
        "weights": before.weights_sha256 != after.weights_sha256,
        "evaluation": (before.preprocessing, before.evaluation)
        != (after.preprocessing, after.evaluation),
        "code": before.evaluate_version != after.evaluate_version,
    }
    return [cause for cause, is_one in differs.items() if is_one]


def compare_accuracies(
    before: Dataset, after: Dataset, dataset_causes: Sequence[str]
) -> tuple[list[ModelChange], list[str]]:
    """Compares the accuracies of models in two states of a dataset.

    Args:
      before: the first state.
      after: the second state.
      dataset_causes: why the datasets differ; empty if they do not.

    Returns:
      (differences of each model that was evaluated in both states; names of the models that were
      evaluated only in the second).
    """
    models, new_models = [], []
    earlier = {summary.folder: summary for summary in read_summaries(before)[0]}
    for summary in read_summaries(after)[0]:
        was = earlier.get(summary.folder)
        if was is None:
            new_models.append(summary.name)
            continue
        n, rows = _differences(before, was, after, summary)
        causes = dict.fromkeys([*dataset_causes, *_model_causes(was, summary)])
        models.append(ModelChange(summary.name, list(causes), n, summary.headline, rows))
    return models, new_models


def describe_models(models: Sequence[ModelChange], new_models: Sequence[str]) -> Changed:
    """Describes what `compare_accuracies` returns."""
    short = [
        f"BG-Gap of {markdown(model.model)}: {_difference(row)} ({_causes(model)})"
        for model in models
        for row in model.rows
        if row.variant == BG_GAP
    ]
    if new_models:
        short.append(f"new models: {', '.join(map(markdown, new_models))}")
    # A model may lack BG-Gap, but differ in other accuracies.
    is_same = not any(row.difference for model in models for row in model.rows)
    lines = list(_lines(models)) if models else []
    return Changed(short, "accuracies" if is_same else "BG-Gap", lines)


def _lines(models: Sequence[ModelChange]) -> Iterator[str]:
    names = dict.fromkeys(row.variant for model in models for row in model.rows)
    variants = [name for name in names if name != BG_GAP]
    yield from ("", "## Accuracies")
    for rule in dict.fromkeys(model.label_rule for model in models):
        yield from (
            "",
            "Differences in percentage points over the n images in both versions, with 95 % "
            f"intervals of a paired bootstrap, under {rule}.",
            "",
            "| model | cause | n | " + " | ".join([*map(markdown, variants), "BG-Gap"]) + " |",
            "|---|---|--:|" + "--:|" * (len(variants) + 1),
        )
        for model in (one for one in models if one.label_rule == rule):
            rows = {row.variant: row for row in model.rows}
            cells = [
                _difference(rows[name]) if name in rows else "-" for name in (*variants, BG_GAP)
            ]
            yield (
                f"| {markdown(model.model)} | {_causes(model)} | {model.n} | {' | '.join(cells)} |"
            )


def _causes(model: ModelChange) -> str:
    return ", ".join(model.causes) or "cause unknown"


def _difference(row: Difference) -> str:
    """Formats a difference in percentage points, such as `+0.4 [-0.2, 1.0]`."""
    numbers = [100 * number for number in (row.difference, row.ci_low, row.ci_high)]
    # Adding zero turns a rounded -0.0 into 0.0.
    value, low, high = (round(number, 1) + 0.0 for number in numbers)
    return f"{value:+.1f} [{low:.1f}, {high:.1f}]" if value else f"0.0 [{low:.1f}, {high:.1f}]"


def _differences(
    before: Dataset, was: Summary, after: Dataset, summary: Summary
) -> tuple[int, list[Difference]]:
    """Returns the number of images in both states, and a row for each variant in both."""
    old_images = EvalImages.read(before, *was.tested_on)
    new_images = EvalImages.read(after, *summary.tested_on)
    old, new = (
        _values(read_predictions(dataset, images, one).by_rule.get(summary.headline))
        for dataset, images, one in ((before, old_images, was), (after, new_images, summary))
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
    return len(shared), [Difference(*row) for row in zip(names, *columns, strict=True)]


def _values(predictions: Predictions | None) -> dict[str, Floats]:
    """Computes for each variant, and for BG-Gap, an array with a value for each image.

    The value is the share of the image's draws that were classified correctly, or the gap between
    two such shares.
    """
    if predictions is None:
        return {}
    values: dict[str, Floats] = {
        variant: np.mean([predictions.correct(name) for name in draws], axis=0)
        for variant, draws in draws_of(predictions.predicted).items()
    }
    if "mixed_same" in values and "mixed_rand" in values:
        values[BG_GAP] = values["mixed_same"] - values["mixed_rand"]
    return values
