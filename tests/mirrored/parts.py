"""The parts of the analysis of mirrored pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.analyses.mirrored.results import (
    TABLES,
    MirroredResult,
    mirrored_table,
    read_mirrored,
    write_tables,
)
from pipeline.analyses.mirrored.stage import PlannedMirrored
from typing_extensions import override

from pipeline.analyses.parts import Flags, Found, Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.display.panel import Panel
from pipeline.evaluate.evidence import Evidence
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis
from transforms.taxonomy import Taxonomy
from transforms.variants import VariantName


def make_mirrored(evidence: Evidence, with_pictures: bool) -> list[tuple[str, MirroredResult]]:
    """Collects (name, result) of each model."""
    return [(model.name, result) for model, result in evidence.models_with(MirroredResult)]


PANEL = Panel(
    id="mirrored",
    place=9,
    template="mirrored/panel.html",
    title="Mirrored",
    make=make_mirrored,
    answers="How well mirrored pictures are classified",
    command="in9 evaluate --dataset . --models MODELS --mirrored",
)


class MirroredFlags(Flags, frozen=True, kw_only=True):
    """Whether to measure accuracy on mirrored pictures."""

    mirrored: bool = False


class MirroredParts(Parts[MirroredFlags]):
    """The parts of the analysis of mirrored pictures."""

    flags = MirroredFlags
    tables = TABLES
    panels = (PANEL,)

    @override
    def plan(
        self,
        flags: MirroredFlags,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> PlannedAnalysis | None:
        return PlannedMirrored(evaluation, taxonomy) if flags.mirrored else None

    @override
    def expected_pictures(
        self, work: PlannedAnalysis, images: float, variants: Sequence[VariantName]
    ) -> int:
        return round(images)

    @override
    def find(self, dataset: Dataset) -> Found:
        return Found(read_mirrored(dataset))

    @override
    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        write_tables(dataset)

    @override
    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
        if work:
            yield mirrored_table(read_mirrored(dataset))


PARTS = MirroredParts()
