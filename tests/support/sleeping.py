"""A segmenter that takes its time without using the processor."""

import os
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def segment(image: NDArray[np.uint8], box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Returns the box; sleeps for IN9_TEST_SLEEP seconds first.

    If there is a folder IN9_TEST_MEET, first waits in it for a second machine.
    """
    if meet := os.environ.get("IN9_TEST_MEET"):
        Path(meet, os.uname().nodename).touch()
        while len(os.listdir(meet)) < 2:
            time.sleep(0.1)
    time.sleep(float(os.environ["IN9_TEST_SLEEP"]))
    xmin, ymin, xmax, ymax = box
    mask = np.zeros(image.shape[:2], bool)
    mask[ymin : ymax + 1, xmin : xmax + 1] = True
    return mask


segment.version = 1  # type: ignore[attr-defined]
