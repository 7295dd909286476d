"""The parts of the analysis of mirrored pictures."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from pipeline.analyses.mirrored.panel import PANEL
from pipeline.analyses.mirrored.results import (
    TABLES,
    mirrored_table,
    read_mirrored,
    write_tables,
)
from pipeline.analyses.mirrored.stage import MirroredWork

from pipeline.analyses.parts import Found, Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.display.panel import Panel
from pipeline.evaluate.evaluation import Evaluation, Work
from transforms.taxonomy import Taxonomy


class MirroredParts(Parts):
    """The parts of the analysis of mirrored pictures."""

    tables = TABLES

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Same as `Parts.panels`."""
        return (PANEL,)

    def plan(
        self,
        arguments: argparse.Namespace,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> Work | None:
        """Same as `Parts.plan`."""
        is_asked = getattr(arguments, "mirrored", False)
        return MirroredWork(evaluation, taxonomy) if is_asked else None

    def forecast(self, work: Work, images: float, variants: Sequence[str]) -> int:
        """Same as `Parts.forecast`."""
        return round(images)

    def find(self, dataset: Dataset) -> Found:
        """Same as `Parts.find`."""
        return Found(read_mirrored(dataset))

    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        """Same as `Parts.write`."""
        write_tables(dataset)

    def lines(self, dataset: Dataset, work: Work | None) -> Iterator[str]:
        """Same as `Parts.lines`."""
        if work:
            yield mirrored_table(read_mirrored(dataset))


PARTS = MirroredParts()
