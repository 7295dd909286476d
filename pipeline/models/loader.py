"""The loader of inference: turns sets of pictures into batches of pixels, ahead of the network.

    sets -> files, read ahead in the background -> batches -> pixels, decoded in parallel

The next files are opened while the current file is processed, so that the network does not wait for
storage. A batch never spans two sets, so that scores do not depend on how a runner bundles them.

A process keeps decoded pictures in memory for the models that follow. A picture of 224 x 224 takes
150 kB. Sets that exceed the budget are decoded again for each model, which takes a third of a
millisecond per picture and core; most disks would take longer to read 150 kB. Nothing is evicted:
all models read the sets in the same order, so the least recently used set is always the set that
is needed next.
"""

import collections
import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from pipeline.errors import BrokenPictureError
from pipeline.storage.interface import InBackground
from transforms.codec import UndecodableError

Pixels = NDArray[np.uint8]
Decode = Callable[[bytes, Pixels], None]
"""Decodes the bytes of a picture into an (S, S, 3) array."""

_FILES_AHEAD = 2
"""Number of sets whose files are read in advance."""
_TABLES_AHEAD = 2
"""Number of tables, of a few MB each, that are read in advance from each of these files."""
_AT_ONCE = 8
"""Number of pictures that a thread decodes at a time."""


@dataclasses.dataclass(eq=False)
class PixelCache:
    """Decoded sets, shared by all threads of a process.

    Attributes:
      budget: memory to use, in bytes; 0 disables the cache.
      pinned: whether to allocate pinned memory, for copies to a GPU.
      sets: all pictures of each set by its name, (n, S, S, 3) uint8, in arrays from `allocate`.
    """

    budget: int
    pinned: bool = False
    sets: dict[str, Pixels] = dataclasses.field(default_factory=dict)

    def allocate(self, shape: tuple[int, int, int, int]) -> Pixels | None:
        """Allocates an array of this shape; None if it exceeds the remaining budget.

        The caller fills it, and puts it into `sets`, where it counts.
        """
        return pixel_array(shape, self.pinned) if self.fits(math.prod(shape)) else None

    def fits(self, size: int) -> bool:
        """Returns whether so many bytes fit beside the sets that are kept."""
        return 0 < size <= self.budget - sum(one.nbytes for one in tuple(self.sets.values()))


def pixel_array(shape: tuple[int, int, int, int], pinned: bool) -> Pixels:
    """Allocates an uninitialised uint8 array of shape (n, S, S, 3), in pinned memory if asked."""
    return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned).numpy()


class PictureSet(Protocol):
    """A sequence of pictures, such as a variant of a shard."""

    @property
    def name(self) -> str:
        """Name under which the decoded pictures are cached; empty if they must not be cached."""

    @property
    def count(self) -> int:
        """Number of pictures; only a set with a name needs it."""

    def tables(self, columns: tuple[str, ...]) -> Generator[pa.Table, None, None]:
        """Reads the rows in order, a table of some rows at a time.

        Its columns are `key`, any columns that the set adds, and the requested columns: none, or
        `image` (encoded bytes).
        """


P = TypeVar("P", bound=PictureSet)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch(Generic[P]):
    """Pictures that go through a model together.

    Attributes:
      rows: the n rows of the set that describe these pictures.
      pixels: (n, S, S, 3) uint8; valid until the batch is handed back.
      is_new: whether the pictures were decoded for this batch; False if they were cached.
    """

    pictures: P
    rows: pa.Table
    pixels: Pixels
    is_new: bool
    _buffer: Pixels | None = None
    """Array that `pixels` is a view of; it is reused once the batch is handed back."""
    _whole: Pixels | None = None
    """Only in the last batch of a set that fits into the cache: all pictures of the set, which
    are cached once this batch is decoded."""


