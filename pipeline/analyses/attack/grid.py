"""What an attack does: which foregrounds meet which backgrounds, and in which chunks."""

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
"""What an attack reads of a dataset."""

_CHUNK = 16
_CHUNK_FORWARDS = 16_384


@dataclasses.dataclass(frozen=True)
class AttackPlan:
    """What to attack, and how.

    Attributes:
      evaluation: models, split, and how they are run.
      foregrounds, backgrounds: how many, all if None.
      early_stop: whether a foreground is done with when a background has turned it.
    """

    evaluation: Evaluation
    foregrounds: int | None
    backgrounds: int | None
    early_stop: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class GridAxis:
    """The foregrounds or the backgrounds of a grid, in the order of the dataset.

    Attributes:
      keys: of the images.
      labels: (n,) int64.
      wnids: their ImageNet classes.
      shards: the output shard of each.
    """

    keys: tuple[str, ...]
    labels: Labels
    wnids: tuple[str, ...]
    shards: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def sample(self, count: int | None, purpose: str) -> GridAxis:
        """`count` of them, spread evenly over the classes; all if None."""
        if count is None or count >= len(self):
            return self
        kept = sample_evenly(self.keys, self.labels, count, seed=0, purpose=purpose)
        return self.take(np.flatnonzero(kept).tolist())

    def take(self, positions: Sequence[int]) -> GridAxis:
        """Some of them."""
        return GridAxis(
            keys=tuple(self.keys[i] for i in positions),
            labels=self.labels[np.asarray(positions, np.int64)],
            wnids=tuple(self.wnids[i] for i in positions),
            shards=tuple(self.shards[i] for i in positions),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class AttackGrid:
    """Which images meet.

    Attributes:
      foregrounds, backgrounds: its sides.
      is_full: whether both are all selected images.
      chunk: how many foregrounds are done at a time, the unit of what is resumed.
      units: (F,) int64, the same for foregrounds of one group; None if none are.
    """

    foregrounds: GridAxis
    backgrounds: GridAxis
    is_full: bool
    chunk: int
    units: Labels | None = None

    @property
    def chunks(self) -> range:
        """Numbers of the chunks."""
        return range(-(-len(self.foregrounds) // self.chunk))

    def positions(self, chunk: int) -> range:
        """The foregrounds of a chunk."""
        return range(len(self.foregrounds))[chunk * self.chunk : (chunk + 1) * self.chunk]


def open_grid(dataset: Dataset, plan: AttackPlan) -> AttackGrid:
    """The grid of an attack; sampled by keyed hash, alike on every dataset of the same images.

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
        # Small, since an early stop learns from chunk to chunk, and few are left standing.
        chunk=_CHUNK if plan.early_stop else chunk,
        units=_unit_numbers(EvalImages.read(dataset, split), foregrounds),
    )


def _unit_numbers(images: EvalImages, foregrounds: GridAxis) -> Labels:
    return images.unit_numbers[images.positions(pa.chunked_array([pa.array(foregrounds.keys)]))]


def check_attack_variants(variants: Iterable[str]) -> None:
    """Raises UsageError if a dataset of these variants cannot be attacked."""
    missing = [name for name in ATTACK_VARIANTS if name not in set(variants)]
    if missing:
        raise UsageError(
            f"an attack needs the variants {', '.join(ATTACK_VARIANTS)}, and the dataset has no "
            f"{', '.join(missing)}; make it with them: see --variants"
        )
