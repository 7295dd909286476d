"""Processes by name, and whether they are known to have ended.

A process id is unique only within one process-id namespace of one boot of one machine: containers
may share a host name, and each counts its processes from 1.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import socket
import uuid

from transforms.hashing import text_bytes

_NAME = re.compile(r"([0-9a-f]{12})\+([1-9][0-9]{0,8})\+([0-9]*)")
_ENDED = "ended"


@dataclasses.dataclass(frozen=True)
class Process:
    """A process, with a name that no other process on any machine has.

    Attributes:
      place: hexadecimal digits that identify the machine, boot and namespace of the process id.
      started: its start in the kernel's ticks since boot, which distinguishes it from a later
        process with the same id. Empty where the system does not report it.
    """

    place: str
    pid: int
    started: str

    @property
    def name(self) -> str:
        """Unique name of the process, which is used in file names."""
        return f"{self.place}+{self.pid}+{self.started}"

    def is_alive(self) -> bool | None:
        """Returns whether the process is running; None if that cannot be known from here.

        A zombie is not running: in a container, it may stay for as long as the container.
        """
        if self.place != _place():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # It belongs to another user.
        started = _start_of(self.pid)
        if started == self.started:
            return True
        # Without a start time, it has just ended, or is hidden from this user.
        return False if started else None


def has_ended(name: str) -> bool:
    """Returns whether a text is the name of a process that is known to have ended."""
    match = _NAME.fullmatch(name)
    return match is not None and Process(match[1], int(match[2]), match[3]).is_alive() is False


def this_process() -> Process:
    """Returns the calling process."""
    pid = os.getpid()
    return Process(_place(), pid, _start_of(pid))


@functools.cache
def _place() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            parts = [file.read(), os.readlink("/proc/self/ns/pid")]
        # Since Linux 5.6, a time namespace may have start times of its own.
        with contextlib.suppress(OSError):
            parts.append(os.readlink("/proc/self/ns/time"))
    except OSError:
        # Systems without namespaces have no containers that could share a host name.
        parts = [socket.gethostname(), str(uuid.getnode())]
    return hashlib.sha256(text_bytes("\n".join(parts))).hexdigest()[:12]


def _start_of(pid: int) -> str:
    """Returns when a process started, "" where the system hides it; `_ENDED` for an ended one."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        state, threads, started = fields[0], fields[17], fields[19]
    except (OSError, IndexError):
        return ""
    # The first thread may have ended before others.
    return _ENDED if state in "ZX" and threads in ("0", "1") else started
