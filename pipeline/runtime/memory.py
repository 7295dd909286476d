"""Memory of large arrays: kept by the process between batches, not handed back each time.

glibc maps every large block anew and gives it back when it is freed. A network's
activations are such blocks, and clearing fresh pages takes as long as the arithmetic:
a batch of 32 on two cores runs 2.5 times as fast without that.
"""

from __future__ import annotations

import ctypes
import functools
import platform

# Of malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_NEVER = 2**31 - 1


def give_back_freed_memory() -> None:
    """Hands whole free pages back to the system, once: for the moment between two models,
    whose tensors are of other sizes and would not fit into the gaps."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def keep_freed_memory() -> bool:
    """Makes the allocator keep what is freed, for the life of the process; once.

    One arena for all threads, since others cannot hold blocks of more than 64 MiB.

    Returns:
      Whether the allocator is one that takes these settings.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER))
    taken = [mallopt(name, value) == 1 for name, value in settings]
    return all(taken)
