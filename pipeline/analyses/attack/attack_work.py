"""Attack: adversarial backgrounds, a model on chunks of foregrounds.

A model on chunks of an attack's foregrounds: predictions of their pairs, a file for each.

A chunk is keyed by weights, pixels, grid and evaluation settings: what is there for the same key is
not computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from pipeline.analyses.attack.attack_results import (
    AttackedModel,
    chunk_table,
    grid_name,
    read_chunk,
    write_attack,
)
from pipeline.analyses.attack.grid import ATTACK_VARIANTS, AttackGrid, AttackPlan, open_grid
from pipeline.dataset.fingerprints import ATTACK_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.prediction_files import ModelMetadata
from pipeline.evaluate.result_files import result_folder, result_shard
from pipeline.evaluate.work import ModelWork, NoteDone, UnitOutput, Work
from pipeline.storage.parallel import InBackground
from transforms.adversarial import UNTRIED
from transforms.attack_grid import Strengths
from transforms.scoring import labels_of_outputs
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor


class AttackWork(Work):
    """Predictions of chunks of foregrounds on all backgrounds.

    Args:
      plan: what is done.
      taxonomy: the models' heads must fit.
    """

    stage = "attack"
    unit_name = "attack_chunks"
    pictures_name = "composites_predicted"
    refuses_overlap = True

    def __init__(self, plan: AttackPlan, taxonomy: Taxonomy) -> None:
        super().__init__(plan.evaluation, taxonomy)
        self.plan = plan
        self._opened: tuple[str, AttackGrid] | None = None
        self._whole: AttackWork | None = None
        if plan.early_stop:
            self._whole = AttackWork(dataclasses.replace(plan, early_stop=False), taxonomy)

    def _grid(self, dataset: Dataset) -> AttackGrid:
        """The grid, for which the whole index is read: once for all models."""
        fingerprint = dataset.manifest.fingerprint
        if self._opened is None or self._opened[0] != fingerprint:
            self._opened = fingerprint, open_grid(dataset, self.plan)
        return self._opened[1]

    def units(self, dataset: Dataset) -> Sequence[int]:
        """Same as `Work.units`: chunks."""
        return self._grid(dataset).chunks

    def size(self, dataset: Dataset, unit: int) -> int:
        """Same as `Work.size`: composites."""
        grid = self._grid(dataset)
        return len(grid.positions(unit)) * len(grid.backgrounds)

    def for_model(self, dataset: Dataset, metadata: ModelMetadata) -> AttackChunks:
        """Same as `Work.for_model`; where all pairs were tried before, an early stop has nothing to do."""
        is_known = self._whole is not None and self._whole.is_done(dataset, metadata)
        return AttackChunks(dataset, self.plan, self._grid(dataset), metadata, is_known)

    def is_done(self, dataset: Dataset, metadata: ModelMetadata) -> bool:
        """Whether the predictions of all chunks are there."""
        chunks = self.for_model(dataset, metadata)
        return all(chunks.is_done(unit) for unit in self.units(dataset))

    def summarize(self, dataset: Dataset, metadata: ModelMetadata, entry: str) -> None:
        """Same as `Work.summarize`; where all pairs were tried before, they say more than an early stop."""
        if self._whole is not None and self._whole.is_done(dataset, metadata):
            self._whole.summarize(dataset, metadata, entry)
            return
        chunks = self.for_model(dataset, metadata)
        paths = tuple(chunks.path(unit) for unit in self.units(dataset))
        grid = self._grid(dataset)
        write_attack(AttackedModel(dataset, self.plan, grid, dict(metadata), paths), self.taxonomy)


class AttackChunks(ModelWork):
    """Predictions of a model on the chunks of a grid.

    Args:
      dataset: finished.
      plan: what is done.
      grid: of `plan`.
      metadata: the model, and how it is run.
      is_known: whether what the chunks would say is known without them.
    """

    def __init__(
        self,
        dataset: Dataset,
        plan: AttackPlan,
        grid: AttackGrid,
        metadata: ModelMetadata,
        is_known: bool = False,
    ) -> None:
        super().__init__(dataset.store)
        self._dataset, self._attacking, self._grid = dataset, plan, grid
        self._metadata, self._is_known = metadata, is_known

    def is_done(self, unit: int) -> bool:
        """Same as `ModelWork.is_done`, or it is not needed."""
        return self._is_known or super().is_done(unit)

    def path(self, unit: int) -> str:
        """Same as `ModelWork.path`."""
        folder = result_folder(self._metadata["model"], self._metadata["evaluation"])
        name = grid_name(self._grid, self._attacking)
        return result_shard(folder, name, self._metadata["evaluation"]["split"], unit)

    @functools.cached_property
    def _pixels(self) -> str:
        """Fingerprint of the model and of all pixels of the split that an attack reads."""
        split = self._metadata["evaluation"]["split"]
        return fingerprint(
            *(self._metadata[name] for name in ("model", "weights_sha256", "preprocessing")),
            [
                file.sha256
                for shard in self._dataset.shards(split)
                for file in self._dataset.shard_files(split, shard, ATTACK_VARIANTS)
            ],
            ATTACK_VERSION,
            *self._dataset.custom_taxonomy,
        )

    def fingerprint(self, unit: int) -> str:
        """Same as `ModelWork.fingerprint`: that of the pixels, then that of what is done with them."""
        evaluation, grid = self._attacking.evaluation, self._grid
        done = fingerprint(
            evaluation.predict.identity,
            [len(grid.foregrounds), len(grid.backgrounds), grid.chunk, unit],
            # An early stop learns from the chunks before it, of the same group.
            evaluation.groups if self._attacking.early_stop else None,
            # As many images may be others.
            *([grid.foregrounds.keys, grid.backgrounds.keys] if evaluation.holdout else []),
        )
        return f"{self._pixels}-{done}"

    def run(
        self, predictor: Predictor, units: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[UnitOutput, None, None]:
        """Same as `ModelWork.run`; an early stop learns from the chunks that are there, too."""
        # Only who attacks waits for torch.
        from pipeline.analyses.attack.arrays import (
            GridModel,
            load_backgrounds,
            stop_early,
            stream_cutouts,
            try_all,
        )

        grid, device, batch_size = self._grid, predictor.device, predictor.batch_size
        split, early_stop = self._metadata["evaluation"]["split"], self._attacking.early_stop
        outputs = labels_of_outputs(self._metadata["num_outputs"], self._dataset.taxonomy)
        backgrounds = load_backgrounds(self._dataset, split, grid.backgrounds, device)
        network = GridModel(predictor, outputs, backgrounds)
        strengths = Strengths(len(grid.backgrounds))
        streaming = stream_cutouts(self._dataset, split, grid, missing, device)
        # The next chunk is decoded while the device works.
        with contextlib.closing(InBackground(streaming, 1)) as ahead:
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
                        network, next(cutouts), foregrounds.labels, order, batch_size, note_pairs
                    )
                    strengths.add(predictions, foregrounds.labels)
                else:
                    size = (len(foregrounds), len(grid.backgrounds))
                    predictions = try_all(network, next(cutouts), size, batch_size, note_pairs)
                note(chunk, int((predictions[0] != UNTRIED).sum()), 0)
                yield UnitOutput(chunk, chunk_table(foregrounds, predictions, device.type))
