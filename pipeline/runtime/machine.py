"""The cores, memory, compiler and streams of this process, and how it treats freed memory.

glibc maps every large block anew and returns it to the system when it is freed. A network's
activations are such blocks, and clearing fresh pages takes as long as the arithmetic. So the
process keeps freed memory between batches: a batch of 32 on two cores then runs 2.5 times as fast.
"""

import ctypes
import functools
import os
import platform
import shutil
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))
"""Python's names and modes of the streams with descriptors 0, 1 and 2."""


def open_standard_streams() -> None:
    """Opens standard input, output and error on the null device, as far as they are closed.

    Otherwise the next file, such as one of the dataset, would get their number, and all that
    libraries and child processes print. Python itself has None in place of a closed stream.
    """
    # The system gives each new file the lowest number that is free.
    while (number := os.open(os.devnull, os.O_RDWR)) < len(_STREAMS):
        os.set_inheritable(number, True)  # Child processes have the same streams.
        name, mode = _STREAMS[number]
        stream = os.fdopen(number, mode, errors="backslashreplace", closefd=False)
        vars(sys).update({name: stream, f"__{name}__": stream})
    os.close(number)


def usable_cores(root: Path = Path("/")) -> int:
    """Returns the number of cores that this process's affinity and control groups allow.

    The system's `proc` and `sys` lie below the root.
    """
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    for group in _control_groups(root):
        second = _numbers(group / "cpu.max")
        first = _numbers(group / "cpu.cfs_quota_us") + _numbers(group / "cpu.cfs_period_us")
        for quota in (second, first):
            if len(quota) == 2 and min(quota) > 0:
                cores = min(cores, max(1, round(quota[0] / quota[1])))
    return cores


def usable_memory(root: Path = Path("/")) -> int:
    """Returns the bytes of memory that the machine and this process's control groups allow."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _control_groups(root):
        for name in ("memory.max", "memory.limit_in_bytes"):
            memory = min([memory, *_numbers(group / name)])
    return memory


_processes = 1


def share_with(processes: int) -> None:
    """Notes how many workers like this one the machine has."""
    global _processes
    _processes = processes


def similar_processes() -> int:
    """Returns how many processes like this one there are: Beam's worker for each core, or one."""
    # What Beam's runners start, and what the workers of its pool import.
    is_worker = any("apache_beam.runners.worker.sdk_worker" in word for word in sys.orig_argv)
    return usable_cores() if is_worker else _processes


def see_one_gpu(number: int, count: Callable[[], int]) -> None:
    """Hides all GPUs from this process but its own, whatever library it uses, before CUDA is used.

    Args:
      number: number of the process, from 0. No two of them see the same GPU as long as they are not
        more than the GPUs.
      count: counts the machine's GPUs. It is called unless the user has chosen some of them,
        because it may start CUDA, after which none can be hidden.
    """
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = chosen.split(",") if chosen else [str(number) for number in range(count())]
    if visible:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[number % len(visible)]


def _control_groups(root: Path) -> Iterator[Path]:
    """Yields the folders of this process's control groups, versions 2 and 1, and of those above.

    Their limits apply, too. Batch systems and systemd limit groups at any depth. The formats are
    those of proc_pid_cgroup(5), proc_pid_mountinfo(5) and cgroups(7).
    """
    groups = {}
    try:
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            # Version 2 has one hierarchy, without names of controllers.
            groups.update(dict.fromkeys(controllers.split(","), path))
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return
    for line in mounts:
        mount, _, filesystem = line.partition(" - ")
        kind, _, options = filesystem.split(" ", 2)
        if kind not in ("cgroup", "cgroup2"):
            continue
        top, mount_point = mount.split(" ")[3:5]
        for name in groups.keys() & (options.split(",") if kind == "cgroup" else {""}):
            inside = PurePosixPath(groups[name])
            # A container may see its own group alone, which is then the top of the mount.
            inside = inside.relative_to(top) if inside.is_relative_to(top) else PurePosixPath()
            for part in (inside, *inside.parents):
                yield root / mount_point.lstrip("/") / part


def _numbers(file: Path) -> list[int]:
    """Returns the numbers in a file; none if there is no such file, or it says "max": no limit."""
    try:
        return [int(word) for word in file.read_text().split()]
    except (OSError, ValueError):
        return []


def missing_to_compile(has_gpu: bool) -> str:
    """Returns what `torch.compile` needs and this machine lacks; empty if it lacks nothing."""
    cpp = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    needed = {
        f"the C++ compiler {cpp}": shutil.which(cpp),
        "a C compiler": not has_gpu or any(map(shutil.which, ("gcc", "clang"))),
        header: not has_gpu or os.path.exists(header),
    }
    return next((name for name, is_there in needed.items() if not is_there), "")


# Constants of malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8
_NEVER = 2**31 - 1


def give_back_freed_memory() -> None:
    """Releases whole free pages, whose gaps would not fit the next model's tensors."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def keep_freed_memory() -> None:
    """Makes glibc's allocator keep freed memory for the life of the process.

    All threads share the main arena, because other arenas cannot hold blocks of more than 64 MiB.
    """
    if platform.libc_ver()[0] == "glibc":
        for name, value in ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER)):
            ctypes.CDLL(None).mallopt(name, value)
