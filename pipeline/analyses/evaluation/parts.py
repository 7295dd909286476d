"""The parts of the evaluation."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from typing_extensions import override

from pipeline.analyses.evaluation.comparisons import BG_GAP, COMPARISONS
from pipeline.analyses.evaluation.conditions import is_of_evaluation, judge, parse_conditions
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
from pipeline.analyses.parts import Changed, ConditionResult, Found, Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.display.panel import Claim, Panel
from pipeline.evaluate.evaluation import Evaluation, PlannedAnalysis
from pipeline.evaluate.results import Failure, errors_by_model, read_failures
from pipeline.generate.custom_variants import custom_names
from transforms.taxonomy import Taxonomy
from transforms.variants import is_picture


class EvaluationParts(Parts):
    """The parts of the evaluation."""

    tables = (*TABLES, COMPARISONS)
    figures = ("decomposition", "per_class-", "sizes-", "confusion-", "groups-")

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
    def check(self, arguments: argparse.Namespace) -> None:
        custom = custom_names(arguments.variants)
        parse_conditions(getattr(arguments, "fail_if", None), custom=custom)

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
        conditions = parse_conditions(arguments.fail_if, config.compose.composed)
        return PlannedEvaluation(evaluation, taxonomy, conditions)

    @override
    def forecast(self, work: PlannedAnalysis, images: float, variants: Sequence[str]) -> int | None:
        return round(images * sum(map(is_picture, variants)))

    @override
    def find(self, dataset: Dataset) -> Found:
        summaries, stale = read_summaries(dataset)
        return Found(summaries, stale=stale)

    @override
    def columns(self, dataset: Dataset) -> tuple[str, ...]:
        return (*dataset.picture_variants, BG_GAP)

    @override
    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        write_evaluation_tables(dataset, columns or HEADLINE)

    @override
    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
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

    @override
    def report(self, dataset: Dataset) -> Iterator[str]:
        summaries, stale = read_summaries(dataset)
        if summaries:
            yield accuracy_table(summaries)
            yield from describe_power(summaries)
        yield from describe_stale(dataset, stale)

    @override
    def monitored(self, dataset: Dataset, work: PlannedAnalysis) -> dict[str, object]:
        """Returns figures of the job's models, errors of failed ones, and conditions that hold."""
        entries, settings = work.evaluation.entries, work.evaluation.settings
        held = (result.line for result in self.test(dataset, work) if result.holds)
        return {
            "models": {
                summary.name: _figures(summary)
                for summary in read_summaries(dataset)[0]
                if is_of_evaluation(summary, entries, settings)
            },
            "failed": errors_by_model(_failed(dataset, work), entries),
            "fail_if": [line.removeprefix("--fail_if ") for line in held],
        }

    @override
    def test(self, dataset: Dataset, work: PlannedAnalysis) -> Iterator[ConditionResult]:
        assert isinstance(work, PlannedEvaluation)
        summaries, failed = read_summaries(dataset)[0], _failed(dataset, work)
        evaluation = work.evaluation
        return judge(work.conditions, summaries, failed, evaluation.entries, evaluation.settings)

    @override
    def changes(self, before: Dataset, after: Dataset, causes: Sequence[str]) -> Changed | None:
        from pipeline.analyses.evaluation.changes import compare_accuracies, describe_models

        return describe_models(*compare_accuracies(before, after, causes))


def _failed(dataset: Dataset, work: PlannedAnalysis) -> list[Failure]:
    return read_failures(dataset.store, dataset.manifest.fingerprint, work.stage)[0]


def _figures(summary: Summary) -> dict[str, float]:
    """Returns BG-Gap and accuracy on `original` by the headline's label rule, where measured."""
    figures = {}
    if original := summary.estimate("original"):
        figures["original"] = round(original[0], 6)
    if gap := summary.gap():
        figures[BG_GAP] = round(gap.gap, 6)
    return figures


PARTS = EvaluationParts()
