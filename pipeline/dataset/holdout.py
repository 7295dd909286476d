"""The division of a split into pictures for training and pictures for the test.

If a share is held out, a training picture shows nothing of a held-out image, neither as foreground
nor as background. In a mixed variant, each foreground takes the first replicate whose background is
not held out; a foreground without such a replicate is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import Row
from transforms.selection import held_out
from transforms.variants import MIXED, base_of


@dataclasses.dataclass(frozen=True)
class Holdout:
    """The part of a split that is held out for the test.

    Attributes:
      share: fraction of the split's groups of images to hold out; 0 holds nothing out.
      seed: seed of the choice of groups.
    """

    share: float = 0.0
    seed: int = 0

    def test_rows(self, rows: Iterable[Row]) -> list[Row]:
        """Returns the index rows of the images for the test; all of them if nothing is held out.
        Images of one group stay together."""
        rows = list(rows)
        if not self.share:
            return rows
        groups = [row.get("group") or row["key"] for row in rows]
        is_out = held_out(groups, self.share, self.seed)
        return [row for row, out in zip(rows, is_out, strict=True) if out]


ALL = Holdout()
"""Holds nothing out, so all images are for the test."""


def selected_rows(
    dataset: Dataset, split: str, holdout: Holdout = ALL, shard: int | None = None
) -> list[Row]:
    """Reads index rows of selected images.

    Args:
      dataset: the dataset to read.
      split: name of the split.
      holdout: decides which images are for the test; only their rows are returned.
      shard: number of an output shard; None for all shards.

    Returns:
      The rows, in the dataset's order.
    """
    rows = dataset.index(split) if shard is None else dataset.index_of_shard(split, shard)
    return holdout.test_rows(row for row in rows if row["selected"])


def training_pictures(
    dataset: Dataset, split: str, variant: str, holdout: Holdout
) -> dict[str, str]:
    """Chooses the pictures that a model is trained on.

    Args:
      dataset: the dataset to read.
      split: name of the split.
      variant: variant of the pictures, without the number of a replicate.
      holdout: the part of the split that is held out.

    Returns:
      For the key of each picture, the variant to take it from: `variant` itself or one of its
      replicates. Keys are in the dataset's order.
    """
    rows = selected_rows(dataset, split)
    test_keys = {row["key"] for row in holdout.test_rows(rows)} if holdout.share else set()
    names = [name for name in dataset.variants if base_of(name) == variant]
    pictures: dict[str, str] = {}
    for row in rows:
        if row["key"] in test_keys:
            continue
        for name in names:
            if variant not in MIXED or row[f"{name}_bg_key"] not in test_keys:
                pictures[row["key"]] = name
                break
    return pictures
