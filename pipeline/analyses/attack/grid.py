"""The grid of an attack: its foregrounds, its backgrounds, and the chunks that it is divided
into."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from pipeline.dataset.folder import Dataset
from pipeline.errors import UsageError
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.predictions import EvalImages
from transforms.adversarial import Labels
from transforms.selection import sample_evenly

ATTACK_VARIANTS = ("original", "fg_mask", "only_bg_t")
"""The variants that an attack reads."""

_CHUNK = 16
"""The most foregrounds in a chunk."""
_CHUNK_FORWARDS = 16_384
"""The most composites in a chunk without `AttackPlan.early_stop`. A chunk has at least one
foreground, even if that alone makes more composites."""


@dataclasses.dataclass(frozen=True)
class AttackPlan:
    """The settings of an attack.

    Attributes:
      evaluation: the models, the split, and the settings to run models with.
      foregrounds, backgrounds: number of images to sample as foregrounds and as backgrounds; None
        for all images.
      early_stop: whether a foreground is dropped as soon as a background has turned its prediction
        wrong.
    """

    evaluation: Evaluation
    foregrounds: int | None
    backgrounds: int | None
    early_stop: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class GridAxis:
    """The n foregrounds or backgrounds of a grid, in the order of the dataset.

    Attributes:
      keys: n keys of the images.
      labels: (n,) int64, labels of the images.
      wnids: n ids of the images' classes.
      shards: n numbers of the output shards that hold the images.
    """

    keys: tuple[str, ...]
    labels: Labels
    wnids: tuple[str, ...]
    shards: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def sample(self, count: int | None, purpose: str) -> GridAxis:
        """Draws images, spread evenly over the classes.

        Args:
          count: number of images; None for all images.
          purpose: part of the hash that images are drawn by, so that draws for different purposes
            are independent.
        """
        if count is None or count >= len(self):
            return self
        kept = sample_evenly(self.keys, self.labels, count, seed=0, purpose=purpose)
        return self.take(np.flatnonzero(kept).tolist())

    def take(self, positions: Sequence[int]) -> GridAxis:
        """Selects the images at these positions."""
        return GridAxis(
            keys=tuple(self.keys[i] for i in positions),
            labels=self.labels[np.asarray(positions, np.int64)],
            wnids=tuple(self.wnids[i] for i in positions),
            shards=tuple(self.shards[i] for i in positions),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class AttackGrid:
    """All pairs of F foregrounds and B backgrounds, divided into chunks of foregrounds.

    Attributes:
      foregrounds, backgrounds: the two axes of the grid.
      is_full: whether each axis holds all images that are tested on.
      chunk_size: number of foregrounds in each chunk; the last chunk may have fewer. An attack that
        was interrupted goes on with the chunks that are not done.
      units: (F,) int64, number of each foreground's unit, as in `EvalImages.unit_numbers`:
        foregrounds of the same group have the same number.
    """

    foregrounds: GridAxis
    backgrounds: GridAxis
    is_full: bool
    chunk_size: int
    units: Labels

    @property
    def chunks(self) -> range:
        """Numbers of all chunks."""
        return range(-(-len(self.foregrounds) // self.chunk_size))

    def positions(self, chunk: int) -> range:
        """Returns the positions on the axis of the foregrounds of chunk number `chunk`."""
        first = chunk * self.chunk_size
        return range(len(self.foregrounds))[first : first + self.chunk_size]


def open_grid(dataset: Dataset, plan: AttackPlan) -> AttackGrid:
    """Builds the grid of an attack. Images are sampled by a keyed hash of their keys, so datasets
    with the same images get the same grid.

    Raises:
      UsageError: a variant is missing, or there are no images to test on.
    """
    check_variants(dataset.variants)
    split = plan.evaluation.split
    rows = [
        (row["key"], row["label"], row["wnid"], dataset.shard_of(split, row["key"]))
        for row in plan.evaluation.rows(dataset)
    ]
    if not rows:
        raise UsageError(f"the dataset has no images in {split}: there is nothing to attack")
    keys, labels, wnids, shards = zip(*rows, strict=True)
    images = GridAxis(keys, np.asarray(labels, np.int64), wnids, shards)
    foregrounds = images.sample(plan.foregrounds, "attack foreground")
    backgrounds = images.sample(plan.backgrounds, "attack background")
    chunk_size = max(1, min(_CHUNK, _CHUNK_FORWARDS // len(backgrounds)))
    return AttackGrid(
        foregrounds=foregrounds,
        backgrounds=backgrounds,
        is_full=len(foregrounds) == len(backgrounds) == len(images),
        # With an early stop, only a few pairs of a chunk are tried, so that `_CHUNK_FORWARDS` is no
        # limit. Chunks are still small, because the attack learns from earlier chunks which
        # backgrounds to try first.
        chunk_size=_CHUNK if plan.early_stop else chunk_size,
        units=_unit_numbers(EvalImages.read(dataset, split), foregrounds),
    )


def _unit_numbers(images: EvalImages, foregrounds: GridAxis) -> Labels:
    """Returns the number of each foreground's unit; see `AttackGrid.units`."""
    return images.unit_numbers[images.positions(pa.chunked_array([pa.array(foregrounds.keys)]))]


def check_variants(variants: Iterable[str]) -> None:
    """Raises UsageError if a dataset with these variants cannot be attacked."""
    existing = set(variants)
    missing = [name for name in ATTACK_VARIANTS if name not in existing]
    if missing:
        raise UsageError(
            f"an attack needs the variants {', '.join(ATTACK_VARIANTS)}, and the dataset has no "
            f"{', '.join(missing)}; generate it with them: see --variants"
        )
