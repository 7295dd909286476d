"""The grid of an encoder: few foregrounds, each put on each of few other images' backgrounds."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.analyses.attack.results import ATTACK_VARIANTS, GridAxis
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.planned import Evaluation
from transforms.feature_shares import FEWEST, feature_shares
from transforms.hashing import keyed_hash
from transforms.selection import lowest_hashes

if TYPE_CHECKING:
    from pipeline.models.predict import Predictor

SIDE, MOST_CLASSES = 27, 9
"""The most foregrounds, backgrounds, and classes of a grid. Nine classes have three of each."""
_PURPOSE = "feature grid"


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureGrid:
    """All pairs of as many foregrounds and backgrounds of each class, without a common group."""

    split: str
    foregrounds: GridAxis
    backgrounds: GridAxis

    @classmethod
    def choose(cls, dataset: Dataset, evaluation: Evaluation) -> Self | None:
        """Chooses among the tested images, one of each group, by hashes of their keys.

        It is None if the dataset lacks a variant that composites are made of, if its pictures are
        not fed as they are stored, or if there are fewer than `FEWEST` foregrounds or backgrounds.
        """
        is_stored = evaluation.predict.eval_input == "stored"
        if not (is_stored and set(ATTACK_VARIANTS).issubset(dataset.variants)):
            return None
        split, rows = evaluation.split, evaluation.rows(dataset)
        hashes = {row["key"]: keyed_hash(0, _PURPOSE, row["key"]) for row in rows}
        by_hash = sorted(rows, key=lambda row: hashes[row["key"]])
        # Of a group, the image with the lowest hash stays.
        alone = {row.get("group") or row["key"]: row for row in reversed(by_hash)}
        counts = Counter(row["label"] for row in alone.values())
        classes = sorted(
            (label for label, count in counts.items() if count > 1),
            key=lambda label: keyed_hash(0, _PURPOSE, str(label)),
        )[:MOST_CLASSES]
        most = min((counts[label] // 2 for label in classes), default=0)
        each = min(most, SIDE // max(len(classes), 1))
        if each * len(classes) < FEWEST:
            return None
        kept = {row["key"] for row in alone.values() if row["label"] in classes}
        images = GridAxis.from_rows(dataset, split, [row for row in rows if row["key"] in kept])
        first, both = (
            lowest_hashes(images.keys, images.labels, count, seed=0, purpose=_PURPOSE)
            for count in (each, 2 * each)
        )
        roles = (np.flatnonzero(role).tolist() for role in (first, both & ~first))
        return cls(split, *map(images.take, roles))

    @property
    def pictures(self) -> int:
        """Number of composites."""
        return len(self.foregrounds) * len(self.backgrounds)

    def inputs(self, dataset: Dataset) -> list[object]:
        """Returns what the pixels of the composites follow from, for a fingerprint."""
        shards = sorted({*self.foregrounds.shards, *self.backgrounds.shards})
        digests = [
            file.sha256
            for shard in shards
            for file in dataset.shard_files(self.split, shard, ATTACK_VARIANTS)
        ]
        return [self.foregrounds.keys, self.backgrounds.keys, digests]

    def run(self, predictor: Predictor, dataset: Dataset) -> NDArray[np.float32]:
        """Encodes all composites: (foregrounds, backgrounds, width) float32.

        Raises:
          ModelError: the encoder fails, or its features are not numbers.
          JobError: a file is broken, or a stored picture cannot be decoded.
        """
        # Imported here, so that only machines that run encoders wait for torch.
        from pipeline.analyses.attack.arrays import encode_all

        return encode_all(predictor, dataset, self.split, self.foregrounds, self.backgrounds)


def summarize_grid(
    features: NDArray[np.float32],
    mean: NDArray[np.floating],
    std: NDArray[np.floating],
    grid: FeatureGrid,
) -> dict[str, Any]:
    """Computes what `FeaturesResult` says of a grid, by the names of its fields.

    Args:
      features: (foregrounds, backgrounds, width), as `FeatureGrid.run` returns them.
      mean, std: (width,) mean and standard deviation by which features are standardised. A feature
        whose standard deviation is 0 is divided by 1.
    """
    standardised = (features - np.float64(mean)) / np.where(std > 0, std, 1)
    labels = grid.backgrounds.labels
    return {
        "foregrounds": len(grid.foregrounds),
        "backgrounds": len(labels),
        "classes": len(np.unique(labels)),
        "shares": feature_shares(standardised, labels),
    }
