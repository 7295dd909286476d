"""The images that the page shows: their versions, the models' answers, the backgrounds' origin.

Images that models recognise as they are come first, and of these the ones on which the background
decides.
"""

import dataclasses
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import ClassVar
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.analyses.evaluation.patterns import (
    PATTERNS,
    Pattern,
    Prediction,
    VersionAnswer,
    patterns_of,
)
from pipeline.dataset.folder import Dataset, selected_rows
from pipeline.dataset.records import Row
from pipeline.dataset.sinks import Sample
from pipeline.display.panel import Budget, Panel, data_uri, find_samples
from pipeline.evaluate.evidence import Evidence, ModelResults
from pipeline.evaluate.results import result_shard
from pipeline.evaluate.summary import Summary, rules_of
from pipeline.storage.state_files import read_table
from pipeline.storage.store import Store
from transforms.hashing import keyed_hash
from transforms.scoring import classes_of_outputs
from transforms.taxonomy import Taxonomy
from transforms.variants import MIXED, VariantName

PER_CLASS = 8
"""Largest number of images of each class on the page."""
_BYTES = 4_800_000
"""Bytes of pictures, chosen so that the whole page stays under 10 MB."""
_AT_ONCE = 9 * PER_CLASS
"""Number of images whose pictures are encoded before the next are read. Encoding takes 10 ms for
each picture, and with hundreds of classes most of them have no room."""


@dataclasses.dataclass(frozen=True, order=True)
class Candidate:
    """An image that the page may show. Candidates sort in the order in which they are chosen.

    Attributes:
      rank: (whether half of the models or more are wrong on `original`, minus the number of models
        that another background turns wrong, minus the number of wrong predictions on mixed
        versions, a hash of the key).
    """

    rank: tuple[bool, int, int, int]
    key: str
    label: int


Evaluated = tuple[ModelResults, Summary]
"""A model, and the summary of its evaluation."""


def shown_models(evidence: Evidence, split: str = "") -> tuple[str, tuple[Evaluated, ...]]:
    """Returns the split that images are chosen from, if it is not given; and its models."""
    models = evidence.models_with(Summary)
    split = split or (
        models[0][1].evaluation.split if models else evidence.dataset.config.eval_split
    )
    return split, tuple(one for one in models if one[1].evaluation.split == split)


def choose_images(
    evidence: Evidence, split: str, models: Sequence[Evaluated], per_class: int = PER_CLASS
) -> list[Candidate]:
    """Chooses the images to show, sorted by rank: in each class the `per_class` of lowest rank.

    Reads one shard at a time, and only the columns that tell which predictions are right.
    """
    dataset = evidence.dataset
    wanted = [
        (
            model[0],
            _wanted(dataset, split, model, ("original", *MIXED))
            & (pc.field("label_rule") == model[1].headline),
        )
        for model in models
    ]
    best: dict[int, list[Candidate]] = {}
    for shard in dataset.shards(split):
        unknown, turned, wrong = _failures(dataset.store, split, shard, wanted)
        for row in dataset.index_of_shard(split, shard):
            if not row["selected"]:
                continue
            key, label = row["key"], row["label"]
            is_unknown = 2 * unknown[key] >= max(len(models), 1)
            rank = (is_unknown, -turned[key], -wrong[key], keyed_hash(0, "report", key))
            kept = best.setdefault(label, [])
            kept.append(Candidate(rank, key, label))
            if len(kept) > 64 * per_class:
                best[label] = heapq.nsmallest(per_class, kept)
    return sorted(
        candidate for kept in best.values() for candidate in heapq.nsmallest(per_class, kept)
    )


