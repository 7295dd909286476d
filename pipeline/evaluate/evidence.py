"""The results of a dataset as pages, tables and claims read them: by model, and by type."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.families import Family, Subject, subjects_of
from pipeline.evaluate.published import trained_on
from pipeline.evaluate.results import ModelRun, Trained
from pipeline.evaluate.summary import Summary
from transforms.scoring import PAPER_RULE
from transforms.taxonomy import Taxonomy

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class ModelResults:
    """The results of one model, run with one set of settings, on the current dataset.

    Attributes:
      folder: name of its folder below `results/`.
      name: name of the model, with the settings that differ from the defaults.
      model: the model as `--models` names it.
      errors: why it failed, by analysis, for analyses in which it has no results.
    """

    folder: str
    name: str
    model: str
    results: Sequence[ModelRun] = ()
    errors: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def get(self, kind: type[R]) -> R | None:
        """Returns the result of a type; None if there is none."""
        return next((one for one in self.results if isinstance(one, kind)), None)

    @property
    def trained(self) -> Trained | None:
        """How its checkpoint was trained; None if that is unknown."""
        return next((run.trained for run in self.results if run.trained), None)

    @property
    def num_outputs(self) -> int:
        """Number of the model's outputs; 0 if it has no result."""
        return next((run.num_outputs for run in self.results), 0)


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a dataset: of models, in the page's order, and of no single one."""

    models: tuple[ModelResults, ...]
    of_dataset: Sequence[object] = ()

    def get(self, kind: type[R]) -> tuple[R, ...]:
        """Returns the results of a type that belong to no single model."""
        return tuple(one for one in self.of_dataset if isinstance(one, kind))

    def models_with(self, kind: type[R]) -> tuple[tuple[ModelResults, R], ...]:
        """Returns (model, its result) of each model that has a result of a type."""
        return tuple((model, one) for model in self.models if (one := model.get(kind)) is not None)

    @property
    def subjects(self) -> list[tuple[str, Subject]]:
        """(name, family) of each family, then those of the models that are in none."""
        names = {summary.folder: model.name for model, summary in self.models_with(Summary)}
        return [
            (one.name if isinstance(one, Family) else names[one.folder], one)
            for one in subjects_of([summary for _, summary in self.models_with(Summary)])
        ]

    @property
    def rule(self) -> str:
        """The label rule of the page's figures: the headline's of most models."""
        headlines = [summary.headline for _, summary in self.models_with(Summary)]
        return max((PAPER_RULE, *headlines), key=headlines.count)

    @property
    def comparable(self) -> tuple[tuple[ModelResults, Summary], ...]:
        """(model, summary) of each model whose headline has the page's label rule."""
        return tuple(one for one in self.models_with(Summary) if one[1].headline == self.rule)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence(Results):
    """Everything that the page is made from.

    `stale` names models whose predictions all belong to an earlier state of the dataset.
    """

    dataset: Dataset
    taxonomy: Taxonomy
    stale: tuple[str, ...] = ()


def training_of(model: ModelResults) -> str | None:
    """Returns a model's training variant, as its checkpoint or name says; None if unknown."""
    return model.trained.variant if model.trained else trained_on(model.model, model.num_outputs)


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
