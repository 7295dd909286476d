"""The parts of the evaluation."""

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
from typing_extensions import override

from pipeline.analyses.evaluation.baseline import BASELINE, describe_baseline
from pipeline.analyses.evaluation.comparisons import BG_GAP, COMPARISONS, gap_draws
from pipeline.analyses.evaluation.results import TABLES, Summary
from pipeline.analyses.evaluation.stage import PlannedEvaluation
from pipeline.analyses.evaluation.summaries import read_summaries
from pipeline.analyses.evaluation.tables import (
    HEADLINE,
    accuracy_table,
    describe_power,
    describe_stale,
    write_evaluation_tables,
)
from pipeline.analyses.parts import Changed, Found, Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import read_manifest
from pipeline.display.panel import Claim, Panel
from pipeline.evaluate.evaluation import Evaluation, PlannedAnalysis
from pipeline.evaluate.results import errors_by_model, read_failures
from transforms.taxonomy import Taxonomy
from transforms.two_way import smallest_difference
from transforms.variants import base_of, is_picture

_DIFFERING = 0.2
"""Share of images for which `--dry_run` takes a model to be right on one of two mixed variants
alone, if nothing is known of it."""


class EvaluationParts(Parts):
    """The parts of the evaluation."""

    tables = (*TABLES, COMPARISONS, BASELINE)
    figures = ("gaps", "classes", "decomposition", "sizes-", "confusion-", "groups-")

    @property
    @override
    def panels(self) -> tuple[Panel, ...]:
        from pipeline.analyses.evaluation.images import IMAGES
        from pipeline.analyses.evaluation.panel import ACCURACY, MISTAKES, SENSITIVITY

        return (IMAGES, ACCURACY, SENSITIVITY, MISTAKES)

    @property
    @override
    def claims(self) -> tuple[Claim, ...]:
        from pipeline.analyses.evaluation.panel import CLAIMS

        return CLAIMS

    @override
    def plan(
        self,
        arguments: argparse.Namespace,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> PlannedAnalysis | None:
        if arguments.command not in ("run", "evaluate"):
            return None
        return PlannedEvaluation(evaluation, taxonomy)

    @override
    def forecast(self, work: PlannedAnalysis, images: float, variants: Sequence[str]) -> int | None:
        return round(images * sum(map(is_picture, variants)))

    @override
    def outlook(
        self, work: PlannedAnalysis, images: float, variants: Sequence[str]
    ) -> Iterator[str]:
        """Yields the smallest BG-Gap that the dataset would show, if it has one."""
        if images < 2 or not all(gap_draws(variants)):
            return
        evaluation, manifest = work.evaluation, read_manifest(work.evaluation.store)
        stored = read_summaries(Dataset(evaluation.store, manifest))[0] if manifest else []
        figures = [
            f"{100 * gap.smallest_gap * (gap.n / images) ** 0.5:.1f} for {summary.name}, by its "
            f"results on {gap.n:,} images"
            for summary in stored
            if summary.is_of(evaluation.entries, evaluation.settings) and (gap := summary.gap())
        ]
        if len(figures) < len(evaluation.entries):
            smallest = smallest_difference(np.asarray(_DIFFERING / images), int(images))
            figures.append(
                f"{100 * smallest:.1f} for a model that is right on one of mixed_same and "
                f"mixed_rand alone for {100 * _DIFFERING:.0f} % of the images"
            )
        yield (
            f"smallest BG-Gap that {images:,.0f} images would show in 8 of 10 draws, in points: "
            + "; ".join(figures)
        )

    @override
    def find(self, dataset: Dataset) -> Found:
        summaries, stale = read_summaries(dataset)
        return Found(summaries, stale=stale)

    @override
    def columns(self, dataset: Dataset) -> tuple[str, ...]:
        return (*(n for n in dataset.picture_variants if base_of(n) == n), BG_GAP)

    @override
    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        write_evaluation_tables(dataset, columns or HEADLINE)

    @override
    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
        summaries, stale = read_summaries(dataset)
        if work:
            yield accuracy_table(summaries)
            yield from describe_power(summaries)
            yield from describe_baseline(dataset, summaries)
        for summary in summaries:
            if summary.missing:
                yield (
                    f"missing: {summary.name} on {', '.join(summary.missing)}; evaluate it again: "
                    f"--models {summary.entry}"
                )
        yield from describe_stale(dataset, stale)

    @override
    def report(self, dataset: Dataset) -> Iterator[str]:
        summaries, stale = read_summaries(dataset)
        if summaries:
            yield accuracy_table(summaries)
            yield from describe_power(summaries)
            yield from describe_baseline(dataset, summaries)
        yield from describe_stale(dataset, stale)

    @override
    def monitored(self, dataset: Dataset, work: PlannedAnalysis) -> dict[str, object]:
        """Returns figures of the job's models, and errors of failed ones."""
        entries, settings = work.evaluation.entries, work.evaluation.settings
        failed, _ = read_failures(dataset.store, dataset.manifest.fingerprint, work.stage)
        return {
            "models": {
                summary.name: _figures(summary)
                for summary in read_summaries(dataset)[0]
                if summary.is_of(entries, settings)
            },
            "failed": errors_by_model(failed, entries),
        }

    @override
    def changes(self, before: Dataset, after: Dataset, causes: Sequence[str]) -> Changed | None:
        from pipeline.analyses.evaluation.changes import compare_accuracies, describe_models

        return describe_models(*compare_accuracies(before, after, causes))


def _figures(summary: Summary) -> dict[str, float]:
    """Returns BG-Gap and accuracy on `original` by the headline's label rule, where measured."""
    figures = {}
    if original := summary.estimate("original"):
        figures["original"] = round(original[0], 6)
    if gap := summary.gap():
        figures[BG_GAP] = round(gap.gap, 6)
    return figures


PARTS = EvaluationParts()
