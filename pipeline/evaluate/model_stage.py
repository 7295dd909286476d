"""The Beam stage that runs models, for all analyses.

    dataset -> Blocks -> FindDone -> (blocks left to run) -> RunModels -> SummarizeModel -> Finish

A block is one model on some of the chunks (`pipeline.evaluate.planned`). A runner can balance
blocks, and a lost worker loses only one block. If an earlier run recorded which weights an entry of
`--models` stands for, FindDone finds the finished chunks without loading the model, before
RunModels asks for machines with an accelerator.

Beam's RunInference is not used, because importing it also imports torch (as of Beam 2.77), and a
job with nothing to do must not wait for that.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import operator
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import apache_beam as beam

from pipeline.dataset.folder import Dataset, refuse_empty_test
from pipeline.errors import JobError, ModelError, UsageError, escaped_line
from pipeline.evaluate.planned import ENCODING, AnalysisOfModel, PlannedAnalysis
from pipeline.evaluate.results import (
    FailedModel,
    ModelRun,
    errors_by_model,
    note_failures,
    read_failures,
    result_folder,
)
from pipeline.models.checkpoint import KnownModels, encoder_of
from pipeline.runtime.lock import locked, model_lock
from pipeline.runtime.machine import give_back_freed_memory, keep_freed_memory
from pipeline.runtime.progress import Tally, count, count_bytes, count_written, timed
from pipeline.runtime.spread import Spread
from pipeline.storage.interface import REQUESTS_IN_FLIGHT, read_ahead
from pipeline.storage.store import FileDigest, Store

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor
    from pipeline.models.source import LoadedModel

_LOG = logging.getLogger(__name__)
_MAX_PENDING_FILES = 2
"""The most files that wait to be written while the model goes on."""


@dataclasses.dataclass(frozen=True)
class Block:
    """One model on some of the chunks.

    Attributes:
      order: position of the model in `Evaluation.models`.
      number: number of the block among those of the model, from 0.
    """

    order: int
    number: int
    count: int = 1


@dataclasses.dataclass(frozen=True)
class BlockDone:
    """A block whose chunks are all done; `run` is None if the stage does not apply to the model."""

    order: int
    run: ModelRun | None
    chunks: tuple[int, ...]


_Result = BlockDone | FailedModel


@dataclasses.dataclass(eq=False)
class _Step(beam.DoFn):
    """A step of an analysis."""

    work: PlannedAnalysis
    _dataset: Dataset | None = None

    def dataset(self) -> Dataset:
        """Returns the dataset, which is opened at its first use, because the job may make it."""
        if self._dataset is None:
            self._dataset = Dataset.open(self.work.evaluation.store)
        return self._dataset

    def tally(self, block: Block, chunk: int, pool: Executor | None = None) -> Tally:
        """Returns the counters of a chunk, whose notes a thread of the pool writes if given."""
        name = f"{block.order}-{chunk:05d}"
        submit = [pool.submit] if pool else []
        return Tally(self.work.evaluation.progress, self.work.stage, name, *submit)

    def noted(self) -> set[str]:
        """Returns the paths of all notes of counters that attempts of this job have left."""
        progress = self.work.evaluation.progress
        return set(progress.store.walk(Tally.folder(progress, self.work.stage)))

    def count_existing(
        self, block: Block, model_work: AnalysisOfModel, chunks: Iterable[int], noted: set[str]
    ) -> None:
        """Counts finished chunks: as made by an earlier attempt of this job, or as kept."""
        for chunk in chunks:
            tally = self.tally(block, chunk)
            if tally.path in noted and tally.load():
                tally.end()
                path = model_work.path(chunk)
                count_bytes(path, model_work.store.size(path) or 0)
            else:
                count(f"{self.work.stage}_chunks_kept")

    def chunks_of(self, block: Block) -> tuple[int, ...]:
        """Returns the numbers of a block's chunks, in rising order."""
        return tuple(
            chunk
            for chunk in self.work.chunks(self.dataset())
            if chunk % block.count == block.number
        )


class MakeBlocks(_Step):
    """Dataset fingerprint -> Blocks, model by model."""

    def process(self, _: str) -> list[Block]:
        evaluation, count = self.work.evaluation, self.work.blocks(self.dataset())
        # `run` knows no sooner which images the dataset has.
        refuse_empty_test(self.dataset(), evaluation.split, evaluation.holdout)
        return [
            Block(order, number, count)
            for order in range(len(evaluation.models))
            for number in range(count)
        ]


