"""Divides one split into a part to train on and a part to test on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from transforms.hashing import keyed_hashes


def held_out(units: Sequence[str], share: float, seed: int = 0) -> NDArray[np.bool_]:
    """Chooses the images that are held out for the test.

    Whether an image is held out depends on its unit, the share and the seed alone. So images that
    are added later change nothing for the others, and a larger share holds out every image that a
    smaller share holds out.

    Args:
      units: (n,) unit of each image: its group, or its key if it has no group. A unit is never
        divided.
      share: share of the units that is held out on average, in [0, 1].
      seed: seed of the keyed hash.

    Returns:
      (n,) bool, True for images to test on.

    Raises:
      ValueError: the share is out of range.

    >>> held_out(["a", "b", "a", "c"], 0.5).tolist()
    [False, True, False, True]
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share that is held out must be between 0 and 1: got {share}")
    hashes = keyed_hashes(seed, "holdout", units)
    # A double holds the hash's upper 53 bits exactly, so a share of 1 holds out all units, and a
    # share of 0 holds out none.
    return np.asarray((hashes >> np.uint64(11)) < share * 2.0**53, np.bool_)
