"""The parts of the evaluation."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.analyses.evaluation.comparisons import COMPARISONS
from pipeline.analyses.evaluation.gap_power import describe_power
from pipeline.analyses.evaluation.results import TABLES
from pipeline.analyses.evaluation.summaries import read_summaries
from pipeline.analyses.evaluation.tables import (
    accuracy_table,
    describe_stale,
    write_evaluation_tables,
)
from pipeline.analyses.parts import Found, Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.display.evidence import Evidence
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.work import Work
from transforms.taxonomy import Taxonomy
from transforms.variants import is_picture

if TYPE_CHECKING:
    from pipeline.display.claims import Claim
    from pipeline.display.panel import Panel
    from pipeline.display.plot import Plot


class EvaluationParts(Parts):
    """The parts of the evaluation."""

    tables = (*TABLES, COMPARISONS)
    figures = ("decomposition", "per_class-", "sizes-", "confusion-", "groups-")

    @property
    def panels(self) -> tuple[Panel, ...]:
        """Same as `Parts.panels`."""
        from pipeline.analyses.evaluation.headline import ACCURACY
        from pipeline.analyses.evaluation.mistakes import MISTAKES
        from pipeline.analyses.evaluation.sensitivity import SENSITIVITY

        return (ACCURACY, SENSITIVITY, MISTAKES)

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Same as `Parts.claims`."""
        from pipeline.analyses.evaluation.claims import CLAIMS

        return CLAIMS

    def plan(
        self,
        arguments: argparse.Namespace,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> Work | None:
        """Same as `Parts.plan`."""
        if arguments.command not in ("run", "evaluate"):
            return None
        from pipeline.analyses.evaluation.stage import EvaluationWork

        return EvaluationWork(evaluation, taxonomy)

    def forecast(self, work: Work, images: float, variants: Sequence[str]) -> int | None:
        """Same as `Parts.forecast`."""
        return round(images * sum(map(is_picture, variants)))

    def find(self, dataset: Dataset) -> Found:
        """Same as `Parts.find`."""
        summaries, stale = read_summaries(dataset)
        return Found(summaries, stale=stale)

    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        """Same as `Parts.write`."""
        write_evaluation_tables(dataset, columns)

    def lines(self, dataset: Dataset, work: Work | None) -> Iterator[str]:
        """Same as `Parts.lines`."""
        summaries, stale = read_summaries(dataset)
        if work:
            yield accuracy_table(summaries)
            yield from describe_power(summaries)
        for summary in summaries:
            if summary.missing:
                yield (
                    f"missing: {summary.name} on {', '.join(summary.missing)}; evaluate it again: "
                    f"--models {summary.entry}"
                )
        yield from describe_stale(dataset, stale)

    def plots(self, evidence: Evidence) -> Iterator[Plot]:
        """Same as `Parts.plots`."""
        # Imported here, because Matplotlib is slow to import.
        from pipeline.analyses.evaluation.figures import make_plots

        return make_plots(evidence)


PARTS = EvaluationParts()
