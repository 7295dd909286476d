"""Augmentation: random resized crop, flip and colour jitter, by torchvision's transforms (v2).

Torch's random generator is seeded for each (seed, epoch, key), so that neither the number of
workers nor the order in which they work changes a picture.
"""

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
    """Returns a hash for each image, (n,) uint64, from which `epoch_seeds` derives its seeds."""
    return keyed_hashes(seed, "augmentation", keys)


def epoch_seeds(hashes: Hashes, epoch: int) -> Hashes:
    """Returns the seeds of one epoch.

    Args:
      hashes: (n,) uint64, from `augmentation_hashes`.
      epoch: number of the epoch, counted from 0.

    Returns:
      (n,) uint64, a seed for each image.
    """
    return substream(hashes, epoch)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """Random changes of training pictures.

    Attributes:
      size: side of the augmented picture, in pixels.
      min_area: smallest share of the picture's area that a crop covers. The aspect ratio of a crop
        is between 3:4 and 4:3.
      flip: probability of a horizontal flip.
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
        """Augments a picture.

        Args:
          pixels: (H, W, 3) uint8 RGB.
          seed: the picture's seed, from `epoch_seeds`.

        Returns:
          (3, size, size) uint8 RGB.
        """
        picture = torch.from_numpy(pixels).permute(2, 0, 1)
        # Restores the generator's state, because without workers the network draws from it, too.
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would also seed the GPU's generators, which dropout uses.
            torch.default_generator.manual_seed(seed)
            augmented: torch.Tensor = self._transform(picture)
        return augmented
