"""Tests the run lengths of masks; `tests/generate/test_segmenters.py` tests those of images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from transforms.masks import MaskError, decode_runs, encode_runs

sides = st.integers(1, 40)


@given(sides.flatmap(lambda side: arrays.arrays(np.bool_, (side, side))))
def test_runs_are_the_mask(mask: NDArray[np.bool_]) -> None:
    runs = encode_runs(mask)
    assert (decode_runs(runs, len(mask)) == mask).all()
    with pytest.raises(MaskError):
        decode_runs(runs, len(mask) + 1)


@given(st.binary(max_size=60), sides)
def test_any_bytes_are_runs_or_an_error(data: bytes, side: int) -> None:
    try:
        mask = decode_runs(data, side)
    except MaskError:
        return
    assert mask.shape == (side, side)
