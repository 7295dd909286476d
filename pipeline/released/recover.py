"""The true background of a mixed picture, which the release has lost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from pipeline.released.archive import read_places
from pipeline.released.listing import ReleasedImage
from pipeline.released.pool import BackgroundPool
from transforms.codec import decode_image
from transforms.geometry import Mask
from transforms.matching import compare, decide, describe_outside, nearest

_CANDIDATES = 4
"""Backgrounds that are compared pixel by pixel, beside the one that the name says."""


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A mixed picture.

    Attributes:
      data: its encoded bytes.
      mask: (S, S) bool of its foreground.
      named: key of the background that its name says, if any.
    """

    data: bytes
    mask: Mask
    named: str | None


@dataclasses.dataclass(frozen=True)
class Recovered:
    """What its pixels say.

    Attributes:
      background: the image whose background it is, None if that is not sure.
      difference, next_difference: mean levels of 0 to 255 by which the best background differs
        outside of the mask, and the next best; None where there is none to compare.
    """

    background: ReleasedImage | None
    difference: float | None = None
    next_difference: float | None = None


def recover(pictures: Sequence[Mixed], pool: BackgroundPool) -> list[Recovered]:
    """Finds the backgrounds of mixed pictures among those of their split."""
    if not pictures:
        return []
    pixels = [decode_image(picture.data) for picture in pictures]
    outside = [describe_outside(p, m.mask) for p, m in zip(pixels, pictures, strict=True)]
    means, free = (np.stack(parts) for parts in zip(*outside, strict=True))
    found = []
    for picture, image, near in zip(
        pictures, pixels, nearest(pool.described, means, free, _CANDIDATES), strict=True
    ):
        positions = [int(position) for position in near]
        named = pool.position.get(picture.named) if picture.named else None
        if named is not None and named not in positions:
            positions.append(named)
        near_images = [pool.images[position] for position in positions]
        contents = read_places([image.files["only_bg_t"].place for image in near_images])
        backgrounds = [decode_image(content) for content in contents]
        differences = compare(image, picture.mask, backgrounds)
        if differences is None:
            found.append(Recovered(None))
            continue
        match = decide(differences)
        true = near_images[match.position] if match.is_sure else None
        found.append(Recovered(true, match.difference, match.next_difference))
    return found
