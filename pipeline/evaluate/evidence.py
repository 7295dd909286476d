"""The results of a dataset as pages, tables and claims read them, and the authors' own figures.

Results are read by model, and by type. Published figures are fractions, measured on the authors'
hand-cleaned images. Sources: paper = arXiv 2006.09994 v1, tables 2 and 5; README = the README of
the authors' evaluation repository; blog = the authors' post on the paper.
"""

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.families import Family, Subject, subjects_of
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


FULL_GRID = 4050
"""Number of foregrounds in the authors' attack, which is also its number of backgrounds."""


@dataclasses.dataclass(frozen=True)
class Published:
    """A pretrained model's published figures.

    Attributes:
      name: the model's name in the source.
      source: `paper` or `README`.
      architectures: names of the architecture in model libraries, without the tags of weights.
      accuracy: accuracy by variant, as a fraction.
      gap: BG-Gap, as a fraction.
    """

    name: str
    source: str
    architectures: tuple[str, ...]
    accuracy: Mapping[str, float]
    gap: float


_RESNET50 = ("resnet50",)
_MOBILENET = ("mobilenetv3_large_100", "mobilenet_v3_large")

PRETRAINED = (
    Published(
        "ResNet-50",
        "paper",
        _RESNET50,
        {"original": 0.962, "only_bg_t": 0.178, "mixed_same": 0.823, "mixed_rand": 0.763},
        0.060,
    ),
    Published(
        "MobileNet-v3",
        "paper",
        _MOBILENET,
        {"original": 0.910, "only_bg_t": 0.157, "mixed_same": 0.697, "mixed_rand": 0.561},
        0.136,
    ),
    Published(
        "EfficientNet-b0",
        "paper",
        ("efficientnet_b0",),
        {"original": 0.956, "only_bg_t": 0.119, "mixed_same": 0.797, "mixed_rand": 0.678},
        0.119,
    ),
    Published(
        "ResNet-50",
        "README",
        _RESNET50,
        {"original": 0.956, "mixed_same": 0.862, "mixed_rand": 0.789},
        0.073,
    ),
    Published(
        "VGG16-BN",
        "README",
        ("vgg16_bn",),
        {"original": 0.943, "mixed_same": 0.836, "mixed_rand": 0.734},
        0.102,
    ),
    Published(
        "ResNet-152",
        "README",
        ("resnet152",),
        {"original": 0.967, "mixed_same": 0.893, "mixed_rand": 0.835},
        0.058,
    ),
)
"""Models pretrained on ImageNet (the paper's table 2, and the README). The label rule is
`argmax_then_map`."""

TABLE_5_NAMES = {
    "mixed_next": "M-Next",
    "mixed_rand": "M-Rand",
    "mixed_same": "M-Same",
    "no_fg": "No-FG",
    "only_bg_b": "BG-B",
    "only_bg_t": "BG-T",
    "only_fg": "Only-FG",
    "original": "Original",
    "in9l": "IN-9L",
}
"""Columns of the paper's table 5, in order: a variant's name here -> its name in the table."""
_TABLE_5 = {
    "mixed_next": (78.07, 53.28, 48.49, 16.20, 11.19, 8.22, 59.60, 52.32, 46.44),
    "mixed_rand": (71.09, 71.53, 71.33, 26.72, 15.33, 14.62, 74.89, 73.23, 67.53),
    "mixed_same": (45.41, 51.36, 74.40, 39.85, 35.19, 41.58, 61.65, 75.01, 69.21),
    "no_fg": (13.70, 18.74, 42.79, 70.91, 36.79, 42.52, 31.48, 48.94, 47.62),
    "only_bg_b": (10.35, 15.41, 38.37, 37.85, 54.30, 42.54, 21.38, 42.10, 41.01),
    "only_bg_t": (11.48, 17.09, 45.80, 40.84, 38.49, 50.25, 19.19, 49.06, 47.94),
    "only_fg": (33.04, 35.88, 47.63, 27.90, 23.58, 22.59, 84.20, 54.62, 51.50),
    "original": (48.77, 53.58, 73.80, 42.22, 32.94, 40.54, 63.23, 85.95, 80.38),
    "in9l": (71.21, 75.60, 89.90, 55.78, 34.02, 43.60, 84.12, 96.32, 94.61),
}

TRAINED = {
    trained: {
        tested: round(percent / 100, 4) for tested, percent in zip(TABLE_5_NAMES, row, strict=True)
    }
    for trained, row in _TABLE_5.items()
}
"""Variant that a ResNet-50 was trained on -> variant that it was tested on -> accuracy (the paper's
table 5)."""

CHALLENGE = {"ResNet-50": 0.223, "ResNet-50 (IN-9L)": 0.120}
"""Challenge accuracy by model, on the full grid (README)."""

FOOLED = 0.875
"""Share of foregrounds for which there is a background of another class that makes ResNet-50
predict that other class (paper, blog)."""

FOOLED_BY_CLASS = (0.6177, 0.6422, 0.6747, 0.5494, 0.5311, 0.6655, 0.7319, 0.6383, 0.6969)
"""For each class, in order of labels: share of the foregrounds of other classes for which there is
a background of the class that makes the IN-9L ResNet-50 predict the class (paper)."""


def published_for(architecture: str) -> tuple[Published, ...]:
    """Finds the published figures of an architecture.

    Its name may have a library or `tf_` in front, or a tag behind: `torchvision:resnet50`,
    `tf_efficientnet_b0`, `resnet50.a1_in1k`.
    """
    name = architecture.rpartition(":")[2].partition(".")[0].removeprefix("tf_")
    return tuple(entry for entry in PRETRAINED if name in entry.architectures)


def trained_on(model: str, num_outputs: int) -> str | None:
    """Finds the variant that a checkpoint, `ARCH=FILE`, was trained on, by the name of its file.

    It is the name of a row of the paper's table 5; None if the model corresponds to no row.
    Figures are published only for models with one output per superclass.

    >>> trained_on("resnet50=models/resnet50-mixed_rand.pth", 9)
    'mixed_rand'
    """
    stem = os.path.splitext(model.partition("=")[2])[0]
    variants = [name for name in TRAINED if stem.endswith(name)]
    return variants[0] if variants and num_outputs == len(FOOLED_BY_CLASS) else None
