"""The image chooser: versions of images, each model's answers, and where backgrounds come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from urllib.parse import quote

from pipeline.dataset.sinks import Sample
from pipeline.display.evidence import Evidence
from pipeline.display.pictures import Budget, data_uri, find_samples
from pipeline.report.image_selection import (
    PER_CLASS,
    Candidate,
    Evaluated,
    choose_images,
    read_predictions_of,
    shown_models,
)
from pipeline.report.patterns import PATTERNS, Pattern, VersionAnswer, patterns_of
from transforms.scoring import classes_of_outputs
from transforms.taxonomy import OUTSIDE, Taxonomy
from transforms.variants import EXTERNAL, base_of

_BYTES = 4_900_000
"""Bytes of pictures, chosen so that the whole page stays under 10 MB."""
_AT_ONCE = 9 * PER_CLASS
"""Number of images whose pictures are encoded before the next are read. Encoding takes 10 ms for
each picture, and with hundreds of classes most of them have no room."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A model's answer to a picture.

    Attributes:
      model: name of the model.
      is_right: whether the answer is right, by the paper's label rule.
      answer: name of the superclass that it predicts; "outside" if it predicts none.
      label: label of this superclass, or `OUTSIDE`.
      output: class name of the winning output; "" if the outputs are superclasses.
      score: softmax probability of this output, a fraction.
      otherwise: the answer by the other label rule; "" if both rules give the same answer.
    """

    model: str
    is_right: bool
    answer: str
    label: int
    output: str
    score: float
    otherwise: str


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of an image.

    Attributes:
      variant: name of the version.
      uri: the picture as a data URI; "" if pictures are left out.
      background: class of the image that the background comes from, or `a scene`; "" for the
        image's own background, and for an unknown one.
      bg_label: label of this class; None if there is no such class.
      bg_key: key of the image, or the scene, that its background comes from; "" as above.
      predictions: the answers of all models.
    """

    variant: str
    uri: str
    background: str
    bg_label: int | None
    bg_key: str
    predictions: tuple[Prediction, ...]


@dataclasses.dataclass(frozen=True)
class ImageCard:
    """One image.

    Attributes:
      key: key of the image.
      class_name: name of its superclass.
      name: name of its class.
      fg_fraction: share of the picture that the foreground covers; None if unknown.
      turned: number of models that are right on a background of the image's class and wrong on
        another background.
      versions: its versions, in the paper's order.
      patterns: for each model, the names of the patterns that its answers match.
    """

    key: str
    class_name: str
    name: str
    fg_fraction: float | None
    turned: int
    versions: tuple[Version, ...]
    patterns: tuple[tuple[str, ...], ...]

    @property
    def anchor(self) -> str:
        """The card's address within the page, without the `#`."""
        return f"image={quote(self.key, safe='')}"

    def version(self, variant: str) -> Version | None:
        """Returns the image's version of a variant; None if it has no such version."""
        return next((v for v in self.versions if v.variant == variant), None)


@dataclasses.dataclass(frozen=True)
class Chooser:
    """The images to choose from.

    Attributes:
      split: the split that the images are from.
      images: number of images in the split.
      models: names of the models whose predictions are shown.
      cards: one card for each image; images that a background turns come first.
      is_cut: whether the page has no room for all images that were chosen.
    """

    split: str
    images: int
    models: tuple[str, ...]
    cards: tuple[ImageCard, ...]
    is_cut: bool

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of the cards."""
        return tuple(sorted({card.class_name for card in self.cards}))

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """Patterns that any model's answers match on any card."""
        matched = {name for card in self.cards for names in card.patterns for name in names}
        return tuple(pattern for pattern in PATTERNS if pattern.name in matched)


def make_chooser(evidence: Evidence, with_pictures: bool = True) -> Chooser:
    """Collects the images to show: of the images chosen, as many as have room for pictures."""
    split, models = shown_models(evidence)
    chosen = choose_images(evidence, split, models)
    count = len(chosen)
    at_once = _AT_ONCE if with_pictures else len(chosen)
    budget = Budget(_BYTES)
    cards: list[ImageCard] = []
    while candidates := chosen[:at_once]:
        del chosen[:at_once]
        fitting = _make_cards(evidence, split, models, candidates, budget, with_pictures)
        cards += fitting
        if len(fitting) < len(candidates):
            break
    return Chooser(
        split=split,
        images=evidence.dataset.manifest.images[split]["selected"],
        models=tuple(model.name for model, _ in models),
        cards=tuple(cards),
        is_cut=len(cards) < count,
    )


