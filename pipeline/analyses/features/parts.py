"""The parts of the analysis of features."""

import dataclasses
from collections.abc import Iterator, Sequence

from typing_extensions import override

from pipeline.analyses.features.results import (
    FEATURES_TABLE,
    FeatureRow,
    FeaturesResult,
    describe_features,
    read_features,
)
from pipeline.analyses.features.stage import PlannedFeatures
from pipeline.analyses.parts import Flags, Found, Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.display.panel import Panel
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis, refuse_no_fit
from pipeline.evaluate.results import pick
from pipeline.models.checkpoint import encoder_of, encoder_of_head
from transforms.taxonomy import Taxonomy


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
    def plan(
        self, flags: Flags, evaluation: Evaluation, config: DatasetConfig, taxonomy: Taxonomy
    ) -> PlannedFeatures | None:
        """Plans the frozen encoders whose heads are to be fitted, in whatever command."""
        entries = evaluation.models
        encoders = tuple(one for one in entries if encoder_of(one) and not encoder_of_head(one))
        if not encoders:
            return None
        refuse_no_fit(encoders[0], evaluation.fit, config.compose.variants)
        return PlannedFeatures(dataclasses.replace(evaluation, models=encoders), taxonomy)

    @override
    def find(self, dataset: Dataset) -> Found:
        return Found(read_features(dataset))

    @override
    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        results, of = read_features(dataset), dataset.manifest.fingerprint
        if results or dataset.store.exists("results/features.csv"):
            rows = (
                pick(FeatureRow, one, one.evaluation, model=one.title, dataset=of, **one.columns)
                for one in results
            )
            FEATURES_TABLE.write(dataset.store, ([row] for row in rows))

    @override
    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
        if work:
            yield from (describe_features(one.name, one) for one in read_features(dataset))


PARTS = FeaturesParts()
