"""Many small objects as columns, which take a tenth of the memory."""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa
from typing_extensions import override

from transforms.hashing import text_bytes

T = TypeVar("T")

_ROWS = 1 << 12
"""Number of objects in a batch."""
_KEY = b"\xff"
"""Stands for the key in other text, because no encoded text has this byte."""


class Columns(Sequence[T]):
    """Objects of a dataclass as Arrow columns, from which each is made again when it is asked for.

    Most text of an object, such as its path, holds its key. It is kept without the key, and what is
    left is mostly equal in many objects, so that a batch keeps it once.

    Args:
      kind: the dataclass. Its fields are text, numbers or None, and its field `key` is text.
      items: the objects.
    """

    def __init__(self, kind: type[T], items: Iterable[T]) -> None:
        self._kind, rest = kind, iter(items)
        # The key comes first, because all others are decoded with it.
        fields = dataclasses.fields(kind)  # type: ignore[arg-type]
        self._names = ("key", *(field.name for field in fields if field.name != "key"))
        batches = iter(lambda: list(itertools.islice(rest, _ROWS)), [])
        self._batches = [[*self._columns(batch)] for batch in batches]

    def _columns(self, items: list[Any]) -> Iterator[pa.Array]:
        keys = [text_bytes(item.key) for item in items]
        yield pa.array(keys, pa.binary())
        for name in self._names[1:]:
            column = pa.array([*map(_encoded, map(operator.attrgetter(name), items), keys)])
            each_once = column.dictionary_encode()
            yield each_once if 2 * len(each_once.dictionary) < len(column) else column

    def _made(self, values: Iterable[Any]) -> T:
        key, *others = values
        decoded = (_decoded(value, key) for value in (key, *others))
        return self._kind(**dict(zip(self._names, decoded, strict=True)))

    @override
    def __len__(self) -> int:
        return sum(len(columns[0]) for columns in self._batches)

    @override
    def __getitem__(self, index: Any) -> Any:
        # Neither slices nor negative numbers are supported.
        batch, row = divmod(index, _ROWS)
        return self._made(column[row].as_py() for column in self._batches[batch])

    @override
    def __iter__(self) -> Iterator[T]:
        for columns in self._batches:
            yield from map(self._made, zip(*(c.to_pylist() for c in columns), strict=True))


def _encoded(value: Any, key: bytes) -> Any:
    return text_bytes(value).replace(key or _KEY, _KEY) if isinstance(value, str) else value


def _decoded(value: Any, key: bytes) -> Any:
    return (
        value.replace(_KEY, key).decode("utf-8", "surrogatepass")
        if isinstance(value, bytes)
        else value
    )
