"""The stage that computes the features of frozen encoders, and fits their heads.

A chunk is the pictures of the fit in an output shard, or the grid of composites. Once all chunks of
a model are done, its head is fitted, and the shares of its features are computed.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from typing_extensions import override

from pipeline.analyses.attack.results import ATTACK_VARIANTS
from pipeline.analyses.features.grid import FeatureGrid
from pipeline.analyses.features.results import FeaturesResult, summarize_grid
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.features import (
    FeatureFiles,
    HeadPlan,
    encode,
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
from pipeline.evaluate.predictions import split_fingerprint
from pipeline.evaluate.results import ModelRun, pick, read_result, result_file, write_result
from pipeline.models.checkpoint import TrainedOn, head_file, save_checkpoint
from pipeline.models.identity import PredictConfig
from pipeline.storage.state_files import read_table
from transforms.hashing import fingerprint

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor


class EncodedChunks(NamedTuple):
    """What the chunks of all models are.

    Attributes:
      sets: the pictures of each chunk.
      grid: the composites, which are the last chunk; None if the dataset has none.
      of: fingerprint of the split that the grid is of.
    """

    plan: HeadPlan
    sets: Mapping[int, ShardPictures]
    grid: FeatureGrid | None
    of: str


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
            grid = FeatureGrid.choose(dataset, self.evaluation)
            sets = {one.shard: one for one in (*plan.sets(), *([grid] if grid else []))}
            split = split_fingerprint(dataset, self.evaluation.split, ATTACK_VARIANTS)
            self._encoded = {of: EncodedChunks(plan, sets, grid, split)}
        return self._encoded[of]

    @override
    def chunks(self, dataset: Dataset) -> Sequence[int]:
        return list(self.encoded(dataset).sets)

    @override
    def size(self, dataset: Dataset, chunk: int) -> int:
        return self.encoded(dataset).sets[chunk].count

    @override
    def for_model(self, dataset: Dataset, run: ModelRun) -> ChunkFeatures | None:
        """Returns None if the head is fitted, and the shares are computed."""
        predict = self.evaluation.predict
        work = ChunkFeatures(dataset.store, self.encoded(dataset), run, predict)
        known = read_result(dataset.store, result_file(run.folder, "features"), FeaturesResult)
        is_present = known is not None and known.made_from == work.of_shares
        has_shares = not work.encoded.grid or is_present
        is_done = has_shares and is_fitted(dataset.store, work.head, work.trained)
        return None if is_done else work

    @override
    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        """Fits and stores the head; computes the shares of the features."""
        # Imported here, so that nothing waits for torch unless a head is fitted.
        from pipeline.training.probe_fit import fit_head

        store, predict = dataset.store, self.evaluation.predict
        work = ChunkFeatures(store, self.encoded(dataset), run, predict)
        features = work.encoded.plan.read(work.files.read)
        if not is_fitted(store, work.head, work.trained):
            state, trained = fit_head(work.encoded.plan, work.trained, features)
            save_checkpoint(store, work.head, state, trained)
        if grid := work.encoded.grid:
            values = values_of(read_table(store, work.path(grid.shard)))
            content = pick(
                FeaturesResult,
                run,
                of=work.encoded.of,
                fit_split=work.encoded.plan.split,
                made_from=work.of_shares,
                **summarize_grid(values, np.stack([*features.values()]), grid),
            )
            write_result(store, result_file(run.folder, "features"), content)


@dataclasses.dataclass(eq=False)
class ChunkFeatures(AnalysisOfModel):
    """The features that an encoder computes of chunks, and its head."""

    encoded: EncodedChunks
    model: ModelRun
    predict: PredictConfig

    @functools.cached_property
    def files(self) -> FeatureFiles:
        return FeatureFiles(self.store, self.model, self.predict, self.encoded.plan.part)

    @property
    def head(self) -> str:
        """Path of the head."""
        return head_file(self.model.model, self.encoded.plan.split, self.encoded.plan.holdout)

    @functools.cached_property
    def trained(self) -> TrainedOn:
        """What the head is fitted on."""
        return self.encoded.plan.trained_on(self.model.model, self.model, self.predict)

    @property
    def of_shares(self) -> str:
        """Fingerprint of what the shares are computed from."""
        encoded = self.encoded
        return fingerprint(self.trained.fit, encoded.grid and encoded.grid.name, encoded.of)

    @override
    def path(self, chunk: int) -> str:
        return self.files.path(self.encoded.sets[chunk])

    @override
    def fingerprint(self, chunk: int) -> str:
        return self.files.fingerprint(self.encoded.sets[chunk].name)

    @override
    def run(
        self, predictor: Predictor, chunks: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[ChunkOutput, None, None]:
        for chunk in missing:
            advance = functools.partial(note, chunk)
            yield ChunkOutput(chunk, encode(predictor, self.encoded.sets[chunk], advance))
