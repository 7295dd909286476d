"""Paired differences between any two models, in accuracy on each variant and in BG-Gap.

All models of a dataset see the same pictures, so the contributions of different models to a
quantity line up picture by picture, and their errors can be compared and added up. The interval of
a difference is far narrower than the models' own intervals suggest.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Self, TypeVar

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from pipeline.dataset.folder import Dataset
from pipeline.errors import counted
from pipeline.evaluate.families import Family, Subject, families_of
from pipeline.evaluate.predictions import (
    EvalImages,
    correct_by_rule,
    evaluated_variants,
    gaps_of,
    paired_draws,
)
from pipeline.evaluate.results import Table
from pipeline.evaluate.summary import Summary
from pipeline.storage.state_files import convert, read_csv
from transforms.analysis import gaps_of_pictures
from transforms.intervals import CONFIDENCE, Floats, holm
from transforms.two_way import (
    MIN_SEEDS,
    EstimateSpread,
    Roles,
    Seeds,
    difference_interval,
    interval_of_pictures,
    p_value,
    smallest_difference,
    spread_of_methods,
)
from transforms.variants import BG_GAP, VariantName, draws_of

GAP = "BG-Gap"
"""BG-Gap in tables for readers."""

Correct = NDArray[np.bool_]
_Row = TypeVar("_Row", bound=Struct)


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """The p pictures behind a quantity: those of a variant, or of two, that count.

    Pictures of an image in draws that belong together (`paired_draws`) are one paired difference,
    which counts if each of them does (`EvalImages.counts`).

    Attributes:
      names: the draws, those of the first variant in front; their pictures are concatenated in
        this order. One that belongs to several draws of the other is repeated.
      chosen: (p,) int64, positions of the pictures that count among all.
      images: (p,) int64, position of the image whose foreground each picture shows.
      n: number of these images.
      draws: (p,) int64, position of each picture's draw among those of its variant.
      is_first: (p,) bool, whether each picture is of the first variant, such as `mixed_same`.
      roles: units of the pictures' foregrounds and backgrounds, and their paired differences.
    """

    names: tuple[VariantName, ...]
    chosen: NDArray[np.int64]
    images: NDArray[np.int64]
    n: int
    draws: NDArray[np.int64]
    is_first: NDArray[np.bool_]
    roles: Roles

    @classmethod
    def of(
        cls,
        draws: Sequence[tuple[VariantName, ...]],
        images: EvalImages,
        bg_units: Mapping[VariantName, NDArray[np.int64]],
    ) -> Self:
        """Finds the pictures of paired draws that count, by `Predictions.bg_units`.

        Beside pictures on other backgrounds, one of a variant without has its image's own.
        """
        n, names = len(images.keys), [name for each in zip(*draws, strict=True) for name in each]
        differences = np.tile(np.arange(len(draws) * n), len(draws[0]))
        counts = np.concatenate([images.counts(name, bg_units) for name in names])
        chosen = np.flatnonzero(~np.isin(differences, differences[~counts]))
        own = None if bg_units.keys().isdisjoint(names) else images.unit_numbers
        backgrounds = [] if own is None else [bg_units.get(name, own) for name in names]
        return cls(
            tuple(names),
            chosen,
            images=chosen % n,
            n=len(np.unique(chosen % n)),
            draws=differences[chosen] // max(n, 1),
            is_first=chosen < len(draws) * n,
            roles=Roles.from_units(
                np.tile(images.unit_numbers, len(names))[chosen],
                np.concatenate(backgrounds)[chosen] if backgrounds else None,
                differences[chosen],
            ),
        )

    @property
    def is_share(self) -> bool:
        """Whether their quantity is an accuracy, else a difference of two."""
        return bool(self.is_first.all())

    def of_variants(self, values: Mapping[VariantName, NDArray[Any]]) -> NDArray[Any]:
        """Returns the values of the pictures, (p,), from (n,) values of each variant."""
        return np.concatenate([values[name] for name in self.names])[self.chosen]


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """An accuracy, a BG-Gap or a difference of two models, of which intervals at any level follow.

    Attributes:
      n: number of images.
      trials: the fewest and the most independent trials that a share may stand for, as for
        `interval_of_pictures`; None if it is not a share.
    """

    value: float
    n: int
    roles: Roles
    spread: EstimateSpread
    trials: tuple[float, float] | None

    def interval(self, confidence: float = CONFIDENCE, growth: float = 1.0) -> tuple[float, float]:
        """Computes the two-way interval (low, high) at a confidence in (0, 1).

        `growth` > 0 gives the one that so many times as many images would have if the estimate and
        its spread, by image, stayed the same.
        """
        if self.trials is not None:
            fewest, most = (growth * one for one in self.trials)
            return interval_of_pictures(
                self.value,
                float(self.spread.variance) / growth,
                self.spread.units * growth,
                fewest=fewest,
                most=most,
                confidence=confidence,
            )
        low, high = difference_interval(
            np.asarray(self.value), self.spread.grown(growth), confidence
        )
        return float(low), float(high)

    def smallest(self, confidence: float = CONFIDENCE, limit: float = 0.0) -> float:
        """Computes the smallest difference from a limit that 8 of 10 draws of images show."""
        return float(smallest_difference(np.asarray(self.value), self.spread, confidence, limit))


def measure(roles: Roles, n: int, *methods: Seeds, is_share: bool) -> Measured | None:
    """Measures a quantity, maybe a share, of a method on n images, or what it exceeds a second by.

    Returns None if a method has too few seeds.
    """
    fewest, most = (end(len(one.values) for one in methods) for end in (min, max))
    if most > 1 and fewest < MIN_SEEDS:
        return None
    value = float(methods[0].values.mean()) - sum(float(one.values.mean()) for one in methods[1:])
    # Seeds that are all right, or all wrong, say nothing of the variance.
    trials = roles.units if most == 1 or value in (0, 1) else 0.0
    spread, pictures = spread_of_methods(roles, *methods), len(roles.foregrounds) * most
    return Measured(value, n, roles, spread, (trials, pictures) if is_share else None)


def adjusted_p_values(differences: Iterable[Measured]) -> list[float]:
    """Computes the p values of differences, with Holm's adjustment for all of them."""
    p_values = [float(p_value(np.asarray(one.value), one.spread)) for one in differences]
    return list(map(float, holm(np.asarray(p_values))))


