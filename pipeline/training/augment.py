"""Augment: random resized crop, flip and colour jitter, by torchvision's transforms (v2), whose
generator is seeded for (seed, epoch, key): neither the number of workers nor their order changes a
picture."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms import v2

from transforms.hashing import keyed_hashes, substream

Hashes = NDArray[np.uint64]


def augmentation_hashes(seed: int, keys: Iterable[str]) -> Hashes:
    """(n,) uint64: what the seeds of each image are derived from, in all epochs."""
    return keyed_hashes(seed, "augmentation", keys)


def seeds_of(hashes: Hashes, epoch: int) -> Hashes:
    """Seeds for one epoch, (n,) uint64 of `augmentation_hashes`; epochs are from 0 on."""
    return substream(hashes, epoch)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """How training pictures are varied.

    Attributes:
      size: side of the result, in pixels.
      min_area: least share of the picture that a crop covers; sides are between 3:4 and 4:3.
      flip: chance that left and right change places.
      jitter: brightness, contrast and saturation are each multiplied by a factor between
        1 - jitter and 1 + jitter, in random order. In [0, 1].
    """

    size: int
    min_area: float = 0.08
    flip: float = 0.5
    jitter: float = 0.1

    @functools.cached_property
    def _transform(self) -> v2.Transform:
        return v2.Compose(
            [
                v2.RandomResizedCrop(self.size, scale=(self.min_area, 1.0), antialias=True),
                v2.RandomHorizontalFlip(self.flip),
                v2.ColorJitter(*[self.jitter] * 3),
            ]
        )

    def apply(self, pixels: NDArray[np.uint8], seed: int) -> torch.Tensor:
        """Varies a picture.

        Args:
          pixels: (H, W, 3) uint8 RGB.
          seed: of `seeds_of`.

        Returns:
          (3, size, size) uint8.
        """
        picture = torch.from_numpy(pixels).permute(2, 0, 1)
        # The generator of this thread is the network's, too.
        with torch.random.fork_rng(devices=[]):
            # Of this processor alone: others are the network's.
            torch.default_generator.manual_seed(seed)
            varied: torch.Tensor = self._transform(picture)
        return varied
