"""Many small objects in little memory."""

import array
import pickle
import zlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from typing_extensions import override

T = TypeVar("T")


class Packed(Sequence[T]):
    """Objects that are pickled and compressed, and made again when they are asked for.

    Each is compressed alone, with the first as the dictionary, so it takes no more than what tells
    it from the first, and can be read without the others.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._first, self._data, self._ends = b"", bytearray(), array.array("Q", [0])
        for pickled in map(pickle.dumps, items):
            self._first = self._first or pickled
            # Negative: without a header and a checksum, which would take ten bytes.
            packer = zlib.compressobj(wbits=-zlib.MAX_WBITS, zdict=self._first)
            self._data += packer.compress(pickled) + packer.flush()
            self._ends.append(len(self._data))

    @override
    def __len__(self) -> int:
        return len(self._ends) - 1

    # Neither slices nor negative numbers are supported; mypy refuses slices.
    @override
    def __getitem__(self, index: int) -> T:  # type: ignore[override]
        packed = self._data[self._ends[index] : self._ends[index + 1]]
        item: T = pickle.loads(zlib.decompressobj(-zlib.MAX_WBITS, self._first).decompress(packed))
        return item
