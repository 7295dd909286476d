"""The parts of the method."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from typing_extensions import override

from pipeline.analyses.method.results import (
    METHOD,
    PAIRS,
    MethodResult,
    method_table,
    read_method,
    write_method_tables,
)
from pipeline.analyses.parts import Found, Parts
from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.folder import Dataset
from pipeline.display.panel import Evidence, Panel
from pipeline.errors import UsageError
from pipeline.evaluate.evaluation import Evaluation, PlannedAnalysis
from transforms.taxonomy import Taxonomy
from transforms.variants import base_of


def _make(evidence: Evidence, with_pictures: bool) -> list[tuple[str, MethodResult]]:
    return [(model.name, one) for model, one in evidence.models_with(MethodResult) if one.rows]


class MethodParts(Parts):
    """The parts of the method."""

    tables = (METHOD,)
    figures = ("method",)

    @property
    @override
    def panels(self) -> tuple[Panel, ...]:
        return (
            Panel(
                id="method",
                place=4,
                template="method/panel.html",
                title="Method",
                make=_make,
                answers="How much of BG-Gap comes from how pictures are made",
                command="in9 method --dataset . --models MODELS",
            ),
        )

    @override
    def plan(
        self,
        arguments: argparse.Namespace,
        evaluation: Evaluation,
        config: DatasetConfig,
        taxonomy: Taxonomy,
    ) -> PlannedAnalysis | None:
        if arguments.command != "method":
            return None
        from pipeline.analyses.method.stage import PlannedMethod, method_config

        if config.is_imported:
            raise UsageError("the method needs boxes and layers: imports have none")
        try:
            wanted = method_config(config.compose, arguments.replicates)
        except ValueError as error:
            raise UsageError(str(error)) from error
        if missing := set(PAIRS) - set(map(base_of, config.compose.variants)):
            raise UsageError(f"the method compares {' and '.join(PAIRS)}: no {min(missing)} here")
        unstored = [name for name in wanted.composed if name not in config.compose.composed]
        if unstored and config.layers == "drop":
            raise UsageError(
                f"{unstored[0]} is not stored, and cannot be composed without layers: make it with "
                "--layers keep"
            )
        return PlannedMethod(evaluation, taxonomy, wanted)

    @override
    def find(self, dataset: Dataset) -> Found:
        results, stale = read_method(dataset)
        return Found(results, stale=stale)

    @override
    def write(self, dataset: Dataset, columns: Sequence[str]) -> None:
        write_method_tables(dataset)

    @override
    def lines(self, dataset: Dataset, work: PlannedAnalysis | None) -> Iterator[str]:
        if work:
            yield method_table(read_method(dataset)[0])


PARTS = MethodParts()
