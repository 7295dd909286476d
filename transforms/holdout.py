"""One split in two: what is trained on, and what is held out for the test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import keyed_hashes


def held_out(units: Sequence[str], share: float, seed: int = 0) -> NDArray[np.bool_]:
    """Which images are held out.

    An image's side depends on its unit alone: images that are added later move no other, and
    what a smaller share holds out, a larger one does, too.

    Args:
      units: (n,) the unit of each image, its group or else its key; a unit is never divided.
      share: in [0, 1], of the units, on average.
      seed: of the keyed hash.

    Returns:
      (n,) bool, True for the test.

    Raises:
      ValueError: a share out of range.

    >>> held_out(["a", "b", "a", "c"], 0.5).tolist()
    [False, True, False, True]
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share that is held out must be between 0 and 1: got {share}")
    hashes = keyed_hashes(seed, "holdout", units)
    # The upper 53 bits: a double holds them exactly, so 1 holds out all and 0 none.
    return np.asarray((hashes >> np.uint64(11)) < share * 2.0**53, np.bool_)