class FindDone(_Step):
    """Block -> a BlockDone, a FailedModel, or the Block itself in the output `remaining`.

    It is done if all its chunks are, or if the stage does not apply to the model; it has failed if
    the model must not be run.
    """

    def process(self, block: Block) -> list[_Result | beam.pvalue.TaggedOutput]:
        work, progress = self.work, self.work.evaluation.progress
        with timed(work.stage):
            chunks = self.chunks_of(block)
            result = self._find(block, chunks)
            if result is not None:
                return [result]
            total = sum(work.size(self.dataset(), chunk) for chunk in chunks)
            progress.note_total(work.stage, f"{block.order}-{block.number}", total)
        return [beam.pvalue.TaggedOutput("remaining", block)]

    def _find(self, block: Block, chunks: tuple[int, ...]) -> _Result | None:
        """Returns the result of a block if it is known without loading the model, else None."""
        work, evaluation = self.work, self.work.evaluation
        entry = evaluation.models[block.order]
        if work.refuses_overlap:
            try:
                evaluation.refuse_unfit(self.dataset(), entry)
            except UsageError as error:
                return FailedModel(block.order, entry, entry, str(error))
        if encoder_of(entry) and not work.encodes:
            dataset = self.dataset().manifest.fingerprint
            failed, _ = read_failures(evaluation.store, dataset, ENCODING)
            for name, why in errors_by_model(failed, [escaped_line(entry)]).items():
                return FailedModel(block.order, entry, name, why)
        model = KnownModels(evaluation.store, evaluation.weights, work.taxonomy).load(entry)
        if model is None:
            return None
        run = evaluation.describe(self.dataset(), model)
        model_work = work.for_model(self.dataset(), run)
        if model_work is None:
            return BlockDone(block.order, None, chunks)
        if not all(done for _, done in read_ahead(model_work.is_done, chunks)):
            return None
        self.count_existing(block, model_work, chunks, self.noted())
        return BlockDone(block.order, run, chunks)


class RunModels(_Step):
    """Block -> a BlockDone, or a FailedModel."""

    def setup(self) -> None:
        keep_freed_memory()

    def teardown(self) -> None:
        # Beam also calls this in processes that got no block, and so have not imported torch.
        if resident := sys.modules.get("pipeline.evaluate.resident"):
            resident.forget_pictures()

    def process(self, block: Block) -> list[_Result]:
        # Imported here, so that only machines that run models wait for torch.
        from pipeline.evaluate.resident import in_memory

        work = self.work
        evaluation = dataclasses.replace(work.evaluation, blocks=block.count)
        name = entry = evaluation.models[block.order]
        chunks = self.chunks_of(block)
        with contextlib.ExitStack() as stack:
            try:
                with timed(work.stage):
                    model = stack.enter_context(
                        in_memory(
                            entry, evaluation, work.taxonomy, block.number, encodes=work.encodes
                        )
                    )
                name = model.name
                return [self._run(block, model, chunks)]
            except ModelError as error:
                _LOG.warning("%s failed", name, exc_info=True)
                self._note_done(block, chunks)
                return [FailedModel(block.order, entry, name, " ".join(str(error).split()))]

    def _run(self, block: Block, model: LoadedModel, chunks: tuple[int, ...]) -> BlockDone:
        from pipeline.evaluate.resident import on_device

        work, evaluation = self.work, self.work.evaluation
        run = evaluation.describe(self.dataset(), model)
        model_work = work.for_model(self.dataset(), run)
        if model_work is None:
            self._note_done(block, chunks)
            return BlockDone(block.order, None, chunks)
        lock = model_lock(result_folder(model.name, evaluation.settings), block.number)
        with locked(evaluation.store, lock) as store:
            with timed(work.stage):
                found = list(read_ahead(model_work.is_done, chunks))
                missing = [chunk for chunk, is_done in found if not is_done]
                existing = [chunk for chunk, is_done in found if is_done]
                noted = self.noted()
                self.count_existing(block, model_work, existing, noted)
                self._note_done(block, existing)
            if missing:
                with on_device(model, evaluation, block.number) as predictor, timed(work.stage):
                    self._run_missing(store, block, model_work, predictor, chunks, missing, noted)
        return BlockDone(block.order, run, chunks)

    def _run_missing(
        self,
        store: Store,
        block: Block,
        model_work: AnalysisOfModel,
        predictor: Predictor,
        chunks: tuple[int, ...],
        missing: list[int],
        noted: set[str],
    ) -> None:
        """Runs the model on the missing chunks; writes a chunk while the next is computed.

        This thread launches the model's work, so it asks nothing of storage meanwhile.
        """
        work, tallies = self.work, dict[int, Tally]()

        def note(chunk: int, new: int, done: int) -> None:
            tallies[chunk].counts[f"{work.stage}_pictures"] += new
            tallies[chunk].advance(done)

        outputs = model_work.run(predictor, chunks, missing, note)
        try:
            with contextlib.closing(outputs), ThreadPoolExecutor(1) as pool:
                resume = functools.partial(self._resume_tally, block, pool, noted)
                tallies.update(read_ahead(resume, missing))
                pending: collections.deque[tuple[Future[FileDigest], bool]] = collections.deque()
                for output in outputs:
                    if output.is_complete:
                        tallies[output.chunk].counts[f"{work.stage}_chunks_made"] += 1
                    tallies[output.chunk].note()
                    writing = pool.submit(model_work.write, store, output)
                    pending.append((writing, output.is_complete))
                    if output.is_complete:
                        tallies[output.chunk].note_done()
                    if len(pending) > _MAX_PENDING_FILES:
                        _count_when_written(*pending.popleft())
                while pending:
                    _count_when_written(*pending.popleft())
        finally:
            for tally in tallies.values():
                tally.end()

    def _resume_tally(self, block: Block, pool: Executor, noted: set[str], chunk: int) -> Tally:
        """Returns the counters of a missing chunk, which continue those of an earlier attempt."""
        tally = self.tally(block, chunk, pool)
        if tally.path in noted:
            tally.load()
        # The counters are noted before the file is written. If an attempt noted the chunk as made
        # but was killed before the file appeared, its work is lost, so its counts are dropped.
        is_lost = tally.counts[f"{self.work.stage}_chunks_made"] > 0
        return self.tally(block, chunk, pool) if is_lost else tally

    def _note_done(self, block: Block, chunks: Iterable[int]) -> None:
        with ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
            for chunk in chunks:
                self.tally(block, chunk, pool).note_done(self.work.size(self.dataset(), chunk))


