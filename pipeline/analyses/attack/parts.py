"""The parts of the attack."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pipeline.analyses.attack.panel import BACKGROUNDS, CLAIMS
from pipeline.analyses.attack.results import (
    TABLES,
    AttackPlan,
    attack_table,
    check_variants,
    open_grid,
    read_attacks,
    write_attack_tables,
)
from pipeline.analyses.parts import Found, Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.display.evidence import Evidence
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.failures import read_failures
from pipeline.evaluate.work import Work
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipeline.display.plot import Plot


class AttackParts(Parts):
    """The parts of the attack."""

    tables = TABLES
    figures = ("fooled_by_class", "accuracy_by_backgrounds")
    panels = (BACKGROUNDS,)
    claims = CLAIMS

    def plan(
        self,
        arguments: argparse.Namespace,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> Work | None:
        """Same as `Parts.plan`."""
        is_own = arguments.command == "attack"
        size = arguments.grid if is_own else getattr(arguments, "attack", None)
        if size is None:
            return None
        from pipeline.analyses.attack.stage import AttackWork

        evaluation.check_stored("an attack composes stored pixels and feeds them as they are")
        check_variants(config.compose.variants)
        foregrounds, backgrounds = size
        early_stop = is_own and arguments.early_stop
        plan = AttackPlan(evaluation, foregrounds, backgrounds, early_stop)
        if is_own:
            # Opening the grid also checks that the dataset has images for it.
            open_grid(Dataset.open(evaluation.store), plan)
        return AttackWork(plan, taxonomy)

    def forecast(self, work: Work, images: float, variants: Sequence[str]) -> int | None:
        """Same as `Parts.forecast`."""
        from pipeline.analyses.attack.stage import AttackWork

        assert isinstance(work, AttackWork)
        most, sides = round(images), (work.plan.foregrounds, work.plan.backgrounds)
        return math.prod(most if count is None else min(count, most) for count in sides)

    def find(self, dataset: Dataset) -> Found:
        """Same as `Parts.find`."""
        return Found(read_attacks(dataset)[0])

    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        """Same as `Parts.write`."""
        write_attack_tables(dataset)

    def lines(self, dataset: Dataset, work: Work | None) -> Iterator[str]:
        """Same as `Parts.lines`."""
        if work is None:
            return
        attacks, stale = read_attacks(dataset)
        stale += read_failures(dataset.store, dataset.manifest.fingerprint, "attack")[1]
        yield attack_table(attacks)
        if stale:
            yield f"not in the tables, because attacked on an earlier dataset: {', '.join(stale)}"

    def plots(self, evidence: Evidence) -> Iterator[Plot]:
        """Same as `Parts.plots`."""
        # Imported here, because Matplotlib is slow to import.
        from pipeline.analyses.attack.figures import make_plots

        return make_plots(evidence)


PARTS = AttackParts()
