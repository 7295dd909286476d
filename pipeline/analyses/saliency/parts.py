"""The parts of saliency: where models look, and the authors' claim about it.

Maps side by side, and one number for each model, show where models look.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from typing_extensions import override

from pipeline.analyses.parts import Flags, Found, Parts
from pipeline.analyses.saliency.results import (
    SALIENCY_TABLE,
    SaliencyResult,
    read_saliency,
    saliency_table,
    write_saliency_table,
)
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.display.panel import (
    Budget,
    Claim,
    Measurement,
    Panel,
    checkpoints,
    data_uri,
    differences,
    find_samples,
    trained_command,
)
from pipeline.evaluate.evidence import (
    Evidence,
    ModelResults,
    Results,
    models_trained_on,
    training_of,
)
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis
from transforms.intervals import above, estimate_of
from transforms.taxonomy import OUTSIDE, Taxonomy
from transforms.variants import MASK, ORIGINAL, VariantName

COMMAND = "in9 saliency --dataset . --models MODELS"

_BYTES = 1_200_000
_SIDE = 176
"""Side of the pictures and maps, in pixels."""
SIDE_BY_SIDE = 3
"""Largest number of models whose maps are shown beside an image."""
_PAIR = {"original": 0, "mixed_rand": 1}


@dataclasses.dataclass(frozen=True)
class ShownMap:
    """A model's saliency map of an image.

    Attributes:
      trained: the variant that the model was trained on; "" if unknown.
      mass_in_mask: share of the saliency inside the mask; None if no pixel has saliency.
    """

    model: str
    trained: str
    uri: str
    mass_in_mask: float | None
    answer: str
    is_right: bool


@dataclasses.dataclass(frozen=True)
class SaliencyPair:
    """An image, and the saliency maps that models have of it."""

    key: str
    class_name: str
    uri: str
    maps: tuple[ShownMap, ...]


@dataclasses.dataclass(frozen=True)
class SaliencyPanel:
    """Content of the panel.

    Attributes:
      models: (name, result) of each model whose saliency was measured.
      pairs: images with the maps of up to `SIDE_BY_SIDE` models; empty if pictures are left out.
      left_out: models whose maps are not shown beside the images.
      errors: (model, why its saliency failed).
    """

    models: tuple[tuple[str, SaliencyResult], ...]
    pairs: tuple[SaliencyPair, ...]
    left_out: tuple[str, ...]
    errors: tuple[tuple[str, str], ...]


def make_saliency(evidence: Evidence, with_pictures: bool = True) -> SaliencyPanel | None:
    """Collects the panel's content; None if saliency was not measured and has not failed."""
    models = evidence.models_with(SaliencyResult)
    errors = [(m.name, m.errors["saliency"]) for m in evidence.models if "saliency" in m.errors]
    if not models and not errors:
        return None
    # Only maps of the same version and split can be shown beside one picture.
    alike = [one for one in models if _kind(one[1]) == _kind(models[0][1])]
    # The authors' pair comes first: models trained on Original and on Mixed-Rand.
    alike.sort(key=lambda one: _PAIR.get(training_of(one[0]) or "", len(_PAIR)))
    shown = alike[:SIDE_BY_SIDE]
    return SaliencyPanel(
        models=tuple((model.name, result) for model, result in models),
        pairs=_pairs(evidence, shown) if with_pictures and shown else (),
        left_out=tuple(one[0].name for one in models if one not in shown),
        errors=tuple(errors),
    )


def _kind(result: SaliencyResult) -> tuple[str, str]:
    return result.evaluation.split, result.variant


def _pairs(
    evidence: Evidence, models: Sequence[tuple[ModelResults, SaliencyResult]]
) -> tuple[SaliencyPair, ...]:
    dataset, names = evidence.dataset, evidence.taxonomy.names
    split, variant = _kind(models[0][1])
    maps = [{one.key: one for one in result.maps} for _, result in models]
    keys = [key for key in maps[0] if all(key in of_model for of_model in maps)]
    samples = find_samples(dataset, split, VariantName.parse(variant), keys)
    budget, pairs = Budget(_BYTES), []
    for key in keys:
        of_key = [of_model[key] for of_model in maps]
        if key not in samples or not all(dataset.store.exists(one.file) for one in of_key):
            continue
        uri = data_uri(samples[key].image, _SIDE)
        shown = [data_uri(dataset.store.read(one.file), _SIDE) for one in of_key]
        if not budget.takes(uri, *shown):
            break
        pairs.append(
            SaliencyPair(
                key=key,
                class_name=names[of_key[0].label],
                uri=uri,
                maps=tuple(
                    ShownMap(
                        model=model.name,
                        trained=training_of(model) or "",
                        uri=picture,
                        mass_in_mask=one.mass_in_mask,
                        answer="outside" if one.prediction == OUTSIDE else names[one.prediction],
                        is_right=one.prediction == one.label,
                    )
                    for (model, _), one, picture in zip(models, of_key, shown, strict=True)
                ),
            )
        )
    return tuple(pairs)


def on_foreground(results: Results, trained_on: str) -> list[Measurement]:
    """Returns the share of saliency inside the mask of models trained on a variant."""
    return [
        Measurement(model.name, estimate)
        for model in models_trained_on(results, trained_on)
        if (one := model.get(SaliencyResult))
        and (estimate := estimate_of(one.mass_in_mask, one.ci_low, one.ci_high))
    ]


class SaliencyFlags(Flags, frozen=True, kw_only=True):
    """How many maps to show, which `run` names `--saliency`; None to measure nothing."""

    maps: int | None = None
    variant: str = "original"
    saliency: int | None = None


class SaliencyParts(Parts[SaliencyFlags]):
    flags = SaliencyFlags
    tables = (SALIENCY_TABLE,)
    panels = (
        Panel(
            id="saliency",
            place=6,
            template="saliency/panel.html",
            title="Saliency",
            make=make_saliency,
            answers="How much of what decides an answer lies on the foreground",
            command=COMMAND,
            needs_variants=(ORIGINAL, MASK),
        ),
    )
    claims = (
        Claim(
            "The model trained on Mixed-Rand looks more at the foreground than the one trained on "
            "Original.",
            (4, 5),
            "blog 4, saliency maps",
            "pictures only",
            "share of saliency inside the mask: difference above 0",
            lambda results: differences(
                on_foreground(results, "mixed_rand"), on_foreground(results, "original")
            ),
            above,
            trained_command(COMMAND, "original", "mixed_rand"),
            of="pairs",
            unit="points",
            needs=checkpoints("original", "mixed_rand"),
        ),
    )

    @override
    def plan(
        self,
        flags: SaliencyFlags,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> PlannedAnalysis | None:
        is_own = flags.command == "saliency"
        maps = flags.maps if is_own else flags.saliency
        if maps is None:
            return None
        from pipeline.analyses.saliency.stage import PlannedSaliency, check_variants

        work = PlannedSaliency(evaluation, taxonomy, VariantName.parse(flags.variant), maps)
        evaluation.check_stored("saliency is measured on stored pixels as they are")
        dataset = Dataset.open(evaluation.store) if is_own else None
        check_variants(dataset.variants if dataset else config.compose.composed, flags.variant)
        if dataset:
            # Choosing the images also checks that the dataset has some.
            work.shown_images(dataset)
        return work

    @override
    def find(self, dataset: Dataset) -> Found:
        return Found(read_saliency(dataset))

    @override
    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        write_saliency_table(dataset)

    @override
    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
        if work:
            yield saliency_table(read_saliency(dataset))


PARTS = SaliencyParts()
