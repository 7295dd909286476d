"""The stage that runs models: evaluation, attack, saliency and accuracy on ImageNet are its users.

    dataset -> Blocks -> Look -> (what is left) -> RunModels -> SumUp, for each model -> Finish

A block is a model on a group of units (`pipeline.evaluate.work`): a runner can balance blocks, and
a lost worker loses one. What is there already is found without loading a model, wherever it is
known which model an entry means, and before the step that asks for machines with an accelerator.

Not Beam's RunInference: importing it imports torch (Beam 2.77), which a job with nothing to do
must not wait for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import apache_beam as beam

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import write_table
from pipeline.errors import JobError, ModelError
from pipeline.evaluate.failures import FailedModel, note_failures
from pipeline.evaluate.result_files import result_folder
from pipeline.evaluate.work import ModelWork, UnitOutput, Work
from pipeline.models.known import KnownModels
from pipeline.models.leakage import refuse_overlap
from pipeline.runtime.counters import UnitTally, count, count_bytes, count_written, timed
from pipeline.runtime.lock import held, model_lock
from pipeline.runtime.machine import keep_freed_memory
from pipeline.runtime.progress import Meter
from pipeline.storage.store import FileDigest, Store

if TYPE_CHECKING:
    from pipeline.models.loaded import LoadedModel
    from pipeline.models.predict import Predictor

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Block:
    """A model on a group of units.

    Attributes:
      order: the model's place among the models.
      group: number of the group.
    """

    order: int
    group: int


@dataclasses.dataclass(frozen=True)
class BlockDone:
    """A block whose units are all there.

    Attributes:
      order: as of the block.
      metadata: which model it is, JSON; None for one that the stage is not for.
      units: numbers of its units.
    """

    order: int
    metadata: str | None
    units: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ModelSummary:
    """A model of which all is said.

    Attributes:
      names: its entry of `--models`, and its own name where that is known.
    """

    names: tuple[str, ...]


_Result = BlockDone | FailedModel


class _Step(beam.DoFn):
    """A step of the stage, with the dataset as it is when its bundle begins."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self._dataset: Dataset | None = None

    def start_bundle(self) -> None:
        self._dataset = None

    def dataset(self) -> Dataset:
        """The finished dataset."""
        if self._dataset is None:
            self._dataset = Dataset.open(self.work.evaluation.store)
        return self._dataset

    def tally(self, block: Block, unit: int) -> UnitTally:
        """What is counted of a unit."""
        progress, stage = self.work.evaluation.progress, self.work.stage
        return UnitTally(progress, stage, f"{block.order}-{unit:05d}")

    def count_found(self, block: Block, of_model: ModelWork, units: Iterable[int]) -> None:
        """Counts units that are there, also where an earlier attempt of this job has made them."""
        progress, stage = self.work.evaluation.progress, self.work.stage
        noted = set(progress.store.walk(UnitTally.folder(progress, stage)))
        for unit in units:
            tally = self.tally(block, unit)
            if tally.path in noted and tally.recall():
                tally.end()
                path = of_model.path(unit)
                count_bytes(path, of_model.store.size(path) or 0)
            else:
                count(f"{self.work.unit_name}_kept")

    def units_of(self, group: int) -> tuple[int, ...]:
        """Rising numbers of a group's units."""
        groups = self.work.evaluation.groups
        return tuple(unit for unit in self.work.units(self.dataset()) if unit % groups == group)


class MakeBlocks(_Step):
    """Dataset fingerprint -> Blocks, model after model."""

    def process(self, _: str) -> Iterator[Block]:
        evaluation = self.work.evaluation
        for order in range(len(evaluation.models)):
            for group in range(evaluation.groups):
                yield Block(order, group)


