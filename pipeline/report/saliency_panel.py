"""Saliency: where models look, shown by maps side by side and by one number for each model."""

from __future__ import annotations

import dataclasses
from typing import Any

from pipeline.report.evidence import Evidence, ModelResults
from pipeline.report.measured import training_of
from pipeline.report.panel import SALIENCY_COMMAND, Panel
from pipeline.report.pictures import Budget, data_uri, find_samples
from transforms.taxonomy import OUTSIDE

_BYTES = 1_200_000
_SIDE = 176
"""Side of the pictures and maps, in pixels."""
SIDE_BY_SIDE = 3
"""Largest number of models whose maps are shown beside an image."""
_PAIR = {"original": 0, "mixed_rand": 1}


@dataclasses.dataclass(frozen=True)
class SaliencyMap:
    """A model's saliency map of an image.

    Attributes:
      model: name of the model.
      trained: the variant that the model was trained on; "" if unknown.
      uri: the map as a data URI.
      mass_in_mask: share of the saliency inside the mask; None if no pixel has saliency.
      answer: name of the superclass that the model predicts; "outside" if it predicts none.
      is_right: whether the answer is right.
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
    maps: tuple[SaliencyMap, ...]


@dataclasses.dataclass(frozen=True)
class SaliencyPanel:
    """Content of the panel.

    Attributes:
      models: (name, content of saliency.json) of each model whose saliency was measured.
      pairs: images with the maps of up to `SIDE_BY_SIDE` models; empty if pictures are left out.
      left_out: models whose maps are not shown beside the images.
      errors: (model, why its saliency failed).
    """

    models: tuple[tuple[str, dict[str, Any]], ...]
    pairs: tuple[SaliencyPair, ...]
    left_out: tuple[str, ...]
    errors: tuple[tuple[str, str], ...]


def make_saliency(evidence: Evidence, with_pictures: bool = True) -> SaliencyPanel | None:
    """Collects the panel's content; None if saliency was not measured and has not failed."""
    models = [model for model in evidence.models if model.saliency]
    errors = [(m.name, m.errors["saliency"]) for m in evidence.models if "saliency" in m.errors]
    if not models and not errors:
        return None
    # Only maps of the same version and split can be shown beside one picture.
    kinds = [_kind(model) for model in models]
    alike = [m for m, kind in zip(models, kinds, strict=True) if kind == kinds[0]]
    # The authors' pair comes first: models trained on Original and on Mixed-Rand.
    alike.sort(key=lambda model: _PAIR.get(training_of(model) or "", len(_PAIR)))
    shown = alike[:SIDE_BY_SIDE]
    return SaliencyPanel(
        models=tuple((model.name, model.saliency or {}) for model in models),
        pairs=_pairs(evidence, shown) if with_pictures and shown else (),
        left_out=tuple(model.name for model in models if model not in shown),
        errors=tuple(errors),
    )


def _kind(model: ModelResults) -> tuple[str, str]:
    saliency = model.saliency or {}
    return saliency["evaluation"]["split"], saliency["variant"]


def _pairs(evidence: Evidence, models: list[ModelResults]) -> tuple[SaliencyPair, ...]:
    dataset, names = evidence.dataset, evidence.taxonomy.names
    split, variant = _kind(models[0])
    maps = [{one["key"]: one for one in (m.saliency or {})["maps"]} for m in models]
    keys = [key for key in maps[0] if all(key in of_model for of_model in maps)]
    samples = find_samples(dataset, split, variant, keys)
    budget, pairs = Budget(_BYTES), []
    for key in keys:
        of_key = [of_model[key] for of_model in maps]
        if key not in samples or not all(dataset.store.exists(one["file"]) for one in of_key):
            continue
        uri = data_uri(samples[key].image, _SIDE)
        shown = [data_uri(dataset.store.read(one["file"]), _SIDE) for one in of_key]
        if not budget.takes(uri, *shown):
            break
        pairs.append(
            SaliencyPair(
                key=key,
                class_name=names[of_key[0]["label"]],
                uri=uri,
                maps=tuple(
                    SaliencyMap(
                        model=model.name,
                        trained=training_of(model) or "",
                        uri=picture,
                        mass_in_mask=one["mass_in_mask"],
                        answer="outside"
                        if one["prediction"] == OUTSIDE
                        else names[one["prediction"]],
                        is_right=one["prediction"] == one["label"],
                    )
                    for model, one, picture in zip(models, of_key, shown, strict=True)
                ),
            )
        )
    return tuple(pairs)


SALIENCY = Panel(
    id="saliency",
    title="Saliency",
    make=make_saliency,
    answers="How much of what decides an answer lies on the foreground",
    command=SALIENCY_COMMAND,
)
