"""What each picture contributes to accuracies and BG-Gap, for intervals over several models.

All models of a dataset see the same pictures, so that of one quantity their contributions lie side
by side, and their errors can be compared and added up.
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
from pipeline.evaluate.predictions import EvalImages, Predictions, read_predictions
from pipeline.evaluate.result_files import tested_part
from transforms.analysis import gap_contributions
from transforms.scoring import LABEL_RULES
from transforms.two_way import Floats, Roles
from transforms.variants import draws_of

BG_GAP = "bg_gap"
"""Its name among variants."""

Correct = NDArray[np.bool_]


def gap_draws(variants: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The draws of `mixed_same` and of `mixed_rand` among variants, one empty without any."""
    draws = draws_of(variants)
    return draws.get("mixed_same", ()), draws.get("mixed_rand", ())


def roles_of(answers: Predictions, images: EvalImages, variants: Iterable[str]) -> Roles:
    """Roles in the pictures of some variants, one variant after the other: each is (n,)."""
    names = list(variants)
    foregrounds = np.tile(images.unit_numbers, len(names))
    if not any(name in answers.bg_units for name in names):
        return Roles.from_units(foregrounds)
    return Roles.from_units(foregrounds, np.concatenate([answers.bg_units[name] for name in names]))


@dataclasses.dataclass(frozen=True, eq=False)
class ModelContributions:
    """Models tested on the same images.

    Attributes:
      images: that they were tested on.
      variants: those that any model has predictions of, in the dataset's order.
      summaries: of the models.
      correct: (n,) of each variant that a model has predictions of, by label rule, of each model.
      answers: what all models share of the pictures: their backgrounds.
    """

    images: EvalImages
    variants: tuple[str, ...]
    summaries: list[Mapping[str, Any]]
    correct: list[dict[str, dict[str, Correct]]]
    answers: Predictions

    @functools.cached_property
    def quantities(self) -> list[tuple[str, str]]:
        """(label rule, variant or `bg_gap`) of what there is to compare, each over all draws."""
        names = (*draws_of(self.variants), *([BG_GAP] if all(gap_draws(self.variants)) else []))
        return [(rule, name) for rule in LABEL_RULES for name in names]

    def roles(self, quantity: str) -> Roles:
        """Roles in the pictures of a variant, draw after draw, or in all those of the gap."""
        names = self._pictures(quantity)
        return roles_of(self.answers, self.images, names)

    def _pictures(self, quantity: str) -> tuple[str, ...]:
        """The draws that a quantity is of."""
        same, rand = gap_draws(self.variants)
        return (*same, *rand) if quantity == BG_GAP else draws_of(self.variants)[quantity]

    def contributions(self, rule: str, quantity: str) -> tuple[list[int], Floats, Floats]:
        """What there is of a quantity.

        Returns:
          (places of the models that have predictions of all of its pictures, among `summaries`;
          each one's figure, (models,); what each picture contributes to it, (models, pictures)).
        """
        needed = self._pictures(quantity)
        places = [
            place
            for place, of_model in enumerate(self.correct)
            if all(name in of_model[rule] for name in needed)
        ]
        figures, parts = [], []
        for place in places:
            correct = self.correct[place][rule]
            if quantity == BG_GAP:
                same, rand = (np.stack([correct[n] for n in of]) for of in gap_draws(self.variants))
                figures.append(same.mean() - rand.mean())
                parts.append(gap_contributions(same, rand))
            else:
                right = np.concatenate([correct[name] for name in needed])
                figures.append(right.mean())
                parts.append((right - right.mean()) / len(right))
        return places, np.asarray(figures), np.stack(parts) if parts else np.empty((0, 0))


def read_measured(
    dataset: Dataset, summaries: Iterable[Mapping[str, Any]]
) -> list[ModelContributions]:
    """Reads the predictions of models, those that were tested on the same images together."""
    by_part: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for summary in summaries:
        by_part.setdefault(tested_part(summary), []).append(summary)
    found = []
    for part, of_part in by_part.items():
        images = EvalImages.read(dataset, *part)
        if not len(images.keys):
            continue
        correct = []
        shared = Predictions(images.labels, {}, {}, {})
        for summary in of_part:
            by_rule = read_predictions(dataset, images, summary).by_rule
            for of_rule in by_rule.values():
                shared.bg_units.update(of_rule.bg_units)
            correct.append(
                {
                    rule: {name: of_rule.correct(name) for name in of_rule.predictions}
                    for rule, of_rule in by_rule.items()
                }
            )
        known = {name for of_model in correct for of_rule in of_model.values() for name in of_rule}
        variants = tuple(name for name in evaluated_variants(dataset) if name in known)
        found.append(ModelContributions(images, variants, of_part, correct, shared))
    return found
