"""Contributions of each picture to accuracies and BG-Gap, for intervals over several models.

All models of a dataset see the same pictures, so the contributions of different models to a
quantity line up picture by picture, and their errors can be compared and added up.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.prediction_files import evaluated_variants
from pipeline.evaluate.predictions import EvalImages, read_predictions
from pipeline.evaluate.result_files import tested_part
from transforms.analysis import gap_contributions
from transforms.scoring import LABEL_RULES
from transforms.two_way import Floats, Roles
from transforms.variants import draws_of

BG_GAP = "bg_gap"
"""Name of BG-Gap where it stands among variants."""

Correct = NDArray[np.bool_]


def gap_draws(variants: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the draws of `mixed_same` and those of `mixed_rand`, each empty if it has none."""
    draws = draws_of(variants)
    return draws.get("mixed_same", ()), draws.get("mixed_rand", ())


def picture_roles(
    bg_units: Mapping[str, NDArray[np.int64]], images: EvalImages, variants: Iterable[str]
) -> Roles:
    """Returns the units of each picture's foreground and background, variant after variant.

    Args:
      bg_units: (n,) by variant, as `Predictions.bg_units`.
      images: the n images of the foregrounds.
      variants: the variants of the pictures.
    """
    names = list(variants)
    foregrounds = np.tile(images.unit_numbers, len(names))
    if not any(name in bg_units for name in names):
        return Roles.from_units(foregrounds)
    return Roles.from_units(foregrounds, np.concatenate([bg_units[name] for name in names]))


@dataclasses.dataclass(frozen=True, eq=False)
class ModelContributions:
    """The predictions of models that were tested on the same images.

    Attributes:
      images: the n images.
      variants: those that at least one model has predictions of, in the dataset's order.
      summaries: one for each model.
      correct: for each model, by label rule and variant: (n,) whether each prediction is right.
      bg_units: (n,) by variant, as `Predictions.bg_units`: the same for all models.
    """

    images: EvalImages
    variants: tuple[str, ...]
    summaries: list[Mapping[str, Any]]
    correct: list[dict[str, dict[str, Correct]]]
    bg_units: Mapping[str, NDArray[np.int64]]

    @functools.cached_property
    def quantities(self) -> list[tuple[str, str]]:
        """(label rule, variant or `bg_gap`) of every quantity to compare, each over all draws."""
        names = (*draws_of(self.variants), *([BG_GAP] if all(gap_draws(self.variants)) else []))
        return [(rule, name) for rule in LABEL_RULES for name in names]

    def roles(self, quantity: str) -> Roles:
        """Returns the roles in a quantity's pictures, draw after draw."""
        return picture_roles(self.bg_units, self.images, self._draws(quantity))

    def _draws(self, quantity: str) -> tuple[str, ...]:
        """Returns the draws whose pictures enter a quantity."""
        same, rand = gap_draws(self.variants)
        return (*same, *rand) if quantity == BG_GAP else draws_of(self.variants)[quantity]

    def contributions(self, rule: str, quantity: str) -> tuple[list[int], Floats, Floats]:
        """Computes a quantity, and what each picture contributes to it.

        Returns:
          (positions among `summaries` of the models that have predictions of all its pictures;
          the figure of each, (models,); the contribution of each picture, (models, pictures)).
        """
        needed = self._draws(quantity)
        positions = [
            position
            for position, by_rule in enumerate(self.correct)
            if all(name in by_rule[rule] for name in needed)
        ]
        figures, parts = [], []
        for position in positions:
            correct = self.correct[position][rule]
            if quantity == BG_GAP:
                same, rand = (
                    np.stack([correct[name] for name in draws])
                    for draws in gap_draws(self.variants)
                )
                figures.append(same.mean() - rand.mean())
                parts.append(gap_contributions(same, rand))
            else:
                pooled = np.concatenate([correct[name] for name in needed])
                figures.append(pooled.mean())
                parts.append((pooled - pooled.mean()) / len(pooled))
        return positions, np.asarray(figures), np.stack(parts) if parts else np.empty((0, 0))


def read_contributions(
    dataset: Dataset, summaries: Iterable[Mapping[str, Any]]
) -> list[ModelContributions]:
    """Reads the predictions of models, grouped by the images that the models were tested on."""
    by_part: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for summary in summaries:
        by_part.setdefault(tested_part(summary), []).append(summary)
    result = []
    for part, summaries_of_part in by_part.items():
        images = EvalImages.read(dataset, *part)
        if not len(images.keys):
            continue
        correct: list[dict[str, dict[str, Correct]]] = []
        bg_units: dict[str, NDArray[np.int64]] = {}
        for summary in summaries_of_part:
            by_rule = read_predictions(dataset, images, summary).by_rule
            for predictions in by_rule.values():
                bg_units.update(predictions.bg_units)
            correct.append(
                {
                    rule: {name: predictions.correct(name) for name in predictions.predicted}
                    for rule, predictions in by_rule.items()
                }
            )
        predicted = {name for model in correct for by_name in model.values() for name in by_name}
        variants = tuple(name for name in evaluated_variants(dataset) if name in predicted)
        result.append(ModelContributions(images, variants, summaries_of_part, correct, bg_units))
    return result
