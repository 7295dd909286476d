"""Recovers the true backgrounds of mixed pictures, because the release does not reliably name them.

They are searched for among the tiled backgrounds of the whole split, which form the pool.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.records import ACCEPTED
from pipeline.released.archive_listing import ReleasedImage, read_contents
from pipeline.released.examine import ExaminedShard
from transforms.codec import decode_image
from transforms.geometry import Mask
from transforms.matching import block_means_outside, compare, decide, nearest

_CANDIDATES = 4
"""Number of backgrounds that are compared pixel by pixel, besides the background that the picture's
name claims."""


@dataclasses.dataclass(frozen=True)
class MixedPicture:
    """A mixed picture.

    Attributes:
      data: its encoded bytes.
      mask: (S, S) bool, True on its foreground, for pictures of S pixels a side.
      named: key of the background that its name claims; None if it claims none.
    """

    data: bytes
    mask: Mask
    named: str | None


@dataclasses.dataclass(frozen=True)
class Recovered:
    """The background of a mixed picture, as its pixels show it.

    Attributes:
      background: the image that the background comes from; None if that is uncertain.
      difference, next_difference: mean difference outside the mask, in levels of 0 to 255, of the
        best and of the next best background; None if the mask leaves too few pixels to compare.
        The second is also None if the pool has a single background.
    """

    background: ReleasedImage | None
    difference: float | None = None
    next_difference: float | None = None


def recover(pictures: Sequence[MixedPicture], pool: BackgroundPool) -> list[Recovered]:
    """Finds the backgrounds of mixed pictures in the pool of their split, which must not be empty.

    Raises:
      OSError: a background cannot be read.
    """
    if not pictures:
        return []
    pixels = [decode_image(picture.data) for picture in pictures]
    outside = [block_means_outside(p, m.mask) for p, m in zip(pixels, pictures, strict=True)]
    means, free = (np.stack(parts) for parts in zip(*outside, strict=True))
    results = []
    for picture, image, near in zip(
        pictures, pixels, nearest(pool.described, means, free, _CANDIDATES), strict=True
    ):
        positions = [int(position) for position in near]
        named = pool.position.get(picture.named) if picture.named else None
        if named is not None and named not in positions:
            positions.append(named)
        near_images = [pool.images[position] for position in positions]
        contents = read_contents([image.files["only_bg_t"].place for image in near_images])
        backgrounds = [decode_image(content) for content in contents]
        differences = compare(image, picture.mask, backgrounds)
        if differences is None:
            results.append(Recovered(None))
            continue
        match = decide(differences)
        true = near_images[match.position] if match.is_sure else None
        results.append(Recovered(true, match.difference, match.next_difference))
    return results


@dataclasses.dataclass(frozen=True, eq=False)
class BackgroundPool:
    """The tiled backgrounds of a split.

    With pictures of 224 pixels a side, a background's description takes 2.4 KB and its
    `ReleasedImage` 4.5 KB; that is 0.3 GB for the 45,405 images of the largest released split.

    Attributes:
      images: the N images that the backgrounds come from.
      described: their `block_means`, (N, B, 3) uint8: mean colours of B blocks for
        each background.
      digest: hash of the content of all backgrounds.
    """

    images: list[ReleasedImage]
    described: NDArray[np.uint8]
    digest: str

    @classmethod
    def from_shards(cls, examined: Iterable[ExaminedShard]) -> BackgroundPool:
        """Collects the backgrounds of a split's accepted images; empty if the archive has no
        `only_bg_t`."""
        images, blocks, contents = [], [], []
        for shard in examined:
            listed = {image.stem: image for image in shard.listed.images}
            for row in shard.rows:
                if row["status"] == ACCEPTED and row["description"] is not None:
                    images.append(listed[row["key"]])
                    blocks.append(np.frombuffer(row["description"], np.uint8).reshape(-1, 3))
                    contents.append([row["key"], row["background"]])
        described = np.stack(blocks) if blocks else np.empty((0, 0, 3), np.uint8)
        return cls(images, described, fingerprint(contents))

    @functools.cached_property
    def position(self) -> dict[str, int]:
        """Position of each key's background in the pool."""
        return {image.stem: i for i, image in enumerate(self.images)}
