"""Decoded pictures that a process keeps in memory for the models that come next.

A picture of 224 x 224 takes 150 kB. Parts for which the budget has no room are decoded for each
model, by any core in a third of a millisecond, which is less than most disks take to read as much.
What came first stays: models meet all parts in the same order, so that the least recently used one
would always be the one that is needed next.
"""

from __future__ import annotations

import math
import threading

import numpy as np
import torch
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class PixelCache:
    """Decoded parts by name, for all threads of a process.

    Args:
      budget: bytes of memory to use, 0 for none.
      pinned: whether a GPU copies from that memory.
    """

    def __init__(self, budget: int, pinned: bool = False) -> None:
        self._budget, self._pinned = budget, pinned
        self._parts: dict[str, Pixels] = {}
        self._used = 0
        self._lock = threading.Lock()

    def find(self, name: str) -> Pixels | None:
        """All pictures of a part, (n, S, S, 3) uint8; None if it was not kept."""
        return self._parts.get(name)

    def room(self, shape: tuple[int, int, int, int]) -> Pixels | None:
        """An array to be filled and kept, or given back; None if there is no room for it."""
        size = math.prod(shape)
        with self._lock:
            if not size or self._used + size > self._budget:
                return None
            self._used += size
        return pixel_array(shape, self._pinned)

    def keep(self, name: str, pixels: Pixels) -> None:
        """Keeps an array of `room` that has been filled."""
        self._parts[name] = pixels

    def give_back(self, pixels: Pixels) -> None:
        """Takes back the room of an array that is not kept."""
        with self._lock:
            self._used -= pixels.nbytes


def pixel_array(shape: tuple[int, int, int, int], pinned: bool) -> Pixels:
    """An array of (n, S, S, 3) uint8 that is not set; `pinned` if a GPU copies from it."""
    found: Pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).numpy()
    return found
