"""Calls in threads, which hide the latency of storage."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

REQUESTS_IN_FLIGHT = 16
"""Largest number of requests that one call makes at the same time."""

T = TypeVar("T")
R = TypeVar("R")

_END = object()


def in_parallel(call: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Calls a function on each item, several at a time; returns the results in order.

    Raises:
      Exception: the error of the first item that has one, after the calls that had begun have
        ended. The other calls are not made.
    """
    with concurrent.futures.ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
        return list(pool.map(call, items))


def read_ahead(
    call: Callable[[T], R], items: Iterable[T], ahead: int = REQUESTS_IN_FLIGHT
) -> Generator[tuple[T, R], None, None]:
    """Yields each item with the result of a call on it, in order; calls run ahead in threads.

    Args:
      call: reads the data of an item.
      items: any number of items.
      ahead: how many calls may run ahead of the consumer; if 0, the function is called without
        threads.

    Raises:
      Exception: the first error, after the calls that had begun have ended. KeyboardInterrupt is
        raised without waiting, because it ends the process.
    """
    if not ahead:
        for item in items:
            yield item, call(item)
        return
    pool = concurrent.futures.ThreadPoolExecutor(ahead)
    waiting: collections.deque[tuple[T, concurrent.futures.Future[R]]] = collections.deque()
    wait = True
    try:
        for item in items:
            waiting.append((item, pool.submit(call, item)))
            if len(waiting) > ahead:
                oldest, future = waiting.popleft()
                yield oldest, future.result()
        while waiting:
            oldest, future = waiting.popleft()
            yield oldest, future.result()
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)


class InBackground(Generic[T]):
    """Items of a generator that runs in a thread, ahead of the consumer; can be iterated once.

    Args:
      items: the generator, which starts to run in the thread at once, and is closed with this
        object.
      ahead: how many items the thread may be ahead of the consumer.
    """

    def __init__(self, items: Generator[T, None, None], ahead: int) -> None:
        self._items = items
        self._pool = concurrent.futures.ThreadPoolExecutor(1)
        self._waiting: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
        for _ in range(ahead):
            self._take_one()

    def _take_one(self) -> None:
        self._waiting.append(self._pool.submit(next, self._items, _END))

    def __iter__(self) -> Iterator[T]:
        while (item := self._waiting.popleft().result()) is not _END:
            self._take_one()
            yield item

    def close(self) -> None:
        """Ends the thread after its current item."""
        self._pool.shutdown(cancel_futures=True)
        self._items.close()
