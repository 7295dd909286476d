"""The cores and the memory that there are to work with."""

from __future__ import annotations

import contextlib
import os


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
