"""The cores and the memory that there are to work with.

Memory of large arrays: kept by the process between batches, not handed back each time.

glibc maps every large block anew and gives it back when it is freed. A network's
activations are such blocks, and clearing fresh pages takes as long as the arithmetic:
a batch of 32 on two cores runs 2.5 times as fast without that.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform


def usable_cores() -> int:
    """Cores that this process may use, by its affinity and its control group."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # No such file, or "max" for no limit.
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def usable_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with (
        contextlib.suppress(OSError, ValueError),  # No such file, or "max" for no limit.
        open("/sys/fs/cgroup/memory.max", encoding="ascii") as file,
    ):
        memory = min(memory, int(file.read()))
    return memory


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
