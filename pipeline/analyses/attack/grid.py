"""The grid of an attack: its foregrounds, its backgrounds, and the chunks they are run in."""

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
from transforms.attack_grid import sample_evenly

ATTACK_VARIANTS = ("original", "fg_mask", "only_bg_t")
"""The variants that an attack reads."""

_CHUNK = 16
"""The most foregrounds in a chunk."""
_CHUNK_FORWARDS = 16_384
"""The most composites in a chunk, unless the attack stops early."""


@dataclasses.dataclass(frozen=True)
class AttackPlan:
    """The settings of an attack.

    Attributes:
      evaluation: the models, the split, and settings.
      foregrounds, backgrounds: number of images to sample for each, all if None.
      early_stop: whether a foreground is dropped once a background has turned its prediction wrong.
    """

    evaluation: Evaluation
    foregrounds: int | None
    backgrounds: int | None
    early_stop: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class GridAxis:
    """The foregrounds or the backgrounds of a grid, in the order of the dataset.

    Attributes:
      keys: of the n images.
      labels: (n,) int64.
      wnids: ImageNet classes of the images.
      shards: output shards of the images.
    """

    keys: tuple[str, ...]
    labels: Labels
    wnids: tuple[str, ...]
    shards: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def sample(self, count: int | None, purpose: str) -> GridAxis:
        """Draws `count` images, spread evenly over the classes; all if None."""
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
    """All pairs of F foregrounds and B backgrounds.

    Attributes:
      foregrounds, backgrounds: its two axes.
      is_full: whether each axis holds all selected images.
      chunk: number of foregrounds in a chunk, the unit in which an attack is resumed.
      units: (F,) int64, equal for foregrounds of the same group; None without groups.
    """

    foregrounds: GridAxis
    backgrounds: GridAxis
    is_full: bool
    chunk: int
    units: Labels | None = None

    @property
    def chunks(self) -> range:
        """Numbers of all chunks."""
        return range(-(-len(self.foregrounds) // self.chunk))

    def positions(self, chunk: int) -> range:
        """Returns the positions of a chunk's foregrounds."""
        return range(len(self.foregrounds))[chunk * self.chunk : (chunk + 1) * self.chunk]


def open_grid(dataset: Dataset, plan: AttackPlan) -> AttackGrid:
    """Builds the grid of an attack. Images are sampled by keyed hash, so datasets of the same
    images get the same grid.

    Raises:
      UsageError: a variant is missing, or there are no images.
    """
    check_attack_variants(dataset.variants)
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
    chunk = max(1, min(_CHUNK, _CHUNK_FORWARDS // len(backgrounds)))
    return AttackGrid(
        foregrounds=foregrounds,
        backgrounds=backgrounds,
        is_full=len(foregrounds) == len(backgrounds) == len(images),
        # An early stop tries few of the pairs, so they do not limit its chunks. Chunks are still
        # small, because it learns from earlier chunks which backgrounds to try first.
        chunk=_CHUNK if plan.early_stop else chunk,
        units=_unit_numbers(EvalImages.read(dataset, split), foregrounds),
    )


def _unit_numbers(images: EvalImages, foregrounds: GridAxis) -> Labels:
    return images.unit_numbers[images.positions(pa.chunked_array([pa.array(foregrounds.keys)]))]


def check_attack_variants(variants: Iterable[str]) -> None:
    """Raises UsageError if a dataset with these variants cannot be attacked."""
    missing = [name for name in ATTACK_VARIANTS if name not in set(variants)]
    if missing:
        raise UsageError(
            f"an attack needs the variants {', '.join(ATTACK_VARIANTS)}, and the dataset has no "
            f"{', '.join(missing)}; generate it with them: see --variants"
        )
