"""Calls in threads, for storage that lets wait."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

REQUESTS_IN_FLIGHT = 16
"""How many requests one call makes at the same time, at most."""

T = TypeVar("T")
R = TypeVar("R")

_END = object()


def in_parallel(call: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Results of a call on each item, in order; several at a time, for storage that lets wait.

    Raises:
      Exception: the first error, after the others have ended.
    """
    with concurrent.futures.ThreadPoolExecutor(REQUESTS_IN_FLIGHT) as pool:
        return list(pool.map(call, items))


def read_ahead(
    call: Callable[[T], R], items: Iterable[T], ahead: int = REQUESTS_IN_FLIGHT
) -> Generator[tuple[T, R], None, None]:
    """Each item with the result of a call on it, in order; calls run ahead in threads.

    Args:
      call: reads what an item needs.
      items: any number.
      ahead: how many calls may be ahead of what has been taken; none at 0.

    Raises:
      Exception: the first error, after the other calls that had begun have ended; they are not
        waited for after an interruption, which ends the process.
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
                first, result = waiting.popleft()
                yield first, result.result()
        while waiting:
            first, result = waiting.popleft()
            yield first, result.result()
    except KeyboardInterrupt:
        wait = False
        raise
    finally:
        pool.shutdown(wait, cancel_futures=True)


class InBackground(Generic[T]):
    """Takes the items of a generator in a thread, before they are asked for; iterable once.

    Args:
      items: runs in the thread from now on, and is closed with this.
      ahead: how many items may be ahead of what has been taken.
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
        """Ends the thread, after the item that it is at."""
        self._pool.shutdown(cancel_futures=True)
        self._items.close()
