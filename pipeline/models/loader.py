"""Loader: parts of a dataset to batches of pixels, read and decoded ahead of the network.

    parts -> files, read ahead in the background -> batches -> decoded, several pictures at once

Files are opened while those before them are at work, so that nobody waits for storage. Batches are
cut within a part: scores do not depend on how a runner bundles parts.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import BrokenPictureError, JobError
from pipeline.models.pixel_cache import PixelCache, pixel_array
from pipeline.storage.parallel import InBackground
from transforms.codec import UndecodableError

Pixels = NDArray[np.uint8]
Decode = Callable[[bytes, Pixels], None]
"""Fills an (S, S, 3) array with the picture that bytes hold."""

_FILES_AHEAD = 2
_TABLES_AHEAD = 2
"""Of each file that is read ahead: its next few MB."""
_AT_ONCE = 16
"""Pictures that a thread decodes in a row."""


class Part(Protocol):
    """Pictures that are shown to a model one after another."""

    @property
    def name(self) -> str:
        """Identifies the pictures, so that what was decoded under that name can be taken; empty
        for those that are not kept."""

    @property
    def count(self) -> int:
        """How many there are; of those without a name, nobody asks."""

    def tables(self, columns: tuple[str, ...]) -> Generator[pa.Table, None, None]:
        """Reads the pictures in order, some at a time: `key` and others, before the given
        columns, none or `image`: the encoded bytes."""


P = TypeVar("P", bound=Part)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch(Generic[P]):
    """Pictures that are shown to a model together.

    Attributes:
      part: that they are of.
      rows: what the part says of them, n rows.
      pixels: (n, S, S, 3) uint8, until the batch is handed back.
      is_new: whether they were decoded, not found in the cache.
    """

    part: P
    rows: pa.Table
    pixels: Pixels
    is_new: bool
    _buffer: Pixels | None = None
    """What is free when the batch is handed back."""
    _whole: Pixels | None = None
    """The part's pictures, which are to be kept when this batch, the last one, is decoded."""


class Loader(Generic[P]):
    """Turns parts into batches.

    Args:
      decode: of each picture.
      side: S, of all of them.
      batch_size: pictures in a batch; the last one of a part may have fewer.
      cache: of decoded parts.
      kind: says how they are decoded, in the names of the cache.
      threads: that decode.
      ahead: batches that are decoded beyond the one that is taken. At 0, decoding takes turns with
        what the taker does.
      pinned: whether a GPU copies from the arrays.
    """

    def __init__(
        self,
        decode: Decode,
        side: int,
        batch_size: int,
        *,
        cache: PixelCache,
        kind: str,
        threads: int,
        ahead: int = 0,
        pinned: bool = False,
    ) -> None:
        self._decode, self._side, self._size = decode, side, batch_size
        self._cache, self._kind = cache, kind
        self._threads, self._ahead, self._pinned = threads, ahead, pinned
        self._free: list[Pixels] = []

    def batches(self, parts: Iterable[P]) -> Generator[Batch[P], None, None]:
        """Loads parts, in order. Each batch is to be handed back.

        Raises:
          BrokenPictureError: a picture cannot be decoded.
          JobError: a part has other pictures than it says.
          Exception: whatever reading a part raises.
        """
        waiting: collections.deque[tuple[Batch[P], list[Future[None]]]] = collections.deque()
        with (
            ThreadPoolExecutor(self._threads) as pool,
            contextlib.closing(self._batches(parts)) as batches,
        ):
            try:
                for batch in batches:
                    waiting.append((batch, self._begin(pool, batch)))
                    if len(waiting) > self._ahead:
                        yield self._first(waiting)
                while waiting:
                    yield self._first(waiting)
            finally:
                for batch, jobs in waiting:
                    for job in jobs:
                        job.cancel()
                    if batch._whole is not None:
                        self._cache.give_back(batch._whole)

    def _first(self, waiting: collections.deque[tuple[Batch[P], list[Future[None]]]]) -> Batch[P]:
        """The first of the batches that wait, decoded; it stays there if that fails."""
        batch, jobs = waiting[0]
        for job in jobs:
            job.result()
        if batch._whole is not None:
            self._cache.keep(self._kind + batch.part.name, batch._whole)
        waiting.popleft()
        return batch

    def hand_back(self, batch: Batch[P]) -> None:
        """Takes back the array of a batch, to fill it again."""
        if batch._buffer is not None:
            self._free.append(batch._buffer)

    def _batches(self, parts: Iterable[P]) -> Generator[Batch[P], None, None]:
        """Batches whose pixels are there, or have room."""
        for part, kept, tables in self._read_ahead(parts):
            whole, first, is_new = kept, 0, kept is None
            if is_new and part.name:
                whole = self._cache.room((part.count, self._side, self._side, 3))
            try:
                for rows in _cut(tables, self._size):
                    last = first + len(rows)
                    if whole is not None and last > len(whole):
                        raise JobError(f"{part.name} has more pictures than {len(whole)}")
                    if whole is None:
                        buffer = self._buffer()
                        yield Batch(part, rows, buffer[: len(rows)], is_new, _buffer=buffer)
                    else:
                        complete = whole if is_new and last == len(whole) else None
                        yield Batch(part, rows, whole[first:last], is_new, _whole=complete)
                    first = last
            finally:
                if is_new and whole is not None and first < len(whole):
                    self._cache.give_back(whole)

    def _read_ahead(
        self, parts: Iterable[P]
    ) -> Generator[tuple[P, Pixels | None, Iterable[pa.Table]], None, None]:
        """Each part with its decoded pictures, if they were kept, and its rows."""
        waiting: collections.deque[tuple[P, Pixels | None, InBackground[pa.Table]]]
        waiting = collections.deque()
        try:
            for part in parts:
                kept = self._cache.find(self._kind + part.name) if part.name else None
                tables = part.tables(("image",) if kept is None else ())
                waiting.append((part, kept, InBackground(tables, _TABLES_AHEAD)))
                if len(waiting) > _FILES_AHEAD:
                    yield waiting[0]
                    waiting.popleft()[2].close()
            while waiting:
                yield waiting[0]
                waiting.popleft()[2].close()
        finally:
            for _, _, reading in waiting:
                reading.close()

    def _buffer(self) -> Pixels:
        if self._free:
            return self._free.pop()
        return pixel_array((self._size, self._side, self._side, 3), self._pinned)

    def _begin(self, pool: ThreadPoolExecutor, batch: Batch[P]) -> list[Future[None]]:
        if not batch.is_new:
            return []
        return [
            pool.submit(
                self._fill,
                batch.rows.slice(first, _AT_ONCE),
                batch.pixels[first : first + _AT_ONCE],
            )
            for first in range(0, len(batch.rows), _AT_ONCE)
        ]

    def _fill(self, rows: pa.Table, pixels: Pixels) -> None:
        images = zip(rows["key"].to_pylist(), rows["image"].to_pylist(), pixels, strict=True)
        for key, image, of_picture in images:
            try:
                self._decode(image, of_picture)
            except UndecodableError as error:
                raise BrokenPictureError(key, error) from error


def _cut(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Rows in tables of a size; the last one may have fewer."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(map(len, held)) < size:
            continue
        rows = pa.concat_tables(held)
        whole = len(rows) // size * size
        for first in range(0, whole, size):
            yield rows.slice(first, size)
        held = [rows.slice(whole)]
    rows = pa.concat_tables(held) if held else ()
    if len(rows):
        yield rows
