"""The parts of saliency."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from pipeline.analyses.parts import Found, Parts
from pipeline.analyses.saliency.panel import CLAIMS, SALIENCY
from pipeline.analyses.saliency.results import (
    TABLES,
    read_saliency,
    saliency_table,
    write_saliency_table,
)
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.work import Work
from transforms.taxonomy import Taxonomy


class SaliencyParts(Parts):
    """The parts of saliency."""

    tables = TABLES
    panels = (SALIENCY,)
    claims = CLAIMS

    def plan(
        self,
        arguments: argparse.Namespace,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> Work | None:
        """Same as `Parts.plan`."""
        is_own = arguments.command == "saliency"
        maps = arguments.maps if is_own else getattr(arguments, "saliency", None)
        if maps is None:
            return None
        from pipeline.analyses.saliency.stage import (
            SaliencyPlan,
            SaliencyWork,
            check_variants,
            shown_images,
        )

        variant = arguments.variant if is_own else SaliencyPlan.variant
        plan = SaliencyPlan(evaluation, variant, maps)
        evaluation.check_stored("saliency is measured on stored pixels as they are")
        check_variants(config.compose.composed, plan.variant)
        if is_own:
            # Choosing the images also checks that the dataset has some.
            shown_images(Dataset.open(evaluation.store), plan)
        return SaliencyWork(plan, taxonomy)

    def find(self, dataset: Dataset) -> Found:
        """Same as `Parts.find`."""
        return Found(read_saliency(dataset))

    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        """Same as `Parts.write`."""
        write_saliency_table(dataset)

    def lines(self, dataset: Dataset, work: Work | None) -> Iterator[str]:
        """Same as `Parts.lines`."""
        if work:
            yield saliency_table(read_saliency(dataset))


PARTS = SaliencyParts()
