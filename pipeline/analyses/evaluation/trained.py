"""What models were trained on, as far as their checkpoints or names tell."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.analyses.evaluation.results import Summary
from pipeline.display.evidence import ModelResults, Results
from pipeline.evaluate import published


def training_of(model: ModelResults) -> str | None:
    """Returns the variant that a model was trained on, as its checkpoint or its name says; None if
    unknown."""
    if model.trained:
        return model.trained.variant
    return published.trained_on(model.model, model.num_outputs)


def overlap_of(model: ModelResults) -> int:
    """Returns the number of images that a model was evaluated and also trained on, as far as its
    checkpoint names them."""
    summary = model.get(Summary)
    return (summary.overlap or 0) if summary else 0


def models_trained_on(results: Results, variant: str) -> Iterator[ModelResults]:
    """Yields models trained on a variant and tested on no training image."""
    for model in results.models:
        if training_of(model) == variant and not overlap_of(model):
            yield model


def pretrained_models(results: Results) -> Iterator[tuple[ModelResults, Summary]]:
    """Yields evaluated models with more outputs than ImageNet-9 has classes, which are taken for
    models trained on ImageNet."""
    for model, summary in results.models_with(Summary):
        if summary.num_outputs > len(published.FOOLED_BY_CLASS):
            yield model, summary
