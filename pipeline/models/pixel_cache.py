"""A cache of decoded pictures, which a process keeps in memory for the models that follow.

A picture of 224 x 224 takes 150 kB. Parts that exceed the budget are decoded again for each model,
which takes a third of a millisecond per picture and core; most disks would take longer to read
150 kB. Nothing is evicted: all models read the parts in the same order, so the least recently used
part is always the part that is needed next.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class PixelCache:
    """Decoded parts by name, shared by all threads of a process.

    Args:
      budget: memory to use, in bytes; 0 disables the cache.
      pinned: whether to allocate pinned memory, for copies to a GPU.
    """

    def __init__(self, budget: int, pinned: bool = False) -> None:
        self._budget, self._pinned = budget, pinned
        self._parts: dict[str, Pixels] = {}
        self._used = 0
        self._lock = threading.Lock()

    def find(self, name: str) -> Pixels | None:
        """Returns all pictures of a part, (n, S, S, 3) uint8; None if they are not cached."""
        return self._parts.get(name)

    def allocate(self, shape: tuple[int, int, int, int]) -> Pixels | None:
        """Allocates an array of this shape; None if it exceeds the remaining budget. The caller
        fills it, and then calls `keep` or `give_back`."""
        size = math.prod(shape)
        with self._lock:
            if not size or self._used + size > self._budget:
                return None
            self._used += size
        return pixel_array(shape, self._pinned)

    def keep(self, name: str, pixels: Pixels) -> None:
        """Stores an array from `allocate` that has been filled."""
        self._parts[name] = pixels

    def give_back(self, pixels: Pixels) -> None:
        """Frees the budget of an array from `allocate` that will not be kept."""
        with self._lock:
            self._used -= pixels.nbytes


def pixel_array(shape: tuple[int, int, int, int], pinned: bool) -> Pixels:
    """Allocates an uninitialised uint8 array of shape (n, S, S, 3), in pinned memory if asked."""
    pixels: Pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).numpy()
    return pixels
