"""The grid of an encoder: few foregrounds, each put on each of few other images' backgrounds."""

import dataclasses
import functools
from collections import Counter
from collections.abc import Generator
from typing import Self

import numpy as np
import pyarrow as pa
from typing_extensions import override

from pipeline.analyses.attack.results import ATTACK_VARIANTS, GridAxis
from pipeline.dataset.folder import Dataset
from pipeline.evaluate.planned import Evaluation
from pipeline.evaluate.predict_shards import ShardPictures
from transforms.codec import decode_image, decode_mask, encode_png
from transforms.feature_shares import FEWEST
from transforms.hashing import fingerprint, keyed_hash
from transforms.renderings import composite
from transforms.selection import lowest_hashes
from transforms.variants import MASK, ONLY_BG_T, ORIGINAL, VariantName

SIDE, MOST_CLASSES = 27, 9
"""The most foregrounds, backgrounds, and classes of a grid. Nine classes have three of each."""
_PURPOSE = "feature grid"
_SHARD = 99_999
"""A number that no output shard has."""


@dataclasses.dataclass(frozen=True, eq=False)
class FeatureGrid(ShardPictures):
    """Composites of all foregrounds with all backgrounds, which are read as pictures of a shard.

    Classes have as many foregrounds and backgrounds each. No two of these are of one group.
    """

    _: dataclasses.KW_ONLY
    foregrounds: GridAxis
    backgrounds: GridAxis

    @classmethod
    def choose(cls, dataset: Dataset, evaluation: Evaluation) -> Self | None:
        """Chooses images among those that are tested, by hashes of their keys.

        Returns None if the dataset lacks a variant that composites are made of, or has images for
        fewer than `FEWEST` foregrounds and backgrounds.
        """
        if not set(ATTACK_VARIANTS).issubset(dataset.variants):
            return None
        split, rows = evaluation.split, evaluation.rows(dataset)
        falling = sorted(rows, key=lambda row: keyed_hash(0, _PURPOSE, row["key"]), reverse=True)
        # The image with the lowest hash of a group stands for the group.
        of_groups = {row.get("group") or row["key"]: row for row in falling}.values()
        counts = Counter(row["label"] for row in of_groups)
        by_hash = sorted(counts, key=lambda label: keyed_hash(0, _PURPOSE, str(label)))
        # Two images or more of a class, of which its share is estimated, count more than classes.
        classes, each = max(
            (
                ([label for label in by_hash if counts[label] >= 2 * each][:MOST_CLASSES], each)
                for each in range(1, SIDE // max(1, min(len(counts), MOST_CLASSES)) + 1)
            ),
            key=lambda one: (len(one[0]) >= FEWEST and one[1] > 1, len(one[0]) * one[1]),
        )
        if each * len(classes) < FEWEST:
            return None
        kept = {row["key"] for row in of_groups if row["label"] in classes}
        images = GridAxis.from_rows(dataset, split, [row for row in rows if row["key"] in kept])
        first, both = (
            lowest_hashes(images.keys, images.labels, count, seed=0, purpose=_PURPOSE)
            for count in (each, 2 * each)
        )
        foregrounds, backgrounds = (
            images.take(np.flatnonzero(role).tolist()) for role in (first, both & ~first)
        )
        return cls(
            *(dataset, split, _SHARD, VariantName("grid")),
            foregrounds=foregrounds,
            backgrounds=backgrounds,
        )

    @property
    @override
    def name(self) -> str:
        """Fingerprint of the pictures."""
        return fingerprint(
            self.foregrounds.keys,
            self.backgrounds.keys,
            [
                file.sha256
                for shard in sorted({*self.foregrounds.shards, *self.backgrounds.shards})
                for file in self.dataset.shard_files(self.split, shard, ATTACK_VARIANTS)
            ],
        )

    @property
    @override
    def count(self) -> int:
        return len(self.foregrounds) * len(self.backgrounds)

    @override
    def tables(self, columns: tuple[str, ...]) -> Generator[pa.Table, None, None]:
        """Yields a table for each foreground.

        Raises JobError or OSError, for the reasons of `Dataset.samples`, or if a stored picture
        cannot be decoded.
        """
        # Imported here, so that only machines that run encoders wait for torch.
        from pipeline.analyses.attack.arrays import axis_samples, decoded

        samples = functools.partial(axis_samples, self.dataset, self.split)
        originals = decoded(samples(ORIGINAL, self.foregrounds), decode_image)
        masks = decoded(samples(MASK, self.foregrounds), decode_mask)
        backgrounds = list(decoded(samples(ONLY_BG_T, self.backgrounds), decode_image))
        for key, original, mask in zip(self.foregrounds.keys, originals, masks, strict=True):
            images = [
                encode_png(composite(original, mask, background)) if columns else b""
                for background in backgrounds
            ]
            keys = [f"{key}+{background}" for background in self.backgrounds.keys]
            yield pa.table({"key": keys, "image": pa.array(images, pa.binary())})
