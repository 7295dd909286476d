"""A disk of this machine that answers as late as storage behind a network."""

import contextlib
import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from pipeline.storage.files import LocalFiles


@contextlib.contextmanager
def slow_storage(seconds: float, asked: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Delays each opening, listing, reading, writing and removal in the block.

    Args:
      seconds: delay of each of them.
      asked: called at each of them, in the thread that asks.
    """
    delayed = threading.local()

    def slowly(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            # What an operation consists of is a part of its own delay.
            if not getattr(delayed, "now", False):
                asked()
                time.sleep(seconds)
            before, delayed.now = getattr(delayed, "now", False), True
            try:
                return call(*args, **kwargs)
            finally:
                delayed.now = before

        return wrapped

    with contextlib.ExitStack() as stack:
        for name, call in inspect.getmembers(LocalFiles, inspect.isfunction):
            # To renew a claim is a thread's work of its own.
            if not name.startswith("_") and name not in ("fenced", "renew"):
                stack.enter_context(mock.patch.object(LocalFiles, name, slowly(call)))
        yield
