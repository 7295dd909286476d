"""A model on chunks of an attack's foregrounds: predictions of their pairs, a file for each.

A chunk is keyed by weights, pixels, grid and evaluation settings: what is there for the same key is
not computed again.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from pipeline.analyses.attack.plan import ATTACK_VARIANTS, AttackGrid, Attacking
from pipeline.analyses.attack.results import chunk_table, grid_name, read_chunk
from pipeline.dataset.fingerprints import ATTACK_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.predictions import About
from pipeline.evaluate.results import result_folder, result_shard
from pipeline.evaluate.work import Made, ModelWork, NoteDone
from pipeline.storage.parallel import InBackground
from transforms.adversarial import UNTRIED
from transforms.attack_grid import Strengths
from transforms.scoring import labels_of_outputs

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor


class Chunks(ModelWork):
    """Predictions of a model on the chunks of a grid.

    Args:
      dataset: finished.
      attacking: what is done.
      grid: of `attacking`.
      about: the model, and how it is run.
      is_known: whether what the chunks would say is known without them.
    """

    def __init__(
        self,
        dataset: Dataset,
        attacking: Attacking,
        grid: AttackGrid,
        about: About,
        is_known: bool = False,
    ) -> None:
        super().__init__(dataset.store)
        self._dataset, self._attacking, self._grid = dataset, attacking, grid
        self._about, self._is_known = about, is_known

    def is_there(self, unit: int) -> bool:
        """As `ModelWork.is_there`, or it is not needed."""
        return self._is_known or super().is_there(unit)

    def path(self, unit: int) -> str:
        """As `ModelWork.path`."""
        folder = result_folder(self._about["model"], self._about["evaluation"])
        name = grid_name(self._grid, self._attacking)
        return result_shard(folder, name, self._about["evaluation"]["split"], unit)

    @functools.cached_property
    def _pixels(self) -> str:
        """Fingerprint of the model and of all pixels of the split that an attack reads."""
        split = self._about["evaluation"]["split"]
        return fingerprint(
            *(self._about[name] for name in ("model", "weights_sha256", "preprocessing")),
            [
                file.sha256
                for shard in self._dataset.shards(split)
                for file in self._dataset.shard_files(split, shard, ATTACK_VARIANTS)
            ],
            ATTACK_VERSION,
            *self._dataset.own_taxonomy,
        )

    def checksum(self, unit: int) -> str:
        """As `ModelWork.checksum`: that of the pixels, then that of what is done with them."""
        evaluation, grid = self._attacking.evaluation, self._grid
        done = fingerprint(
            evaluation.predict.asked_for,
            [len(grid.foregrounds), len(grid.backgrounds), grid.chunk, unit],
            # An early stop learns from the chunks before it, of the same group.
            evaluation.groups if self._attacking.early_stop else None,
            # As many images may be others.
            *([grid.foregrounds.keys, grid.backgrounds.keys] if evaluation.holdout else []),
        )
        return f"{self._pixels}-{done}"

    def make(
        self, predictor: Predictor, units: Sequence[int], missing: Sequence[int], note: NoteDone
    ) -> Generator[Made, None, None]:
        """As `ModelWork.make`; an early stop learns from the chunks that are there, too."""
        # Only who attacks waits for torch.
        from pipeline.analyses.attack.arrays import (
            GridModel,
            load_backgrounds,
            stop_early,
            stream_cutouts,
            try_all,
        )

        grid, device, batch_size = self._grid, predictor.device, predictor.batch_size
        split, early_stop = self._about["evaluation"]["split"], self._attacking.early_stop
        outputs = labels_of_outputs(self._about["num_outputs"], self._dataset.taxonomy)
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
                yield Made(chunk, chunk_table(foregrounds, predictions, device.type))
