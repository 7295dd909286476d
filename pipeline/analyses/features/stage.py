"""The stage that computes the features of frozen encoders, and fits their heads.

A chunk is the pictures of the fit in an output shard, or the grid of composites. Once all chunks of
a model are done, its head is fitted, and the shares of its features are computed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
from pipeline.analyses.features.grid import FeatureGrid
from pipeline.analyses.features.results import FeaturesResult, summarize_grid
from typing_extensions import override

from pipeline.dataset.folder import Dataset
from pipeline.evaluate.features import (
    FeatureFiles,
    HeadPlan,
    encode,
    feature_column,
    is_fitted,
    values_of,
)
from pipeline.evaluate.planned import (
    ENCODING,
    AnalysisOfModel,
    ChunkOutput,
    NoteDone,
    PlannedAnalysis,
)
from pipeline.evaluate.predict_shards import ShardPictures
from pipeline.evaluate.results import ModelRun, pick, read_result, result_file, write_result
from pipeline.models.checkpoint import TrainedOn, head_file
from pipeline.storage.state_files import read_table
from transforms.hashing import fingerprint

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor


class EncodedChunks(NamedTuple):
    """What the chunks of all models are.

    Attributes:
      pictures: the pictures of the fit, by output shard.
      grid: the composites, which are the last chunk; None if the dataset has none.
    """

    plan: HeadPlan
    pictures: Mapping[int, ShardPictures]
    grid: FeatureGrid | None


@dataclasses.dataclass(eq=False)
class PlannedFeatures(PlannedAnalysis):
    """The stage that runs encoders without their heads, and then fits these."""

    stage = ENCODING
    encodes = True

    _encoded: dict[str, EncodedChunks] = dataclasses.field(default_factory=dict, init=False)

    def encoded(self, dataset: Dataset) -> EncodedChunks:
        """Returns the chunks, found once for all models, because that reads the whole index."""
        of = dataset.manifest.fingerprint
        if of not in self._encoded:
            assert self.evaluation.fit  # Without, nothing was planned.
            plan = HeadPlan(dataset, "original", *self.evaluation.fit)
            pictures = {one.shard: one for one in plan.sets()}
            grid = FeatureGrid.choose(dataset, self.evaluation)
            self._encoded = {of: EncodedChunks(plan, pictures, grid)}
        return self._encoded[of]

    @override
    def chunks(self, dataset: Dataset) -> Sequence[int]:
        plan, pictures, grid = self.encoded(dataset)
        return [*pictures, *([len(dataset.shards(plan.split))] if grid else [])]

    @override
    def size(self, dataset: Dataset, chunk: int) -> int:
        _, pictures, grid = self.encoded(dataset)
        return pictures[chunk].count if chunk in pictures else grid.count if grid else 0

    @override
    def for_model(self, dataset: Dataset, run: ModelRun) -> ChunkFeatures | None:
        """Returns None if the head is fitted, and the shares are computed."""
        work = self._chunks(dataset, run)
        known = read_result(dataset.store, result_file(run.folder, "features"), FeaturesResult)
        has_shares = not work.encoded.grid or (known is not None and known.of == work.of_shares)
        is_done = has_shares and is_fitted(dataset.store, work.head, work.trained)
        return None if is_done else work

    def _chunks(self, dataset: Dataset, run: ModelRun) -> ChunkFeatures:
        return ChunkFeatures(dataset.store, self.encoded(dataset), run, self)

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        """Fits and stores the head; computes the shares of the features."""
        # Imported here, so that nothing waits for torch unless a head is fitted.
        from pipeline.models.checkpoint import save_checkpoint
        from pipeline.training.probe_fit import fit_head

        store, work = dataset.store, self._chunks(dataset, run)
        features = work.encoded.plan.read(work.files.read)
        if not is_fitted(store, work.head, work.trained):
            state, trained = fit_head(work.encoded.plan, work.trained, features)
            save_checkpoint(store, work.head, state, trained)
        if grid := work.encoded.grid:
            of_grid = values_of(read_table(store, work.path(-1)))
            shares = summarize_grid(of_grid, features.values, grid)
            content = pick(FeaturesResult, shares, run, of=work.of_shares)
            write_result(store, result_file(run.folder, "features"), content)


@dataclasses.dataclass(eq=False)
class ChunkFeatures(AnalysisOfModel):
    """The features that an encoder computes of chunks, and its head."""

    encoded: EncodedChunks
    model: ModelRun
    planned: PlannedFeatures

    @functools.cached_property
    def files(self) -> FeatureFiles:
        part, predict = self.encoded.plan.part, self.planned.evaluation.predict
        return FeatureFiles(self.store, self.model, predict, part)

    @property
    def head(self) -> str:
        """Path of the head."""
        plan = self.encoded.plan
        return head_file(self.model.model, plan.split, plan.holdout)

    @functools.cached_property
    def trained(self) -> TrainedOn:
        """What the head is fitted on."""
        predict = self.planned.evaluation.predict
        return self.encoded.plan.trained_on(self.model.model, self.model, predict)

    @property
    def of_shares(self) -> str:
        """Fingerprint of what the shares are computed from."""
        return fingerprint(self.trained.fit, self.fingerprint(-1))

    @override
    def path(self, chunk: int) -> str:
        if pictures := self.encoded.pictures.get(chunk):
            return self.files.path(pictures)
        return f"{self.files.folder}/grid/{self.planned.evaluation.split}.parquet"

    @override
    def fingerprint(self, chunk: int) -> str:
        pictures, grid = self.encoded.pictures.get(chunk), self.encoded.grid
        return self.files.fingerprint(pictures.name if pictures else grid and grid.identity)

    @override
    def run(
        self, predictor: Predictor, chunks: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[ChunkOutput, None, None]:
        for chunk in missing:
            if pictures := self.encoded.pictures.get(chunk):
                advance = functools.partial(_note_batch, note, chunk)
                yield ChunkOutput(chunk, encode(predictor, pictures, advance))
            elif grid := self.encoded.grid:
                values = grid.run(predictor, self.encoded.plan.dataset)
                note(chunk, grid.count, grid.count)
                table = pa.table({"features": feature_column(values.reshape(grid.count, -1))})
                yield ChunkOutput(chunk, table)


def _note_batch(note: NoteDone, chunk: int, count: int) -> None:
    note(chunk, count, count)
