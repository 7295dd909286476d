"""Attack: adversarial backgrounds, a model on chunks of foregrounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from pipeline.analyses.attack.chunks import Chunks
from pipeline.analyses.attack.plan import AttackGrid, Attacking, open_grid
from pipeline.analyses.attack.results import AttackedModel, write_attack
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.predictions import About
from pipeline.evaluate.work import Work
from transforms.taxonomy import Taxonomy


class TryBackgrounds(Work):
    """Predictions of chunks of foregrounds on all backgrounds.

    Args:
      attacking: what is done.
      taxonomy: the models' heads must fit.
    """

    stage = "attack"
    unit_name = "attack_chunks"
    pictures_name = "composites_predicted"
    refuses_overlap = True

    def __init__(self, attacking: Attacking, taxonomy: Taxonomy) -> None:
        super().__init__(attacking.evaluation, taxonomy)
        self.attacking = attacking
        self._opened: tuple[str, AttackGrid] | None = None
        self._whole: TryBackgrounds | None = None
        if attacking.early_stop:
            self._whole = TryBackgrounds(dataclasses.replace(attacking, early_stop=False), taxonomy)

    def _grid(self, dataset: Dataset) -> AttackGrid:
        """The grid, for which the whole index is read: once for all models."""
        fingerprint = dataset.manifest.fingerprint
        if self._opened is None or self._opened[0] != fingerprint:
            self._opened = fingerprint, open_grid(dataset, self.attacking)
        return self._opened[1]

    def units(self, dataset: Dataset) -> Sequence[int]:
        """As `Work.units`: chunks."""
        return self._grid(dataset).chunks

    def size(self, dataset: Dataset, unit: int) -> int:
        """As `Work.size`: composites."""
        grid = self._grid(dataset)
        return len(grid.positions(unit)) * len(grid.backgrounds)

    def begin(self, dataset: Dataset, about: About) -> Chunks:
        """As `Work.begin`; where all pairs were tried before, an early stop has nothing to do."""
        is_known = self._whole is not None and self._whole.is_done(dataset, about)
        return Chunks(dataset, self.attacking, self._grid(dataset), about, is_known)

    def is_done(self, dataset: Dataset, about: About) -> bool:
        """Whether the predictions of all chunks are there."""
        chunks = self.begin(dataset, about)
        return all(chunks.is_there(unit) for unit in self.units(dataset))

    def sum_up(self, dataset: Dataset, about: About, entry: str) -> None:
        """As `Work.sum_up`; where all pairs were tried before, they say more than an early stop."""
        if self._whole is not None and self._whole.is_done(dataset, about):
            self._whole.sum_up(dataset, about, entry)
            return
        chunks = self.begin(dataset, about)
        paths = tuple(chunks.path(unit) for unit in self.units(dataset))
        grid = self._grid(dataset)
        write_attack(
            AttackedModel(dataset, self.attacking, grid, dict(about), paths), self.taxonomy
        )