@dataclasses.dataclass(eq=False)
class Loader(Generic[P]):
    """Turns sets of pictures into batches.

    Attributes:
      side: side of the decoded pictures, in pixels.
      batch_size: number of pictures in a batch; the last batch of a set may have fewer.
      kind: prefix of names in the cache, so that pictures decoded in different ways do not mix.
      ahead: number of batches to decode in advance. With 0, decoding takes turns with the caller's
        work on the batches.
    """

    decode: Decode
    side: int
    batch_size: int
    _: dataclasses.KW_ONLY
    cache: PixelCache
    kind: str
    threads: int
    ahead: int = 0
    pinned: bool = False
    _free: list[Pixels] = dataclasses.field(default_factory=list)

    def batches(self, sets: Iterable[P]) -> Generator[Batch[P], None, None]:
        """Yields the batches of sets, in order. The caller hands each batch back after use.

        Raises BrokenPictureError if a picture cannot be decoded.
        """
        waiting: collections.deque[tuple[Batch[P], list[Future[None]]]] = collections.deque()
        with (
            ThreadPoolExecutor(self.threads) as pool,
            contextlib.closing(self._batches(sets)) as batches,
        ):
            try:
                for batch in batches:
                    waiting.append((batch, self._submit(pool, batch)))
                    if len(waiting) > self.ahead:
                        yield self._first(waiting)
                while waiting:
                    yield self._first(waiting)
            finally:
                for _, jobs in waiting:
                    for job in jobs:
                        job.cancel()

    def _first(self, waiting: collections.deque[tuple[Batch[P], list[Future[None]]]]) -> Batch[P]:
        """Waits until the first batch is decoded, then removes and returns it."""
        batch, jobs = waiting.popleft()
        for job in jobs:
            job.result()
        # Sets before this one may have filled the cache since.
        if batch._whole is not None and self.cache.fits(batch._whole.nbytes):
            self.cache.sets[self.kind + batch.pictures.name] = batch._whole
        return batch

    def hand_back(self, batch: Batch[P]) -> None:
        """Takes back the array of a batch for reuse."""
        if batch._buffer is not None:
            self._free.append(batch._buffer)

    def _batches(self, sets: Iterable[P]) -> Generator[Batch[P], None, None]:
        """Yields batches whose pixels come from the cache, or are allocated but not yet decoded."""
        for pictures, cached, tables in self._read_ahead(sets):
            pixels, start, is_new = cached, 0, cached is None
            if is_new and pictures.name:
                pixels = self.cache.allocate((pictures.count, self.side, self.side, 3))
            for rows in _rebatch(tables, self.batch_size):
                end = start + len(rows)
                if pixels is None:
                    shape = (self.batch_size, self.side, self.side, 3)
                    buffer = self._free.pop() if self._free else pixel_array(shape, self.pinned)
                    yield Batch(pictures, rows, buffer[: len(rows)], is_new, _buffer=buffer)
                else:
                    complete = pixels if is_new and end == len(pixels) else None
                    yield Batch(pictures, rows, pixels[start:end], is_new, _whole=complete)
                start = end

    def _read_ahead(
        self, sets: Iterable[P]
    ) -> Generator[tuple[P, Pixels | None, Iterable[pa.Table]], None, None]:
        """Yields each set with its cached pictures, if any, and its rows."""
        waiting: collections.deque[tuple[P, Pixels | None, InBackground[pa.Table]]] = (
            collections.deque()
        )
        try:
            for pictures in sets:
                cached = self.cache.sets.get(self.kind + pictures.name) if pictures.name else None
                tables = pictures.tables(("image",) if cached is None else ())
                waiting.append((pictures, cached, InBackground(tables, _TABLES_AHEAD)))
                if len(waiting) > _FILES_AHEAD:
                    yield waiting[0]
                    waiting.popleft()[2].close()
            while waiting:
                yield waiting[0]
                waiting.popleft()[2].close()
        finally:
            for _, _, reading in waiting:
                reading.close()

    def _submit(self, pool: ThreadPoolExecutor, batch: Batch[P]) -> list[Future[None]]:
        if not batch.is_new:
            return []
        return [
            pool.submit(
                self._decode_rows,
                batch.rows.slice(start, _AT_ONCE),
                batch.pixels[start : start + _AT_ONCE],
            )
            for start in range(0, len(batch.rows), _AT_ONCE)
        ]

    def _decode_rows(self, rows: pa.Table, pixels: Pixels) -> None:
        images = zip(rows["key"].to_pylist(), rows["image"].to_pylist(), pixels, strict=True)
        for key, image, out in images:
            try:
                self.decode(image, out)
            except UndecodableError as error:
                raise BrokenPictureError(key, error) from error


def _rebatch(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Yields the rows in tables of `size` rows; the last table may have fewer."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(map(len, pending)) >= size:
            rows = pa.concat_tables(pending)
            end = len(rows) // size * size
            yield from (rows.slice(start, size) for start in range(0, end, size))
            pending = [rows.slice(end)]
    if any(map(len, pending)):
        yield pa.concat_tables(pending)
