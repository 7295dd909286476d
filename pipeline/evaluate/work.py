"""Work: what a stage does with models, and the steps that all such stages are made of.

    dataset -> Units -> GatherGroup (-> Look -> GatherLeft) -> step -> results

Machines that run models may be dearer than all others. Models are then looked at before, each
loaded without its device, and only what has to be made reaches the step that asks for those
machines. Elsewhere that step looks by itself, so that no model is loaded twice.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, NamedTuple

import apache_beam as beam

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.failures import FailedModel
from pipeline.evaluate.gather import ModelShard
from pipeline.evaluate.plan import Evaluation
from pipeline.evaluate.resident import each_model
from pipeline.models import LoadedModel
from pipeline.models.predict import Predictor
from pipeline.runtime.memory import keep_freed_memory
from transforms.taxonomy import Taxonomy


class Left(NamedTuple):
    """What is to be made: the model's place among the models, and the unit's number."""

    order: int
    unit: int


Answer = Callable[[int, LoadedModel, Predictor | None, Sequence[int]], Iterator[ModelShard | Left]]
"""(a model's place, the model, the same on its device, rising units) -> what it gives on each, or
nothing for a model that the stage is not for. Without a device it only looks: what is not there
is left."""


class Begun(NamedTuple):
    """Work on some units, begun with what all models need of them.

    Attributes:
      sizes: pictures of each unit, as progress counts them.
      answer: works with a model.
    """

    sizes: Mapping[int, int]
    answer: Answer


class Work(abc.ABC):
    """What a stage does with models, unit after unit: output shards, or chunks of images.

    Args:
      evaluation: models, and how they are run.
      taxonomy: their heads must fit.

    Attributes:
      stage: whose time and progress it is.
      refuses_overlap: whether models are refused that were trained on what they are tested on.
    """

    stage: ClassVar[str]
    refuses_overlap: ClassVar[bool]

    def __init__(self, evaluation: Evaluation, taxonomy: Taxonomy) -> None:
        self.evaluation = evaluation
        self.taxonomy = taxonomy

    @abc.abstractmethod
    def units(self, dataset: Dataset) -> Iterable[int]:
        """Numbers of all units."""

    @abc.abstractmethod
    def begin(self, dataset: Dataset, group: int, units: Sequence[int]) -> Begun:
        """Begins with some of them, which rise and are of one group."""


class _Units(beam.DoFn):
    """Dataset fingerprint -> (group, (model's place, unit))."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def process(self, _: str) -> Iterator[tuple[int, tuple[int, int]]]:
        evaluation = self._work.evaluation
        for unit in self._work.units(Dataset.open(evaluation.store)):
            for order in range(len(evaluation.models)):
                yield unit % evaluation.groups, (order, unit)


class RunModels(beam.DoFn):
    """(group, its (model's place, unit)s) -> ModelShards, or a FailedModel, model after model.

    Args:
      work: of the stage.
      looks: whether it only looks what is there; what is left goes to an output of its own, as
        it came.
    """

    def __init__(self, work: Work, *, looks: bool = False) -> None:
        self._work = work
        self._looks = looks

    def setup(self) -> None:
        keep_freed_memory()

    def process(
        self, element: tuple[int, Iterable[tuple[int, int]]]
    ) -> Iterator[ModelShard | FailedModel | beam.pvalue.TaggedOutput]:
        group, work, looks = element[0], self._work, self._looks
        units: dict[int, list[int]] = {}
        for order, unit in sorted(element[1]):
            units.setdefault(order, []).append(unit)
        dataset = Dataset.open(work.evaluation.store)
        begun = work.begin(dataset, group, sorted(set().union(*units.values())))
        progress = work.evaluation.progress

        def note_done(order: int, done: Iterable[int]) -> None:
            if not looks:
                for unit in done:
                    progress.note_done(work.stage, f"{order}-{unit:05d}", begun.sizes[unit])

        def answer(
            order: int, model: LoadedModel, predictor: Predictor | None
        ) -> Iterator[ModelShard | Left]:
            passed_over = set(units[order])
            for result in begun.answer(order, model, predictor, units[order]):
                if isinstance(result, ModelShard):
                    note_done(order, [result.shard])
                    passed_over.remove(result.shard)
                yield result
            note_done(order, passed_over)

        if not looks:
            for order, numbers in units.items():
                total = sum(begun.sizes[unit] for unit in numbers)
                progress.note_total(work.stage, f"{order}-{group}", total)
        test = work.evaluation.test_on(dataset) if work.refuses_overlap else None
        for result in each_model(
            work.evaluation,
            work.taxonomy,
            units,
            answer,
            stage=work.stage,
            on_device=not looks,
            test=test,
        ):
            if isinstance(result, Left):
                yield beam.pvalue.TaggedOutput("left", (group, tuple(result)))
                continue
            if isinstance(result, FailedModel):
                note_done(result.order, units[result.order])
            yield result


def run_models(dataset: beam.pvalue.PCollection, work: Work, name: str) -> beam.pvalue.PCollection:
    """Adds the steps of a stage.

    Args:
      dataset: fingerprint of the finished dataset.
      work: of the stage.
      name: of the step that runs models.

    Returns:
      ModelShards, one for each model and unit, and a FailedModel for each model that failed in a
      group.
    """
    pair, result = tuple[int, tuple[int, int]], ModelShard | FailedModel
    pairs = dataset | "Units" >> beam.ParDo(_Units(work)).with_output_types(pair)
    groups = pairs | "GatherGroup" >> beam.GroupByKey()
    run = beam.ParDo(RunModels(work)).with_output_types(result)
    hints = dict(work.evaluation.hints)
    if not hints:
        return groups | name >> run
    look = beam.ParDo(RunModels(work, looks=True)).with_output_types(result, left=pair)
    there, left = groups | "Look" >> look.with_outputs("left", main="there")
    made = left | "GatherLeft" >> beam.GroupByKey() | name >> run.with_resource_hints(**hints)
    return (there, made) | "Together" >> beam.Flatten()