def _make_cards(
    evidence: Evidence,
    split: str,
    models: Sequence[Evaluated],
    candidates: Sequence[Candidate],
    budget: Budget,
    with_pictures: bool,
) -> list[ImageCard]:
    """Makes the cards of the candidates whose pictures fit into the budget."""
    dataset, taxonomy = evidence.dataset, evidence.taxonomy
    keys = [candidate.key for candidate in candidates]
    predictions = _predictions(evidence, split, models, keys)
    samples: dict[str, dict[str, Sample]] = {}
    uris: dict[tuple[str, str], str] = {}
    variants = dataset.picture_variants
    for variant in variants:
        for key, sample in find_samples(dataset, split, variant, keys).items():
            uris[variant, key] = data_uri(sample.image) if with_pictures else ""
            samples.setdefault(key, {})[variant] = dataclasses.replace(sample, image=b"")
    cards = []
    for candidate in candidates:
        key = candidate.key
        if not budget.takes(*(uris[variant, key] for variant in variants)):
            continue
        versions = [
            _version(samples[key][name], name, uris[name, key], predictions, taxonomy)
            for name in variants
        ]
        card = _card(candidate, samples[key][variants[0]], versions, models, taxonomy)
        cards.append(card)
    return cards


def _predictions(
    evidence: Evidence, split: str, models: Sequence[Evaluated], keys: Sequence[str]
) -> dict[tuple[str, str], list[Prediction]]:
    """Reads the models' predictions on some images, by (variant, key)."""
    taxonomy = evidence.taxonomy
    predictions: dict[tuple[str, str], list[Prediction]] = {}
    for model, summary in models:
        outputs = classes_of_outputs(summary.num_outputs, taxonomy)
        by_rule: dict[str, dict[tuple[str, str], Prediction]] = {r: {} for r in summary.label_rules}
        for row in read_predictions_of(evidence.dataset, split, (model, summary), keys):
            by_rule[row["label_rule"]][row["variant"], row["key"]] = Prediction(
                model=model.name,
                is_right=row["correct"],
                answer=_class_name(row["prediction"], taxonomy),
                label=row["prediction"],
                output=outputs[row["output"]].partition(",")[0] if outputs else "",
                score=row["top1_score"],
                otherwise="",
            )
        first, *others = summary.label_rules
        for picture, prediction in by_rule[first].items():
            other = next((by_rule[rule].get(picture) for rule in others), None)
            differs = other is not None and other.label != prediction.label
            otherwise = other.answer if other and differs else ""
            predictions.setdefault(picture, []).append(
                dataclasses.replace(prediction, otherwise=otherwise)
            )
    return predictions


def _class_name(label: int, taxonomy: Taxonomy) -> str:
    return "outside" if label == OUTSIDE else taxonomy.names[label]


def _name_of_class(wnid: str, taxonomy: Taxonomy) -> str:
    return taxonomy.class_names[taxonomy.index_of(wnid)].partition(",")[0]


def _version(
    sample: Sample,
    variant: str,
    uri: str,
    predictions: dict[tuple[str, str], list[Prediction]],
    taxonomy: Taxonomy,
) -> Version:
    label = sample.fields["bg_label"]
    unnamed = "a scene" if base_of(variant) == EXTERNAL else ""
    return Version(
        variant=variant,
        uri=uri,
        background=unnamed if label is None else taxonomy.names[label],
        bg_label=label,
        bg_key=sample.fields["bg_key"] or "",
        predictions=tuple(predictions.get((variant, sample.key), ())),
    )


def _card(
    candidate: Candidate,
    sample: Sample,
    versions: Sequence[Version],
    models: Sequence[Evaluated],
    taxonomy: Taxonomy,
) -> ImageCard:
    answers: dict[str, dict[str, VersionAnswer]] = {model.name: {} for model, _ in models}
    for version in versions:
        for p in version.predictions:
            answer = VersionAnswer(p.label, p.is_right, p.label == version.bg_label)
            answers[p.model][version.variant] = answer
    return ImageCard(
        key=candidate.key,
        class_name=taxonomy.names[candidate.label],
        name=_name_of_class(sample.fields["wnid"], taxonomy),
        fg_fraction=sample.fields["fg_fraction"],
        turned=-candidate.rank[0],
        versions=tuple(versions),
        patterns=tuple(patterns_of(of_model) for of_model in answers.values()),
    )
