"""A model on a chunk of an attack's foregrounds: predictions of its pairs, kept in one file.

A chunk is keyed by weights, pixels, grid and evaluation configuration: what is there for the
same key is not computed again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from pipeline.analyses.attack.arrays import Cutouts, GridModel, load_backgrounds, stream_cutouts
from pipeline.analyses.attack.plan import ATTACK_VARIANTS, AttackGrid, Attacking
from pipeline.analyses.attack.results import chunk_table, grid_name, read_chunk
from pipeline.dataset.fingerprints import ATTACK_VERSION, fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import ShardFiles, read_about, write_table
from pipeline.evaluate.results import result_folder, result_shard
from pipeline.models import LoadedModel
from pipeline.models.predict import Predictor
from pipeline.runtime.counters import count, count_written, timed
from transforms.adversarial import UNTRIED, Grid, Labels
from transforms.attack_grid import Strengths, try_until_turned
from transforms.scoring import LABEL_RULES, labels_of_outputs
from transforms.taxonomy import Taxonomy


@dataclasses.dataclass(frozen=True, eq=False)
class Chunks:
    """A model's chunks of a grid: where their predictions lie, and what they depend on.

    Attributes:
      dataset: finished.
      attacking: what is done.
      grid: of `attacking`.
      model: in memory.
      about: of `model_identity`.
    """

    dataset: Dataset
    attacking: Attacking
    grid: AttackGrid
    model: LoadedModel
    about: dict[str, Any]

    @property
    def folder(self) -> str:
        """The model's folder under `results/`."""
        return result_folder(self.model.name, self.about["evaluation"])

    def path(self, chunk: int) -> str:
        """File of a chunk."""
        name = grid_name(self.grid, self.attacking)
        return result_shard(self.folder, name, self.attacking.evaluation.split, chunk)

    @functools.cached_property
    def pixels(self) -> str:
        """Fingerprint of the model and of all pixels of the split that an attack reads."""
        split = self.attacking.evaluation.split
        files = [
            file.sha256
            for shard in self.dataset.shards(split)
            for file in self.dataset.shard_files(split, shard, ATTACK_VARIANTS)
        ]
        preprocessing = dataclasses.asdict(self.model.preprocessing)
        return fingerprint(
            self.model.name,
            self.model.weights_sha256,
            preprocessing,
            files,
            ATTACK_VERSION,
            *self.dataset.own_taxonomy,
        )

    def checksum(self, chunk: int) -> str:
        """Fingerprint of a chunk: that of the pixels, then that of what is done with them."""
        evaluation, grid = self.attacking.evaluation, self.grid
        done = fingerprint(
            dataclasses.asdict(evaluation.predict),
            [len(grid.foregrounds), len(grid.backgrounds), grid.chunk, chunk],
            # An early stop learns from the chunks before it, of the same group.
            evaluation.groups if self.attacking.early_stop else None,
            # As many images may be others.
            *([grid.foregrounds.keys, grid.backgrounds.keys] if evaluation.holdout else []),
        )
        return f"{self.pixels}-{done}"

    def is_there(self, chunk: int) -> bool:
        """Whether the predictions are there already."""
        about = read_about(self.dataset.store, self.path(chunk))
        return about is not None and about.fingerprint == self.checksum(chunk)

    def left(self, numbers: Sequence[int]) -> list[int]:
        """Those of a group's chunks that are needed where what is missing is made: an early stop
        learns from those that are there."""
        missing = self._missing(numbers)
        return list(numbers) if missing and self.attacking.early_stop else missing

    def _missing(self, numbers: Sequence[int]) -> list[int]:
        return [chunk for chunk in numbers if not self.is_there(chunk)]

    def make(
        self,
        numbers: Sequence[int],
        predictor: Predictor,
        backgrounds: HeldBackgrounds,
        taxonomy: Taxonomy,
    ) -> Iterator[int]:
        """Makes the chunks that are missing; yields each when it is there.

        Args:
          numbers: rising numbers of chunks.
          predictor: the model on its device.
          backgrounds: of the grid.
          taxonomy: of the labels.

        Raises:
          ModelError: the model's forward pass fails.
          JobError: a stored picture cannot be decoded.
        """
        store, grid = self.dataset.store, self.grid
        missing = self._missing(numbers)
        output_labels = labels_of_outputs(self.model.num_outputs, taxonomy)
        split, device = self.attacking.evaluation.split, predictor.device
        batch_size = self.attacking.evaluation.predict.batch_size
        strengths = Strengths(len(grid.backgrounds))
        streaming = stream_cutouts(self.dataset, split, grid, missing, device)
        with contextlib.closing(streaming) as cutouts:
            for chunk in numbers:
                if chunk not in missing:
                    count("attack_chunks_kept")
                    if self.attacking.early_stop:
                        strengths.add(*read_chunk(store, self.path(chunk)))
                    yield chunk
                    continue
                with timed("attack"):
                    network = GridModel(predictor, output_labels, backgrounds.on(device))
                    labels = grid.foregrounds.labels[list(grid.positions(chunk))]
                    if self.attacking.early_stop:
                        order = strengths.strongest_first()
                        predictions = _stop_early(network, next(cutouts), labels, order, batch_size)
                        strengths.add(predictions, labels)
                    else:
                        size = (len(labels), len(grid.backgrounds))
                        predictions = try_all(network, next(cutouts), size, batch_size)
                    self._write(chunk, predictions)
                yield chunk

    def _write(self, chunk: int, predictions: Grid) -> None:
        foregrounds = self.grid.foregrounds.take(self.grid.positions(chunk))
        table = chunk_table(foregrounds, predictions)
        about = ShardFiles(self.checksum(chunk), ())
        count_written([write_table(self.dataset.store, self.path(chunk), table, about)])
        count("attack_chunks_made")
        count("composites_predicted", int((predictions[0] != UNTRIED).sum()))


