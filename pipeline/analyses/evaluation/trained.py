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


def models_trained_on(results: Results, variant: str) -> Iterator[ModelResults]:
    """Yields models trained on a variant and, as far as their checkpoints name their training
    images, tested on none of these."""
    for model in results.models:
        summary = model.get(Summary)
        if training_of(model) == variant and not (summary and summary.overlap):
            yield model


def pretrained_models(results: Results) -> Iterator[tuple[ModelResults, Summary]]:
    """Yields evaluated models with more outputs than ImageNet-9 has classes, which are taken for
    models trained on ImageNet."""
    for model, summary in results.models_with(Summary):
        if summary.num_outputs > len(published.FOOLED_BY_CLASS):
            yield model, summary
