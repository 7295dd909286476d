"""`Spread`: a step of the graph that works on pixels, on Beam's workers or on an engine's.

On Dataflow and job servers it is Beam's `Reshuffle` and `ParDo`. Else there is an engine: the graph
keeps its shape, and Beam's local runner runs it in the process that started the job, but the calls
of these steps go to the engine's workers (`pipeline.runtime.workers`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import pickle
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam

from pipeline.runtime.custom_functions import imported_digests
from pipeline.runtime.progress import count
from pipeline.runtime.workers import CODE, Call, Engine, Step

_engine: Engine | None = None


@contextlib.contextmanager
def spread_over(engine: Engine | None) -> Iterator[None]:
    """Spreads the steps of graphs that the block runs over an engine, None for Beam's workers."""
    global _engine
    with engine or contextlib.nullcontext():
        _engine = engine
        try:
            yield
        finally:
            _engine = None


@dataclasses.dataclass(eq=False, repr=False)
class Spread(beam.PTransform):
    """Elements -> the step's outputs, of the type `output`.

    `card` returns the number of an element's block, for workers with a card each.
    """

    step: Step
    output: object
    hints: Mapping[str, str] | None = None
    card: Callable[[Any], int] | None = None

    def expand(self, elements: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        if _engine is None or (_engine.has_cards and self.card is None):
            run = beam.ParDo(_Run(self.step)).with_output_types(self.output)
            hinted = run.with_resource_hints(**self.hints) if self.hints else run
            return elements | beam.Reshuffle() | hinted
        deal = beam.ParDo(_Deal(self.step, self.card)).with_output_types(self.output)
        return elements | beam.WithKeys(None) | beam.GroupByKey() | deal


@dataclasses.dataclass(eq=False)
class _Run(beam.DoFn):
    """Element -> the outputs of a step, which a worker of Beam runs."""

    step: Step

    def setup(self) -> None:
        self.step.setup()

    def process(self, element: Any) -> Iterable[object]:
        return self.step.process(element)

    def teardown(self) -> None:
        self.step.teardown()


@dataclasses.dataclass(eq=False)
class _Deal(beam.DoFn):
    """(None, all elements) -> the outputs of a step that the workers of the engine run."""

    step: Step
    card: Callable[[Any], int] | None

    def process(self, group: tuple[None, Iterable[object]]) -> Iterator[object]:
        assert _engine is not None
        token, step, code = uuid.uuid4().hex, pickle.dumps(self.step), CODE | imported_digests
        path = [*map(os.path.abspath, filter(None, os.getenv("PYTHONPATH", "").split(os.pathsep)))]
        calls = [
            Call(token, step, pickle.dumps(one), path, code, self.card(one) if self.card else None)
            for one in group[1]
        ]
        said = dict[str, logging.LogRecord]()
        # The largest come first, because the elements with the longest records take the most work.
        for answer in _engine.answers(sorted(calls, key=lambda call: -len(call.element))):
            for record in answer.records:
                # Each worker may say the same.
                if said.setdefault(record.getMessage(), record) is record:
                    logging.getLogger(record.name).handle(record)
            for name, by in answer.counters.items():
                count(name, by)
            if answer.error:
                raise answer.error
            yield from answer.outputs