_DIFFERING = 0.2
"""Share of images for which a model is taken to be right on one of two mixed variants alone, if
nothing is known of it."""


class Sample(NamedTuple):
    """The images to test on; `str` says how many they are, in words.

    Attributes:
      groups: number of groups of images; None if images have no groups.
      units: effective number of images, or groups, as foregrounds (`Roles.units`).
    """

    images: float
    groups: int | None
    units: float

    @classmethod
    def of(cls, units: Sequence[str], images: float, share: float = 1.0) -> Self:
        """Expects so many of the images with these units, of which a share of units is tested."""
        roles = Roles.from_units(np.unique(np.asarray(units, object), return_inverse=True)[1])
        groups = int(roles.foregrounds.max(initial=-1)) + 1
        return cls(
            share * images,
            round(share * groups) if groups < len(units) else None,
            share * min(images, roles.units),
        )

    def with_pairs(self, holdout: float, variants: Iterable[VariantName]) -> Self:
        """Expects the images with a pair of pictures for BG-Gap that counts under a holdout."""
        draws = len(paired_draws(BG_GAP, variants))
        share = 1 - (1 - holdout**2) ** draws if holdout and draws else 1.0
        return type(self)(
            share * self.images, self.groups and round(share * self.groups), share * self.units
        )

    def __str__(self) -> str:
        images = counted(round(self.images), "image")
        return f"{images} in {counted(self.groups, 'group')}" if self.groups else images

    def smallest(self, confidence: float = CONFIDENCE) -> float:
        """Computes the smallest difference that 8 of 10 draws would show; of no model's results."""
        images, scatter = round(self.images), np.asarray(_DIFFERING)
        spread = EstimateSpread(scatter / images, scatter, images, min(images, self.units))
        return float(smallest_difference(np.zeros(()), spread, confidence))


