"""The attack stage: predictions of models on the pairs of a grid, one file for each chunk.

A chunk is a few foregrounds paired with all backgrounds. Its file records a fingerprint of weights,
pixels, grid and evaluation settings, so a chunk is not computed again while these are the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from pipeline.analyses.attack.grid import ATTACK_VARIANTS, AttackGrid, AttackPlan, open_grid
from pipeline.analyses.attack.measures import (
    AttackedModel,
    chunk_table,
    grid_name,
    read_chunk,
    write_attack,
)
from pipeline.dataset.fingerprints import ATTACK_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.result_files import result_shard
from pipeline.evaluate.results import ModelRun
from pipeline.evaluate.work import ModelWork, NoteDone, UnitOutput, Work
from pipeline.storage.parallel import InBackground
from transforms.adversarial import UNTRIED, Strengths
from transforms.scoring import labels_of_outputs
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor


class AttackWork(Work):
    """The stage that predicts foregrounds on all backgrounds, in chunks.

    Args:
      plan: settings of the attack.
      taxonomy: the classes that the heads of models must fit.
    """

    stage = "attack"
    unit_name = "attack_chunks"
    pictures_name = "composites_predicted"
    refuses_overlap = True

    def __init__(self, plan: AttackPlan, taxonomy: Taxonomy) -> None:
        super().__init__(plan.evaluation, taxonomy)
        self.plan = plan
        self._cached_grid: tuple[str, AttackGrid] | None = None
        # The same attack without an early stop. If it is done, its results are used, because they
        # say more.
        self._exhaustive: AttackWork | None = None
        if plan.early_stop:
            self._exhaustive = AttackWork(dataclasses.replace(plan, early_stop=False), taxonomy)

    def _grid(self, dataset: Dataset) -> AttackGrid:
        """Returns the grid. It is built once for all models, because building it reads the whole
        index."""
        fingerprint = dataset.manifest.fingerprint
        if self._cached_grid is None or self._cached_grid[0] != fingerprint:
            self._cached_grid = fingerprint, open_grid(dataset, self.plan)
        return self._cached_grid[1]

    def units(self, dataset: Dataset) -> Sequence[int]:
        """Same as `Work.units`; units are chunks."""
        return self._grid(dataset).chunks

    def size(self, dataset: Dataset, unit: int) -> int:
        """Same as `Work.size`, but counts composites."""
        grid = self._grid(dataset)
        return len(grid.positions(unit)) * len(grid.backgrounds)

    def groups(self, dataset: Dataset) -> int:
        """Same as `Work.groups`, but with an early stop, 1 unless the number is given: results then
        depend on it, and must not depend on the runner."""
        if self.plan.early_stop:
            return self.evaluation.groups or 1
        return super().groups(dataset)

    def for_model(self, dataset: Dataset, run: ModelRun) -> AttackChunks:
        """Same as `Work.for_model`, but an attack with an early stop has nothing to do if an
        earlier attack tried all pairs."""
        is_known = self._exhaustive is not None and self._exhaustive.is_done(dataset, run)
        return AttackChunks(dataset, self.plan, self._grid(dataset), run, is_known)

    def is_done(self, dataset: Dataset, run: ModelRun) -> bool:
        """Returns whether all chunks of a model are done."""
        chunks = self.for_model(dataset, run)
        return all(chunks.is_done(unit) for unit in self.units(dataset))

    def summarize(self, dataset: Dataset, run: ModelRun, entry: str) -> None:
        """Same as `Work.summarize`, but if an earlier attack tried all pairs, that attack is
        summarized instead of one with an early stop."""
        if self._exhaustive is not None and self._exhaustive.is_done(dataset, run):
            self._exhaustive.summarize(dataset, run, entry)
            return
        chunks = self.for_model(dataset, run)
        paths = tuple(chunks.path(unit) for unit in self.units(dataset))
        grid = self._grid(dataset)
        write_attack(AttackedModel(dataset, self.plan, grid, run, paths), self.taxonomy)


class AttackChunks(ModelWork):
    """Predictions of a model on the chunks of a grid.

    Args:
      dataset: the finished dataset.
      plan: settings of the attack.
      grid: grid of the attack.
      run: the model, and how it is run.
      is_known: whether an earlier attack tried all pairs, so that no chunk has to be computed.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: AttackPlan,
        grid: AttackGrid,
        run: ModelRun,
        is_known: bool = False,
    ) -> None:
        super().__init__(dataset.store)
        self._dataset, self._plan, self._grid = dataset, plan, grid
        self._run, self._is_known = run, is_known

    def is_done(self, unit: int) -> bool:
        """Same as `ModelWork.is_done`, but also True if no chunk has to be computed."""
        return self._is_known or super().is_done(unit)

    def path(self, unit: int) -> str:
        """Same as `ModelWork.path`."""
        name = grid_name(self._grid, self._plan)
        return result_shard(self._run.folder, name, self._run.evaluation.split, unit)

    @functools.cached_property
    def _shared_fingerprint(self) -> str:
        """Fingerprint of the model and of all pixels that are read, on which every chunk
        depends."""
        split = self._run.evaluation.split
        return fingerprint(
            *self._run.identity,
            [
                file.sha256
                for shard in self._dataset.shards(split)
                for file in self._dataset.shard_files(split, shard, ATTACK_VARIANTS)
            ],
            ATTACK_VERSION,
            *self._dataset.custom_taxonomy,
        )

    def fingerprint(self, unit: int) -> str:
        """Same as `ModelWork.fingerprint`, but consists of two fingerprints: one of model and
        pixels, which `write_attack` compares by itself, and one of settings and chunk."""
        evaluation, grid = self._plan.evaluation, self._grid
        own_fingerprint = fingerprint(
            evaluation.predict.identity,
            [len(grid.foregrounds), len(grid.backgrounds), grid.chunk_size, unit],
            # With an early stop, the order of backgrounds depends on earlier chunks of the group.
            (evaluation.groups or 1) if self._plan.early_stop else None,
            # If groups of images change, other images may be held out, although their number stays
            # the same.
            *([grid.foregrounds.keys, grid.backgrounds.keys] if evaluation.holdout else []),
        )
        return f"{self._shared_fingerprint}-{own_fingerprint}"

    def run(
        self, predictor: Predictor, units: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[UnitOutput, None, None]:
        """Same as `ModelWork.run`, but with an early stop also reads the chunks that are done, to
        learn which backgrounds to try first."""
        # Imported here, so that only machines that attack wait for torch.
        from pipeline.analyses.attack.arrays import (
            GridModel,
            load_backgrounds,
            stop_early,
            stream_cutouts,
            try_all,
        )

        grid, device, batch_size = self._grid, predictor.device, predictor.batch_size
        split, early_stop = self._run.evaluation.split, self._plan.early_stop
        outputs = labels_of_outputs(self._run.num_outputs, self._dataset.taxonomy)
        backgrounds = load_backgrounds(self._dataset, split, grid.backgrounds, device)
        model = GridModel(predictor, outputs, backgrounds)
        strengths = Strengths(len(grid.backgrounds))
        stream = stream_cutouts(self._dataset, split, grid, missing, device)
        # The next chunk is decoded while the device works.
        with contextlib.closing(InBackground(stream, 1)) as ahead:
            cutouts = iter(ahead)
            for chunk in units:
                if chunk not in missing:
                    if early_stop:
                        strengths.add(*read_chunk(self.store, self.path(chunk)))
                    continue
                note_pairs = functools.partial(note, chunk, 0)
                foregrounds = grid.foregrounds.take(grid.positions(chunk))
                if early_stop:
                    order = strengths.strongest_first()
                    predictions = stop_early(
                        model, next(cutouts), foregrounds.labels, order, batch_size, note_pairs
                    )
                    strengths.add(predictions, foregrounds.labels)
                else:
                    size = (len(foregrounds), len(grid.backgrounds))
                    predictions = try_all(model, next(cutouts), size, batch_size, note_pairs)
                note(chunk, int((predictions[0] != UNTRIED).sum()), 0)
                yield UnitOutput(chunk, chunk_table(foregrounds, predictions, device.type))
