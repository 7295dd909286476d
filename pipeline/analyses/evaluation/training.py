"""Models by what they were trained on, for claims about training."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.analyses.evaluation.results import Summary
from pipeline.display.panel import ModelResults, Results
from pipeline.evaluate import published


def training_of(model: ModelResults) -> str | None:
    """Returns a model's training variant, as its checkpoint or name says; None if unknown."""
    if model.trained:
        return model.trained.variant
    return published.trained_on(model.model, model.num_outputs)


def models_trained_on(results: Results, variant: str) -> Iterator[ModelResults]:
    """Returns models that were trained on a variant and not tested on their training images.

    A model whose checkpoint does not name its training images counts as not tested on them.
    """
    return (
        model
        for model in results.models
        if training_of(model) == variant
        and not ((summary := model.get(Summary)) and summary.overlap)
    )


def pretrained_models(results: Results) -> Iterator[tuple[ModelResults, Summary]]:
    """Returns evaluated models that are taken for models trained on ImageNet.

    These have more outputs than ImageNet-9 has classes.
    """
    return (
        (model, summary)
        for model, summary in results.models_with(Summary)
        if summary.num_outputs > len(published.FOOLED_BY_CLASS)
    )