def describe_counted(
    holdout: float, counted: Iterable[tuple[str, int]], every: int, more: str = ""
) -> Iterator[str]:
    """Yields a line that says how many pictures, and pairs of them, count under a holdout.

    `counted` are their numbers by quantity, of which those of mixed variants and BG-Gap are told.
    """
    numbers = {name: n for name, n in counted if name == BG_GAP or VariantName(name).is_mixed}
    parts = [
        f"{n} of {every} " + (f"pairs of {GAP}" if name == BG_GAP else f"of {name}")
        for name, n in numbers.items()
    ]
    if holdout and parts:
        yield (
            f"--holdout {holdout:g}: a mixed picture counts if its background is held out, too: "
            f"{', '.join(parts)}{more}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ModelsOnSameImages:
    """The predictions of models that were tested on the same images.

    Attributes:
      variants: variants for which at least one model has predictions, in the dataset's order.
      correct: for each model: label rule -> variant -> (n,) bool, True where right.
      bg_units: for each variant whose backgrounds are other images or scenes, (n,) unit of each
        background, the same for all models; see `Predictions.bg_units`.
      families: the families of all models of the dataset that were tested on these images.
    """

    images: EvalImages
    variants: tuple[VariantName, ...]
    summaries: list[Summary]
    correct: list[dict[str, dict[VariantName, Correct]]]
    bg_units: Mapping[VariantName, NDArray[np.int64]]
    families: Sequence[Family] = ()

    @functools.cached_property
    def pictures(self) -> dict[str, Pictures]:
        """The pictures behind each quantity, which is a variant or a gap, if they count."""
        names = (*draws_of(self.variants), *gaps_of(self.variants))
        return {
            name: Pictures.of(paired_draws(name, self.variants), self.images, self.bg_units)
            for name in names
        }

    def find(self, quantity: str) -> Pictures | None:
        """Returns the pictures behind any quantity (`variants_behind`); None if there are none."""
        draws = [] if quantity in self.pictures else paired_draws(quantity, self.variants)
        of_draws = Pictures.of(draws, self.images, self.bg_units) if draws else None
        return self.pictures.get(quantity, of_draws)

    @functools.cached_property
    def quantities(self) -> list[tuple[str, str]]:
        """(label rule, variant or gap) of each quantity to compare; draws are pooled."""
        rules = dict.fromkeys(rule for one in self.summaries for rule in one.label_rules)
        return [(rule, name) for rule in rules for name in self.pictures]

    def answers(self, subject: Subject, rule: str) -> list[Mapping[VariantName, Correct]]:
        """Returns which pictures each model of a subject recognises: variant -> (n,) bool."""
        positions = map(self.summaries.index, subject.members)
        return [self.correct[position].get(rule, {}) for position in positions]

    def measure(
        self,
        quantity: str,
        subject: Subject,
        rule: str,
        others: Sequence[Mapping[VariantName, Correct]] = (),
    ) -> Measured | None:
        """Measures a quantity of a model or a family, or what it exceeds that of another by.

        `others` are the `answers` of the other. Returns None if predictions of some of the pictures
        are missing, a family has too few seeds, or it is compared with a single model.
        """
        known = [self.answers(subject, rule), *([others] if others else [])]
        methods = [seeds for answers in known if (seeds := self.seeds(quantity, answers))]
        pictures = self.find(quantity)
        if pictures is None or len(methods) < len(known):
            return None
        is_share = pictures.is_share and not others
        return measure(pictures.roles, pictures.n, *methods, is_share=is_share)

    def seeds(
        self, quantity: str, answers: Sequence[Mapping[VariantName, Correct]]
    ) -> Seeds | None:
        """Returns a quantity of each of some models; None if one lacks predictions of it."""
        pictures = self.find(quantity)
        if pictures is None or not pictures.n:
            return None
        if not all(name in one for one in answers for name in pictures.names):
            return None
        values, r = zip(*(_estimate(one, pictures) for one in answers), strict=True)
        return Seeds(np.asarray(values), np.stack(r))


def _estimate(
    correct: Mapping[VariantName, Correct], pictures: Pictures
) -> tuple[float | Floats, Floats]:
    """Returns a quantity of a model, and the contribution of each picture."""
    answers = pictures.of_variants(correct)
    if pictures.is_share:
        return answers.mean(), (answers - answers.mean()) / len(answers)
    return gaps_of_pictures(answers, pictures.is_first)


def read_contributions(dataset: Dataset, summaries: Sequence[Summary]) -> list[ModelsOnSameImages]:
    """Reads the predictions of models, grouped by the images that they were tested on.

    Models without images are left out. The last result is cached, because comparisons, conditions
    and the trend need it.
    """
    key = (dataset.store.root, tuple(map(id, summaries)))
    if key not in _cached:
        _cached.clear()
        # The summaries are kept, too, so that no other object gets their identities.
        _cached[key] = (summaries, on_same_images(dataset, summaries))
    return _cached[key][1]


_cached: dict[tuple[str, tuple[int, ...]], tuple[Sequence[Summary], list[ModelsOnSameImages]]] = {}


def on_same_images(dataset: Dataset, summaries: Sequence[Summary]) -> list[ModelsOnSameImages]:
    """Does the same as `read_contributions`, which keeps what it has read."""
    families, _ = families_of(summaries)
    result = []
    for test_set in dict.fromkeys(one.tested_on for one in summaries):
        its_summaries = [one for one in summaries if one.tested_on == test_set]
        its_families = [one for one in families if one.tested_on == test_set]
        images = EvalImages.read(dataset, *test_set)
        if not len(images.keys):
            continue
        read = [correct_by_rule(dataset, images, summary) for summary in its_summaries]
        correct = [answers for answers, _ in read]
        bg_units = {name: units for _, of_model in read for name, units in of_model.items()}
        predicted_variants = {
            name for model in correct for by_variant in model.values() for name in by_variant
        }
        variants = tuple(name for name in evaluated_variants(dataset) if name in predicted_variants)
        result.append(
            ModelsOnSameImages(images, variants, its_summaries, correct, bg_units, its_families)
        )
    return result


class ComparisonRow(Struct, frozen=True, kw_only=True):
    """The difference of two models in accuracy on `variant`, or in BG-Gap, the mean of draws."""

    first: Annotated[str, Meta(description="name of a model")]
    second: Annotated[str, Meta(description="name of the model that it is compared with")]
    label_rule: str
    variant: str
    difference: Annotated[
        float, Meta(description="accuracy (or gap) of `first` - that of `second`")
    ]
    ci_low: float
    ci_high: float
    p_adjusted: Annotated[
        float,
        Meta(
            description="p value of the difference, with Holm's adjustment for all pairs of "
            "models with this label rule and variant"
        ),
    ]
    n: int
    split: str
    dataset: str

    @property
    def is_significant(self) -> bool:
        return self.p_adjusted < 1 - CONFIDENCE


COMPARISONS = Table(
    "comparisons",
    (ComparisonRow,),
    "difference of two models, or of two families of models, on the same pictures, with its "
    "two-way interval: [intervals](results.md#intervals)",
)


def compare_models(
    fingerprint: str, compared: Iterable[ModelsOnSameImages]
) -> Iterator[ComparisonRow]:
    """Yields the rows of comparisons.csv.

    Any two models that were tested on the same images are compared in each quantity (accuracy on a
    variant, or BG-Gap) that both have predictions for, unless they are seeds of one family. Pairs
    are in the order of the summaries.
    """
    for models in compared:
        differences = [_differences(models, *quantity) for quantity in models.quantities]
        for pair in itertools.combinations(range(len(models.summaries)), 2):
            first, second = (models.summaries[position] for position in pair)
            for (rule, variant), by_pair in zip(models.quantities, differences, strict=True):
                if pair in by_pair:
                    yield ComparisonRow(
                        first=first.name,
                        second=second.name,
                        label_rule=rule,
                        variant=variant,
                        **by_pair[pair],
                        n=models.pictures[variant].n,
                        split=first.evaluation.split,
                        dataset=fingerprint,
                    )


def read_rows(dataset: Dataset, table: Table, kind: type[_Row]) -> list[_Row]:
    """Reads the rows of a CSV table that are on the present dataset; none if the file is missing.

    Fields of `kind` that may be empty have a default.
    """
    path = f"results/{table.name}.csv"
    if not dataset.store.exists(path):
        return []
    return [
        convert({name: cell for name, cell in row.items() if cell}, kind, strict=False)
        for row in read_csv(dataset.store.read(path))
        if row["dataset"] == dataset.manifest.fingerprint
    ]


def _differences(
    models: ModelsOnSameImages, rule: str, quantity: str
) -> dict[tuple[int, int], dict[str, float]]:
    """Computes fields of a `ComparisonRow` for pairs of models with predictions, by position.

    Seeds of one family are not compared.
    """
    known = {
        position: seeds
        for position, by_rule in enumerate(models.correct)
        if (seeds := models.seeds(quantity, [by_rule.get(rule, {})]))
    }
    if len(known) < 2:
        return {}
    figures, contributions = map(np.concatenate, zip(*known.values(), strict=True))
    roles = models.pictures[quantity].roles
    sums, paired = roles.corrected(contributions), roles.paired(contributions)
    difference = np.concatenate([figure - figures[i + 1 :] for i, figure in enumerate(figures)])
    spreads = [
        roles.spread_of_sums(
            [by_model[i] - by_model[i + 1 :] for by_model in sums], paired[i] - paired[i + 1 :]
        )
        for i in range(len(figures))
    ]
    spread = dataclasses.replace(
        spreads[0],
        variance=np.concatenate([one.variance for one in spreads]),
        scatter=np.concatenate([one.scatter for one in spreads]),
    )
    low, high = difference_interval(difference, spread)
    p_values = p_value(difference, spread)
    names = ("difference", "ci_low", "ci_high", "p_adjusted")
    pairs = list(itertools.combinations(known, 2))
    family_of = {one.folder: family for family in models.families for one in family.members}
    subjects = [family_of.get(one.folder, one) for one in models.summaries]
    kept = [
        position
        for position, (first, second) in enumerate(pairs)
        if subjects[first] is not subjects[second]
    ]
    columns = (*(one[kept] for one in (difference, low, high)), holm(p_values[kept]))
    return {
        pairs[position]: dict(zip(names, map(float, values), strict=True))
        for position, *values in zip(kept, *columns, strict=True)
    }