class FindDone(_Step):
    """Block -> a BlockDone if all of it is there, or a FailedModel; what is left goes to an output
    of its own."""

    def process(self, block: Block) -> list[_Result | beam.pvalue.TaggedOutput]:
        work, progress = self.work, self.work.evaluation.progress
        with timed(work.stage):
            units = self.units_of(block.group)
            found = self._find(block, units)
            if found is not None:
                return [found]
            total = sum(work.size(self.dataset(), unit) for unit in units)
            progress.note_total(work.stage, f"{block.order}-{block.group}", total)
        return [beam.pvalue.TaggedOutput("left", block)]

    def _find(self, block: Block, units: tuple[int, ...]) -> _Result | None:
        """What needs no model in memory."""
        work, evaluation = self.work, self.work.evaluation
        entry = evaluation.models[block.order]
        if work.refuses_overlap:
            try:
                refuse_overlap(entry, evaluation.test_on(self.dataset()))
            except ModelError as error:
                return FailedModel(block.order, entry, entry, str(error))
        model = KnownModels(evaluation.store, evaluation.weights, work.taxonomy).recall(entry)
        if model is None:
            return None
        metadata = work.describe(self.dataset(), model)
        of_model = work.begin(self.dataset(), metadata)
        if of_model is None:
            return BlockDone(block.order, None, units)
        if not all(of_model.is_there(unit) for unit in units):
            return None
        self.count_found(block, of_model, units)
        return BlockDone(block.order, json.dumps(metadata, sort_keys=True), units)


class RunModels(_Step):
    """Block -> a BlockDone, or a FailedModel."""

    def setup(self) -> None:
        keep_freed_memory()

    def teardown(self) -> None:
        # Beam calls it where no block came, too, and torch was not waited for.
        if resident := sys.modules.get("pipeline.evaluate.resident"):
            resident.forget_pictures()

    def process(self, block: Block) -> list[_Result]:
        # Only machines that run models wait for torch.
        from pipeline.evaluate.resident import in_memory

        work, evaluation = self.work, self.work.evaluation
        name = entry = evaluation.models[block.order]
        units = self.units_of(block.group)
        with contextlib.ExitStack() as stack:
            try:
                with timed(work.stage):
                    model = stack.enter_context(
                        in_memory(entry, evaluation, work.taxonomy, block.group)
                    )
                name = model.name
                return [self._run(block, model, units)]
            except ModelError as error:
                _LOG.warning("%s failed", name, exc_info=True)
                self._note_done(block, units)
                return [FailedModel(block.order, entry, name, " ".join(str(error).split()))]

    def _run(self, block: Block, model: LoadedModel, units: tuple[int, ...]) -> BlockDone:
        from pipeline.evaluate.resident import on_device

        work, evaluation = self.work, self.work.evaluation
        metadata = work.describe(self.dataset(), model)
        of_model = work.begin(self.dataset(), metadata)
        if of_model is None:
            self._note_done(block, units)
            return BlockDone(block.order, None, units)
        folder = result_folder(model.name, evaluation.how)
        with held(evaluation.store, model_lock(folder, block.group)) as store:
            with timed(work.stage):
                missing = [unit for unit in units if not of_model.is_there(unit)]
            found = sorted(set(units).difference(missing))
            self.count_found(block, of_model, found)
            self._note_done(block, found)
            if missing:
                with on_device(model, evaluation, block.group) as predictor, timed(work.stage):
                    self._make(store, block, of_model, predictor, units, missing)
        return BlockDone(block.order, json.dumps(metadata, sort_keys=True), units)

    def _make(
        self,
        store: Store,
        block: Block,
        of_model: ModelWork,
        predictor: Predictor,
        units: tuple[int, ...],
        missing: list[int],
    ) -> None:
        """Makes what is missing, and writes each file while the next is made."""
        work = self.work
        meters = {unit: self._meter(block, unit) for unit in missing}
        tallies = {unit: self._tally_of_missing(block, unit) for unit in missing}

        def note(unit: int, new: int, done: int) -> None:
            tallies[unit].add(work.pictures_name, new)
            meters[unit].add(done)

        making = of_model.make(predictor, units, missing, note)
        try:
            with contextlib.closing(making), _Writer() as writer:
                for made in making:
                    if made.is_whole:
                        tallies[made.unit].add(f"{work.unit_name}_made")
                    tallies[made.unit].note()
                    writer.write(store, of_model, made)
                    if made.is_whole:
                        meters[made.unit].end()
        finally:
            for tally in tallies.values():
                tally.end()

    def _tally_of_missing(self, block: Block, unit: int) -> UnitTally:
        """What is counted of a unit of which an earlier attempt may have made a part."""
        tally = self.tally(block, unit)
        tally.recall()
        # Of one that ended between the note and the file, nothing is there.
        return self.tally(block, unit) if tally[f"{self.work.unit_name}_made"] else tally

    def _meter(self, block: Block, unit: int) -> Meter:
        return Meter(self.work.evaluation.progress, self.work.stage, f"{block.order}-{unit:05d}")

    def _note_done(self, block: Block, units: Iterable[int]) -> None:
        for unit in units:
            meter = self._meter(block, unit)
            meter.add(self.work.size(self.dataset(), unit))
            meter.end()


