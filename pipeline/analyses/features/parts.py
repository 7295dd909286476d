"""The parts of the analysis of features. Evaluating an encoder runs it, and it has no flags."""

from collections.abc import Iterator, Sequence

from typing_extensions import override

from pipeline.analyses.features.results import (
    FEATURES_TABLE,
    FeaturesResult,
    describe_features,
    read_features,
    write_features_table,
)
from pipeline.analyses.parts import Flags, Found, Parts
from pipeline.dataset.folder import Dataset
from pipeline.display.panel import Panel
from pipeline.evaluate.planned import PlannedAnalysis


class FeaturesParts(Parts[Flags]):
    flags = Flags
    tables = (FEATURES_TABLE,)
    figures = ("features",)
    panels = (
        Panel(
            id="features",
            place=6,
            template="features/panel.html",
            title="Features",
            make=lambda evidence, _: [
                describe_features(model.name, result)
                for model, result in evidence.models_with(FeaturesResult)
            ],
        ),
    )

    @override
    def find(self, dataset: Dataset) -> Found:
        return Found(read_features(dataset))

    @override
    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        write_features_table(dataset)

    @override
    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
        if work:
            yield from (describe_features(one.name, one) for one in read_features(dataset))


PARTS = FeaturesParts()
