"""The measurements by which claims are judged.

An estimate is (value, low, high), where low and high are the bounds of its 95 % interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.evaluate import published
from pipeline.report.evidence import ModelResults
from pipeline.report.verdicts import Estimate
from transforms.scoring import PAPER_RULE

TIMES = "\N{MULTIPLICATION SIGN}"


@dataclasses.dataclass(frozen=True)
class Results:
    """The results by which claims are judged: models, the trend over them, and matrices."""

    models: Sequence[ModelResults]
    trend: dict[str, Any] | None
    matrices: Sequence[dict[str, Any]] = ()


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model trained on a variant: either evaluated by itself, or a row of a matrix.

    Attributes:
      name: name of the model.
      variant: the variant that it was trained on.
      accuracies: its accuracies, by the variant that it was tested on.
      chances: accuracy of a constant answer, by the variant that it was tested on.
      gap: its BG-Gap, None if unknown.
      matrix: name of the matrix in which it is a row; "" if it was evaluated by itself.
    """

    name: str
    variant: str
    accuracies: Mapping[str, Estimate]
    chances: Mapping[str, float]
    gap: Estimate | None
    matrix: str = ""


def training_of(model: ModelResults) -> str | None:
    """Returns the variant that a model was trained on, as its checkpoint or its name says; None if
    unknown."""
    variant = model.trained.get("variant")
    summary = model.summary or model.saliency or {}
    return variant or published.trained_on(model.model, summary.get("num_outputs", 0))


def pretrained_models(results: Results) -> Iterator[ModelResults]:
    """Yields models with more outputs than ImageNet-9 has classes, which are taken for models
    trained on ImageNet."""
    for model in results.models:
        if (model.summary or {}).get("num_outputs", 0) > len(published.FOOLED_BY_CLASS):
            yield model


def models_trained_on(results: Results, variant: str) -> Iterator[ModelResults]:
    """Yields models trained on a variant and tested on no training image."""
    for model in results.models:
        if training_of(model) == variant and not model.overlap:
            yield model


def all_trained_on(results: Results, *variants: str) -> Iterator[TrainedModel]:
    """Yields models trained on these variants. A model that is also a row of a matrix is yielded
    only once, as the row."""
    rows = [trained for content in results.matrices for trained in trained_in(content)]
    known = {row["weights_sha256"] for content in results.matrices for row in content["rows"]}
    for variant in variants:
        for model in models_trained_on(results, variant):
            if (model.summary or {}).get("weights_sha256") not in known:
                tests = [row["variant"] for row in model.rows("accuracy", label_rule=PAPER_RULE)]
                accuracies = {name: one for name in tests if (one := accuracy_of(model, name))}
                chances = {name: chance_of(model, name) for name in accuracies}
                yield TrainedModel(model.name, variant, accuracies, chances, gap_of(model))
        yield from (trained for trained in rows if trained.variant == variant)


def trained_in(content: Mapping[str, Any]) -> Iterator[TrainedModel]:
    """Yields the rows of a matrix that were tested on no training image."""
    gaps = {row["train_variant"]: estimate_of(row, "difference") for row in content["gaps"]}
    by_row: dict[str, list[dict[str, Any]]] = {}
    for row in content["rows"]:
        by_row.setdefault(row["train_variant"], []).append(row)
    for variant, cells in by_row.items():
        if not any(cell["overlap"] for cell in cells):
            accuracies = {
                cell["test_variant"]: one
                for cell in cells
                if (one := estimate_of(cell, "accuracy"))
            }
            chances = {cell["test_variant"]: cell["chance"] for cell in cells}
            name = f"{content['name']}, {variant}"
            yield TrainedModel(
                name, variant, accuracies, chances, gaps.get(variant), content["name"]
            )


def estimate_of(row: Mapping[str, Any], name: str) -> Estimate | None:
    """Returns a figure of a row of results with the row's interval; None if it is empty."""
    estimate = (row[name], row["ci_low"], row["ci_high"])
    return None if None in estimate else estimate


def accuracy_of(model: ModelResults, variant: str) -> Estimate | None:
    """Returns a model's accuracy on a variant; None if it was tested on no picture."""
    row = model.row("accuracy", label_rule=PAPER_RULE, variant=variant)
    return (row["accuracy"], row["ci_low"], row["ci_high"]) if row and row["n"] else None


def chance_of(model: ModelResults, variant: str) -> float:
    """Returns the accuracy of a constant answer to the pictures that a model was tested on."""
    row = model.row("accuracy", label_rule=PAPER_RULE, variant=variant)
    return float((row or {})["chance"])


def gap_of(model: ModelResults) -> Estimate | None:
    """Returns a model's BG-Gap; None if it was not measured."""
    row = model.row("gaps", label_rule=PAPER_RULE)
    return (row["gap"], row["ci_low"], row["ci_high"]) if row else None


def attack_measures(model: ModelResults) -> dict[str, Any] | None:
    """Returns an attack's measures under the paper's label rule; None if there was no attack."""
    rules: dict[str, dict[str, Any]] = (model.attack or {}).get("rules") or {}
    return rules.get(PAPER_RULE)


def attacks_of(results: Results) -> Iterator[tuple[ModelResults, dict[str, Any], bool]]:
    """Yields attacked models, their measures, and whether the grid has the authors' size."""
    for model in results.models:
        measures = attack_measures(model)
        if measures:
            yield model, measures, is_authors_grid(model.attack or {})


def is_authors_grid(attack: Mapping[str, Any]) -> bool:
    """Returns whether an attack tried all pairs of foregrounds and backgrounds, and as many as the
    authors did."""
    return bool(attack["full_grid"] and attack["foregrounds"] == published.FULL_GRID)


def grid_size(attack: Mapping[str, Any]) -> str:
    """Formats the numbers of foregrounds and backgrounds of an attack."""
    return f"{attack['foregrounds']:,} {TIMES} {attack['backgrounds']:,}"


def mass_of(model: ModelResults) -> Estimate | None:
    """Returns the share of a model's saliency inside the mask; None if saliency was not measured or
    no image has any."""
    return estimate_of(model.saliency, "mass_in_mask") if model.saliency else None


def slopes_of(results: Results) -> dict[str, Estimate]:
    """Returns the slopes of the trend, by variant."""
    lines = (results.trend or {}).get("lines", [])
    return {
        line["variant"]: (line["slope"], line["slope_low"], line["slope_high"]) for line in lines
    }