class _Writer:
    """Writes files in the background, one after another; at the end of the block all are there."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._last: tuple[Future[FileDigest], bool] | None = None

    def __enter__(self) -> _Writer:
        return self

    def write(self, store: Store, of_model: ModelWork, made: UnitOutput) -> None:
        """Writes the file of a unit; errors come with the next call, or the end of the block."""
        self._finish()
        path, fingerprint = of_model.path(made.unit), of_model.fingerprint(made)
        writing = self._pool.submit(write_table, store, path, made.table, fingerprint)
        self._last = writing, made.is_whole

    def _finish(self) -> None:
        if self._last is not None:
            writing, is_whole = self._last
            self._last = None
            digest = writing.result()
            # Counters belong to the thread that Beam has called; what is not whole is replaced.
            count_written([digest] if is_whole else [])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._pool.shutdown()


class SummarizeModel(_Step):
    """(a model's place, what its blocks have given) -> SummedUp, or a FailedModel."""

    def process(self, element: tuple[int, Iterable[_Result]]) -> list[ModelSummary | FailedModel]:
        work, results = self.work, list(element[1])
        entry = work.evaluation.models[element[0]]
        failed = [result for result in results if isinstance(result, FailedModel)]
        if failed:
            return [min(failed, key=lambda one: (one.error, one.model))]
        done = [result for result in results if isinstance(result, BlockDone)]
        units = sorted(unit for one in done for unit in one.units)
        if units != list(work.units(self.dataset())):
            raise JobError(
                f"{entry}: {work.stage} of {len(units)} of {len(work.units(self.dataset()))} parts "
                "arrived. Run the same command again to go on"
            )
        abouts = {one.metadata for one in done}
        if len(abouts) > 1:
            raise JobError(
                f"{entry} has changed while it was run. Run the same command again to go on"
            )
        said = abouts.pop()
        if said is None:
            return [ModelSummary((entry,))]
        with timed(work.stage):
            metadata = json.loads(said)
            work.sum_up(self.dataset(), metadata, entry)
        return [ModelSummary((entry, metadata["model"]))]


class FinishModels(_Step):
    """(dataset fingerprint, all of SumUp's results as a side input) -> the fingerprint, once.

    Notes which models failed."""

    def process(self, dataset: str, results: Iterable[ModelSummary | FailedModel]) -> list[str]:
        work, evaluation = self.work, self.work.evaluation
        results = list(results)
        failed = [result for result in results if isinstance(result, FailedModel)]
        succeeded = [name for one in results if isinstance(one, ModelSummary) for name in one.names]
        count(f"{work.stage}_failed", len(failed))
        failed.sort(key=lambda one: one.order)
        note_failures(evaluation.store, dataset, work.stage, evaluation.how, failed, succeeded)
        evaluation.store.remove_temporary()
        return [dataset]


class ModelStage(beam.PTransform):
    """Runs models on a finished dataset: its fingerprint -> the same, one element, when all that
    is said of them is written.

    Args:
      work: of the stage.
    """

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def expand(self, dataset: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        work = self._work
        look = beam.ParDo(FindDone(work)).with_output_types(_Result, left=Block)
        run = beam.ParDo(RunModels(work)).with_output_types(_Result)
        hints = dict(work.evaluation.hints)
        there, left = (
            dataset
            | "Blocks" >> beam.ParDo(MakeBlocks(work)).with_output_types(Block)
            | "Spread" >> beam.Reshuffle()
            | "Look" >> look.with_outputs("left", main="there")
        )
        made = (
            left
            | "SpreadLeft" >> beam.Reshuffle()
            | "RunModels" >> (run.with_resource_hints(**hints) if hints else run)
        )
        summed_up = (
            (there, made)
            | "Together" >> beam.Flatten()
            | "ByModel" >> beam.WithKeys(_order_of).with_output_types(tuple[int, _Result])
            | "GatherModel" >> beam.GroupByKey()
            | "SumUp"
            >> beam.ParDo(SummarizeModel(work)).with_output_types(ModelSummary | FailedModel)
        )
        finish = beam.ParDo(FinishModels(work), results=beam.pvalue.AsList(summed_up))
        return dataset | "Finish" >> finish.with_output_types(str)


def _order_of(result: _Result) -> int:
    return result.order
