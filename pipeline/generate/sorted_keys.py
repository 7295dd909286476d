"""Keys of a table that is in their order: found by bisection, and never made Python strings as a
whole, which would take ten times the memory."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence
from typing import overload

import pyarrow as pa

_AT_ONCE = 65_536
"""Keys that are Python strings at a time."""


class SortedKeys(Sequence[str]):
    """Keys in ascending order.

    Args:
      array: (n,) strings in the order of their UTF-8 bytes, none of them null.
    """

    def __init__(self, array: pa.Array) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            found: list[str] = self._array[place].to_pylist()
            return found
        key: str = self._array[int(place)].as_py()
        return key

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _AT_ONCE):
            yield from self[start : start + _AT_ONCE]

    def find(self, key: str) -> int | None:
        """Place of a key, None if it is not there."""
        place = bisect.bisect_left(self, key)
        return place if place < len(self) and self[place] == key else None
