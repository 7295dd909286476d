"""The parts of the analysis of mirrored pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.analyses.mirrored.panel import PANEL
from pipeline.analyses.mirrored.results import (
    TABLES,
    mirrored_table,
    read_mirrored,
    write_tables,
)
from pipeline.analyses.mirrored.stage import PlannedMirrored
from typing_extensions import override

from pipeline.analyses.parts import Flags, Found, Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.planned import Evaluation, PlannedAnalysis
from transforms.taxonomy import Taxonomy
from transforms.variants import VariantName


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
