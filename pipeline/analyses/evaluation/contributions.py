"""Contributions of each picture to accuracies and BG-Gap, for confidence intervals that
compare several models.

All models of a dataset see the same pictures, so the contributions of different models to a
quantity line up picture by picture, and their errors can be compared and added up.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.analyses.evaluation.results import Summary
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.predictions import EvalImages, evaluated_variants, read_predictions
from transforms.analysis import gap_contributions
from transforms.two_way import Floats, Roles
from transforms.variants import draws_of

BG_GAP = "bg_gap"
"""Name of BG-Gap in lists that otherwise hold variant names."""

Correct = NDArray[np.bool_]


def gap_draws(variants: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the draws of `mixed_same` and those of `mixed_rand`, each empty if it has none."""
    draws = draws_of(variants)
    return draws.get("mixed_same", ()), draws.get("mixed_rand", ())


def picture_roles(
    bg_units: Mapping[str, NDArray[np.int64]], images: EvalImages, variants: Iterable[str]
) -> Roles:
    """Returns the sampling unit of each picture's foreground and background, with the variants
    concatenated in order.

    Args:
      bg_units: for each variant whose backgrounds are other images or scenes, (n,) unit of each
        background; see `Predictions.bg_units`.
      images: the n images of the foregrounds.
      variants: the variants of the pictures.
    """
    names = list(variants)
    foregrounds = np.tile(images.unit_numbers, len(names))
    if not any(name in bg_units for name in names):
        return Roles.from_units(foregrounds)
    return Roles.from_units(foregrounds, np.concatenate([bg_units[name] for name in names]))


@dataclasses.dataclass(frozen=True, eq=False)
class ModelsOnSameImages:
    """The predictions of models that were tested on the same images.

    Attributes:
      images: the n images.
      variants: variants for which at least one model has predictions, in the dataset's order.
      summaries: one for each model.
      correct: for each model: label rule -> variant -> (n,) bool, True where right.
      bg_units: for each variant whose backgrounds are other images or scenes, (n,) unit of each
        background, the same for all models; see `Predictions.bg_units`.
    """

    images: EvalImages
    variants: tuple[str, ...]
    summaries: list[Summary]
    correct: list[dict[str, dict[str, Correct]]]
    bg_units: Mapping[str, NDArray[np.int64]]

    @functools.cached_property
    def quantities(self) -> list[tuple[str, str]]:
        """(label rule, variant or `bg_gap`) for every quantity to compare; a variant's draws are
        pooled."""
        names = (*draws_of(self.variants), *([BG_GAP] if all(gap_draws(self.variants)) else []))
        rules = dict.fromkeys(rule for one in self.summaries for rule in one.label_rules)
        return [(rule, name) for rule in rules for name in names]

    def roles(self, quantity: str) -> Roles:
        """Returns the units of the pictures behind a quantity, draws concatenated in order."""
        return picture_roles(self.bg_units, self.images, self._draws(quantity))

    def _draws(self, quantity: str) -> tuple[str, ...]:
        """Returns the draws whose pictures enter a quantity."""
        same, rand = gap_draws(self.variants)
        return (*same, *rand) if quantity == BG_GAP else draws_of(self.variants)[quantity]

    def contributions(self, rule: str, quantity: str) -> tuple[list[int], Floats, Floats]:
        """Computes a quantity, and what each picture contributes to it.

        Returns:
          (positions among `summaries` of the models that have predictions of all its pictures;
          the quantity's value for each model, (models,); the contribution of each picture,
          (models, pictures)).
        """
        needed = self._draws(quantity)
        positions = [
            position
            for position, by_rule in enumerate(self.correct)
            if all(name in by_rule.get(rule, ()) for name in needed)
        ]
        estimates = [self._estimate(self.correct[one][rule], quantity) for one in positions]
        return (
            positions,
            np.asarray([value for value, _ in estimates]),
            np.stack([one for _, one in estimates]) if estimates else np.empty((0, 0)),
        )

    def _estimate(self, correct: Mapping[str, Correct], quantity: str) -> tuple[float, Floats]:
        """Returns a quantity of a model, and the contribution of each picture."""
        if quantity == BG_GAP:
            same, rand = (
                np.stack([correct[name] for name in draws]) for draws in gap_draws(self.variants)
            )
            return same.mean() - rand.mean(), gap_contributions(same, rand)
        pooled = np.concatenate([correct[name] for name in self._draws(quantity)])
        return pooled.mean(), (pooled - pooled.mean()) / len(pooled)


def read_contributions(dataset: Dataset, summaries: Sequence[Summary]) -> list[ModelsOnSameImages]:
    """Reads the predictions of models, grouped by the images that the models were tested on. Models
    that were tested on no images are left out, and a single model has nothing to compare with.

    The last result is cached, because comparisons and the trend both need it.
    """
    key = (dataset.store.root, tuple(map(id, summaries)))
    if key not in _cached:
        _cached.clear()
        # The summaries are kept, too, so that no other object gets their identities.
        _cached[key] = (summaries, _read(dataset, summaries) if len(summaries) > 1 else [])
    return _cached[key][1]


_cached: dict[tuple[str, tuple[int, ...]], tuple[Sequence[Summary], list[ModelsOnSameImages]]] = {}


def _read(dataset: Dataset, summaries: Sequence[Summary]) -> list[ModelsOnSameImages]:
    by_test_set: dict[tuple[str, float], list[Summary]] = {}
    for summary in summaries:
        by_test_set.setdefault(summary.tested_part, []).append(summary)
    result = []
    for test_set, its_summaries in by_test_set.items():
        images = EvalImages.read(dataset, *test_set)
        if not len(images.keys):
            continue
        correct: list[dict[str, dict[str, Correct]]] = []
        bg_units: dict[str, NDArray[np.int64]] = {}
        for summary in its_summaries:
            by_rule = read_predictions(dataset, images, summary).by_rule
            for predictions in by_rule.values():
                bg_units.update(predictions.bg_units)
            correct.append(
                {
                    rule: {name: predictions.correct(name) for name in predictions.predicted}
                    for rule, predictions in by_rule.items()
                }
            )
        predicted_variants = {
            name for model in correct for by_variant in model.values() for name in by_variant
        }
        variants = tuple(name for name in evaluated_variants(dataset) if name in predicted_variants)
        result.append(ModelsOnSameImages(images, variants, its_summaries, correct, bg_units))
    return result