def _count_when_written(writing: Future[FileDigest], is_complete: bool) -> None:
    """Waits until a file is written, and counts it. Raises the error if writing failed.

    It is counted here and not where it is written, because Beam's counters must be updated in the
    thread that Beam called. A partial file does not count, because the complete file will replace
    it.
    """
    count_written([writing.result()] if is_complete else [])


class SummarizeModel(_Step):
    """(order of a model, results of its blocks) -> names of the model, or a FailedModel.

    The names are its entry of `--models`, escaped because Beam passes text on as UTF-8, and its own
    if that is known. A model has them if its result is written, or if the stage does not apply to
    it.
    """

    def process(self, element: tuple[int, Iterable[_Result]]) -> list[str | FailedModel]:
        work, results = self.work, list(element[1])
        entry = work.evaluation.models[element[0]]
        failed = [result for result in results if isinstance(result, FailedModel)]
        if failed:
            return [min(failed, key=lambda failure: (failure.error, failure.model))]
        blocks = [result for result in results if isinstance(result, BlockDone)]
        chunks = sorted(chunk for block in blocks for chunk in block.chunks)
        expected = list(work.chunks(self.dataset()))
        if chunks != expected:
            raise JobError(
                f"{entry}: {work.stage} of {len(chunks)} of {len(expected)} chunks "
                "arrived. Run the same command again to go on"
            )
        runs = {block.run for block in blocks}
        if len(runs) > 1:
            raise JobError(
                f"{entry} has changed while it was run. Run the same command again to go on"
            )
        run = runs.pop()
        if run is None:
            return [escaped_line(entry)]
        try:
            with timed(work.stage):
                work.summarize(self.dataset(), run, entry)
        except ModelError as error:
            return [FailedModel(element[0], entry, run.model, " ".join(str(error).split()))]
        return [escaped_line(entry), run.model]


class FinishModels(_Step):
    """Dataset fingerprint, with all results of SummarizeModel as a side input -> the fingerprint.

    Records which models failed, and removes temporary files.
    """

    def process(self, dataset: str, results: Sequence[str | FailedModel]) -> list[str]:
        work, evaluation = self.work, self.work.evaluation
        failed = sorted(
            (result for result in results if isinstance(result, FailedModel)),
            key=lambda failure: failure.order,
        )
        succeeded = [result for result in results if isinstance(result, str)]
        count(f"{work.stage}_failed", len(failed))
        note_failures(evaluation.store, dataset, work.stage, evaluation.settings, failed, succeeded)
        # The page's figures and pictures would not fit the gaps that tables of predictions leave.
        give_back_freed_memory()
        return [dataset]


@dataclasses.dataclass(eq=False, repr=False)
class ModelStage(beam.PTransform):
    """Fingerprint of a finished dataset -> the same, once all results of models are written."""

    work: PlannedAnalysis

    def expand(self, dataset: beam.pvalue.PCollection) -> beam.pvalue.PCollection:
        work = self.work
        look = beam.ParDo(FindDone(work)).with_output_types(_Result, remaining=Block)
        # All models' blocks of a number share a process, if there is one for each GPU.
        run = Spread(
            RunModels(work), _Result, dict(work.evaluation.hints), operator.attrgetter("number")
        )
        existing, remaining = (
            dataset
            | "Blocks" >> beam.ParDo(MakeBlocks(work)).with_output_types(Block)
            | "Spread" >> beam.Reshuffle()
            | "FindDone" >> look.with_outputs("remaining", main="done")
        )
        new = remaining | "RunModels" >> run
        summaries = (
            (existing, new)
            | "Together" >> beam.Flatten()
            | "ByModel"
            >> beam.WithKeys(lambda result: result.order).with_output_types(tuple[int, _Result])
            | "GatherModel" >> beam.GroupByKey()
            | "SummarizeModel"
            >> beam.ParDo(SummarizeModel(work)).with_output_types(str | FailedModel)
        )
        finish = beam.ParDo(FinishModels(work), results=beam.pvalue.AsList(summaries))
        return dataset | "Finish" >> finish.with_output_types(str)
