"""Masks as NumPy files."""

from __future__ import annotations

import io

import numpy as np

from transforms.codec import UndecodableError
from transforms.geometry import Mask


def encode_npy(mask: Mask) -> bytes:
    """Encodes a (H, W) bool mask as a `.npy` file of uint8, 1 on the foreground."""
    buffer = io.BytesIO()
    np.save(buffer, mask.astype(np.uint8), allow_pickle=False)
    return buffer.getvalue()


def decode_npy(data: bytes) -> Mask:
    """Decodes a `.npy` file: (H, W) bool, True where any channel is not 0.

    Raises:
      UndecodableError: the data is not a complete array of numbers in two or three dimensions.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(file)
    except Exception as error:  # NumPy evaluates the header, which raises whatever it provokes.
        raise UndecodableError(f"broken NumPy file: {type(error).__name__}") from error
    # The size is checked first, because loading allocates whatever the header claims.
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if dtype.kind not in "biuf" or size != len(data) - file.tell():
        raise UndecodableError("broken NumPy file: its header does not fit its content")
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (TypeError, ValueError) as error:
        raise UndecodableError(f"broken NumPy file: {type(error).__name__}") from error
    if array.ndim not in (2, 3):
        raise UndecodableError(f"a mask of {array.ndim} dimensions")
    mask: Mask = array != 0 if array.ndim == 2 else (array != 0).any(axis=2)
    return mask