class HeldBackgrounds:
    """The backgrounds on the device: decoded when a model first needs them, kept for the next."""

    def __init__(self, dataset: Dataset, split: str, grid: AttackGrid) -> None:
        self._dataset = dataset
        self._split = split
        self._grid = grid
        self._pixels: torch.Tensor | None = None

    def on(self, device: torch.device) -> torch.Tensor:
        """(B, S, S, 3) uint8."""
        if self._pixels is None:
            self._pixels = load_backgrounds(
                self._dataset, self._split, self._grid.backgrounds, device
            )
        return self._pixels


def try_all(network: GridModel, cutouts: Cutouts, size: tuple[int, int], batch_size: int) -> Grid:
    """Predictions of all pairs of a chunk; nothing waits for the device before the last.

    Args:
      network: with its backgrounds.
      cutouts: the foregrounds.
      size: (C, B), how many of each.
      batch_size: pairs at a time.

    Returns:
      (rules, C, B) int16.
    """
    pairs = torch.arange(size[0] * size[1], device=cutouts.pixels.device)
    parts = []
    for first in range(0, len(pairs), batch_size):
        batch = pairs[first : first + batch_size]
        parts.append(network.predict(cutouts, batch // size[1], batch % size[1]))
    return np.asarray(torch.cat(parts, dim=1).cpu()).reshape(-1, *size)


def _stop_early(
    network: GridModel, cutouts: Cutouts, labels: Labels, order: Labels, batch_size: int
) -> Grid:
    device = cutouts.pixels.device

    def predict(foreground: Labels, background: Labels) -> Grid:
        sides = (torch.from_numpy(side.copy()).to(device) for side in (foreground, background))
        return np.asarray(network.predict(cutouts, *sides).cpu())

    return try_until_turned(
        labels, order, rules=len(LABEL_RULES), batch_size=batch_size, predict=predict
    )
