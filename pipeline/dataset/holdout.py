"""Which pictures of a split are trained on, and which are left for the test.

With a share held out, a training picture shows nothing of a held-out image: neither its
foreground nor its background is one. Of a mixed variant's replicates, each foreground takes the
first with such a background; a foreground without any is left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from pipeline.dataset.folder import Dataset
from transforms.holdout import held_out
from transforms.variants import MIXED, base_of


@dataclasses.dataclass(frozen=True)
class Holdout:
    """What is held out of a split.

    Attributes:
      share: of its units, 0 for nothing.
      seed: of the choice.
    """

    share: float = 0.0
    seed: int = 0

    def tested(self, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """The index rows of images that are left for the test; all of them if nothing is held
        out. Images of one group stay together."""
        rows = list(rows)
        if not self.share:
            return rows
        outside = held_out([row.get("group") or row["key"] for row in rows], self.share, self.seed)
        return [row for row, out in zip(rows, outside, strict=True) if out]


ALL = Holdout()
"""Nothing is held out: all images are tested on."""


def selected_rows(
    dataset: Dataset, split: str, holdout: Holdout = ALL, shard: int | None = None
) -> list[dict[str, Any]]:
    """Reads index rows of selected images.

    Args:
      dataset: the dataset.
      split: its split.
      holdout: what is held out of it; rows are of the images that are left for the test.
      shard: an output shard, None for all of them.

    Returns:
      The rows, in the dataset's order.
    """
    rows = dataset.index(split) if shard is None else dataset.index_of_shard(split, shard)
    return holdout.tested(row for row in rows if row["selected"])


def training_pictures(
    dataset: Dataset, split: str, variant: str, holdout: Holdout
) -> dict[str, str]:
    """The pictures that a model is trained on.

    Args:
      dataset: the dataset.
      split: its split.
      variant: of pictures, without the number of a replicate.
      holdout: what is held out.

    Returns:
      Key to the variant whose picture of it is taken, itself or one of its replicates; in the
      dataset's order.
    """
    rows = selected_rows(dataset, split)
    outside = {row["key"] for row in holdout.tested(rows)} if holdout.share else set()
    names = [name for name in dataset.variants if base_of(name) == variant]
    found: dict[str, str] = {}
    for row in rows:
        if row["key"] in outside:
            continue
        for name in names:
            if variant not in MIXED or row[f"{name}_bg_key"] not in outside:
                found[row["key"]] = name
                break
    return found