def _failures(
    store: Store, split: str, shard: int, wanted: Iterable[tuple[ModelResults, pc.Expression]]
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Counts for each key the models wrong on `original`, those turned, and wrong predictions.

    A turned model is right on `mixed_same` and wrong on another mixed version. Wrong predictions
    are counted on all mixed versions. Only the predictions that are wanted of a model count.
    """
    unknown, turned, wrong = Counter[str](), Counter[str](), Counter[str]()
    for model, of_model in wanted:
        path = result_shard(model.folder, "predictions", split, shard)
        if not store.exists(path):
            continue
        columns = ["variant", "key", "correct"]
        table = read_table(store, path, columns=columns, filters=of_model)
        right, failed = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
        for variant, key, correct in zip(
            *(table[column].to_pylist() for column in columns), strict=True
        ):
            (right if correct else failed)[variant].add(key)
        unknown.update(failed["original"])
        for variant in MIXED:
            wrong.update(failed[variant])
        turned.update(right["mixed_same"] & (failed["mixed_rand"] | failed["mixed_next"]))
    return unknown, turned, wrong


def _wanted(
    dataset: Dataset, split: str, model: Evaluated, variants: Iterable[str]
) -> pc.Expression:
    """Returns which of a model's predictions on variants to read: those up to date that count.

    Those on variants whose predictions are outdated or incomplete (`Summary.missing`) do not, nor
    those on pictures with the background of an image that is not held out (`EvalImages.counts`).
    """
    holdout, variants = model[1].evaluation.holdout, set(variants).difference(model[1].missing)
    wanted = pc.field("variant").isin(pa.array(variants, pa.string()))
    if holdout:
        own = [name for name in variants if not VariantName.parse(name).is_mixed]
        tested = [row["key"] for row in selected_rows(dataset, split, holdout)]
        wanted &= pc.field("variant").isin(pa.array(own, pa.string())) | pc.field("bg_key").isin(
            pa.array(tested, pa.string())
        )
    return wanted


def read_predictions_of(
    dataset: Dataset, split: str, model: Evaluated, keys: Sequence[str]
) -> Iterator[Row]:
    """Reads a model's predictions on some images that are `_wanted`, by all label rules."""
    store = dataset.store
    columns = ["label_rule", "variant", "key", "prediction", "output", "correct", "top1_score"]
    wanted = _wanted(dataset, split, model, map(str, dataset.picture_variants))
    wanted &= pc.field("key").isin(list(keys))
    for shard in sorted({dataset.shard_of(split, key) for key in keys}):
        path = result_shard(model[0].folder, "predictions", split, shard)
        if store.exists(path):
            yield from read_table(store, path, columns=columns, filters=wanted).to_pylist()


@dataclasses.dataclass(frozen=True)
class Version:
    """One version of an image.

    Attributes:
      uri: the picture as a data URI; "" if pictures are left out.
      background: class of the image that the background comes from, or `a scene`; "" for the
        image's own background, and for an unknown one.
      bg_label: label of this class; None if there is no such class.
      bg_key: key of the image, or the scene, that its background comes from; "" as above.
    """

    variant: str
    uri: str
    background: str
    bg_label: int | None
    bg_key: str
    predictions: tuple[Prediction, ...]

    @property
    def by_model(self) -> Mapping[str, Prediction]:
        return {one.model: one for one in self.predictions}


@dataclasses.dataclass(frozen=True)
class ImageCard:
    """One image.

    Attributes:
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
    def seen(self) -> int:
        """Number of models that `turned` is out of: those whose answer on `mixed_same` counts."""
        same = self.version("mixed_same")
        return len(same.predictions) if same else 0

    @property
    def anchor(self) -> str:
        """The card's address within the page, without the `#`."""
        return f"image={quote(self.key, safe='')}"

    def version(self, variant: str) -> Version | None:
        """Returns the image's version of a variant; None if it has no such version."""
        return next((v for v in self.versions if v.variant == variant), None)


@dataclasses.dataclass(frozen=True)
class Example:
    """One foreground on two backgrounds; the second background misleads models.

    Attributes:
      same: the version that the models recognise.
      other: the version that they do not recognise.
      misled: wrong answers to `other` by models that recognise `same`; answers that name the
        background's class come first.
      believers: number of models whose wrong answer is the background's class.
    """

    card: ImageCard
    same: Version
    other: Version
    misled: tuple[Prediction, ...]
    believers: int


@dataclasses.dataclass(frozen=True)
class Chooser:
    """The images to choose from.

    Attributes:
      rules: the label rules of their answers; the first is the headline's.
      cards: one card for each image, in the order of `Candidate`.
      is_cut: whether the page has no room for all images that were chosen.
    """

    split: str
    images: int
    models: tuple[str, ...]
    rules: tuple[str, ...]
    cards: tuple[ImageCard, ...]
    is_cut: bool
    with_pictures: bool

    per_class: ClassVar[int] = PER_CLASS

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(sorted({card.class_name for card in self.cards}))

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """Patterns that any model's answers match on any card."""
        matched = {name for card in self.cards for names in card.patterns for name in names}
        return tuple(pattern for pattern in PATTERNS if pattern.name in matched)

    @property
    def example(self) -> Example | None:
        """The example at the head of the page; None without pictures."""
        return best_example(self.cards) if self.with_pictures else None


def make_chooser(evidence: Evidence, with_pictures: bool) -> Chooser:
    """Collects the images to show: of the images chosen, as many as have room for pictures."""
    split, models = shown_models(evidence)
    chosen = choose_images(evidence, split, models)
    rules = rules_of(summary for _, summary in evidence.comparable)
    at_once = _AT_ONCE if with_pictures else max(1, len(chosen))
    budget = Budget(_BYTES)
    cards: list[ImageCard] = []
    for start in range(0, len(chosen), at_once):
        candidates = chosen[start : start + at_once]
        fitting = _make_cards(evidence, split, models, candidates, budget, with_pictures)
        cards += fitting
        if len(fitting) < len(candidates):
            break
    return Chooser(
        split=split,
        images=evidence.dataset.manifest.images[split]["selected"],
        models=tuple(model.name for model, _ in models),
        rules=tuple(sorted(rules, key=lambda rule: rule != evidence.rule)),
        cards=tuple(cards),
        is_cut=len(cards) < len(chosen),
        with_pictures=with_pictures,
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
    predictions = predictions_of(evidence, split, models, keys)
    samples: dict[str, dict[VariantName, Sample]] = {}
    uris: dict[tuple[VariantName, str], str] = {}
    # Cards show renderings only if there is nothing else.
    variants = (
        tuple(name for name in dataset.picture_variants if not name.rendering)
        or dataset.picture_variants
    )
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
        cards.append(_card(candidate, samples[key][variants[0]], versions, models, taxonomy))
    return cards


def predictions_of(
    evidence: Evidence, split: str, models: Sequence[Evaluated], keys: Sequence[str]
) -> dict[tuple[str, str], list[Prediction]]:
    """Reads the models' predictions on some images, by (variant, key)."""
    taxonomy = evidence.taxonomy
    predictions: dict[tuple[str, str], list[Prediction]] = {}
    for model, summary in models:
        outputs = classes_of_outputs(summary.num_outputs, taxonomy)
        by_rule: dict[str, dict[tuple[str, str], Prediction]] = {r: {} for r in summary.label_rules}
        for row in read_predictions_of(evidence.dataset, split, (model, summary), keys):
            by_rule[row["label_rule"]][row["variant"], row["key"]] = Prediction.of(
                *(model.name, taxonomy, outputs),
                *(row["prediction"], row["output"], row["top1_score"], row["correct"]),
            )
        for picture, prediction in by_rule[summary.headline].items():
            others = {rule: by_rule[rule].get(picture) for rule in summary.label_rules[1:]}
            otherwise = next(
                (
                    f"{rule}: {other.answer}"
                    for rule, other in others.items()
                    if other and other.label != prediction.label
                ),
                "" if summary.headline == evidence.rule else f"by {summary.headline}",
            )
            predictions.setdefault(picture, []).append(
                dataclasses.replace(prediction, otherwise=otherwise)
            )
    return predictions


def _version(
    sample: Sample,
    variant: VariantName,
    uri: str,
    predictions: dict[tuple[str, str], list[Prediction]],
    taxonomy: Taxonomy,
) -> Version:
    label = sample.fields["bg_label"]
    unnamed = "a scene" if sample.fields["bg_key"] else ""
    return Version(
        variant=str(variant),
        uri=uri,
        background=unnamed if label is None else taxonomy.names[label],
        bg_label=label,
        bg_key=sample.fields["bg_key"] or "",
        predictions=tuple(predictions.get((str(variant), sample.key), ())),
    )


def _card(
    candidate: Candidate,
    sample: Sample,
    versions: Sequence[Version],
    models: Sequence[Evaluated],
    taxonomy: Taxonomy,
) -> ImageCard:
    answers = [
        {
            version.variant: VersionAnswer(p.label, p.is_right, p.label == version.bg_label)
            for version in versions
            for p in version.predictions
            if p.model == model.name
        }
        for model, _ in models
    ]
    return ImageCard(
        key=candidate.key,
        class_name=taxonomy.names[candidate.label],
        name=taxonomy.class_names[taxonomy.index_of[sample.fields["wnid"]]].partition(",")[0],
        fg_fraction=sample.fields["fg_fraction"],
        turned=-candidate.rank[1],
        versions=tuple(versions),
        patterns=tuple(map(patterns_of, answers)),
    )


def best_example(cards: Sequence[ImageCard]) -> Example | None:
    """Picks the image on which most models name the background's class, not the foreground's.

    If no model does so anywhere, picks the image that misleads most models; None if no image
    misleads any. Images with an unknown background are passed over.
    """
    # Of equally strong examples, `max` keeps the first.
    return max((one for card in cards for one in _examples(card)), key=_strength, default=None)


def _examples(card: ImageCard) -> Iterator[Example]:
    same = card.version("mixed_same")
    for variant in ("mixed_rand", "mixed_next"):
        other = card.version(variant)
        # The page says where both backgrounds come from, which an import may not know.
        if same and other and None not in (same.bg_label, other.bg_label):
            right = {p.model for p in same.predictions if p.is_right}
            wrong = [p for p in other.predictions if p.model in right and not p.is_right]
            wrong.sort(key=lambda p: p.label != other.bg_label)
            if wrong:
                believers = sum(p.label == other.bg_label for p in wrong)
                yield Example(card, same, other, tuple(wrong), believers)


def _strength(example: Example) -> tuple[int, int, int, bool]:
    """Returns a key to compare examples by.

    It holds how many models name the background's class, how many are misled, how many are right on
    the original, and whether the foreground is neither too small nor too large.
    """
    original = example.card.version("original")
    known = sum(p.is_right for p in original.predictions) if original else 0
    share = example.card.fg_fraction
    is_clear = share is not None and 0.15 <= share <= 0.45
    return example.believers, len(example.misled), known, is_clear


IMAGES = Panel(
    id="images",
    place=0,
    template="evaluation/images.html",
    title="Images",
    make=make_chooser,
    aside="evaluation/example.html",
    needs_backgrounds=False,
)
