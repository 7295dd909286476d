"""Processes by name, and which of them are known to be over.

A process number says something only within one process-id namespace of one boot of one machine:
containers may share a host's name and count their processes each from 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
import re
import socket
import uuid

_NAME = re.compile(r"(?P<place>[0-9a-f]{12})\+(?P<pid>[1-9][0-9]{0,8})\+(?P<started>[0-9]*)")


@dataclasses.dataclass(frozen=True)
class Process:
    """A process, told apart from all others anywhere.

    Attributes:
      place: what its number is counted in, as hexadecimal digits.
      pid: its number.
      started: when it began, in the kernel's ticks since the boot: tells a number that was given
        again. Empty where the system does not say.
    """

    place: str
    pid: int
    started: str

    @property
    def name(self) -> str:
        """A part of file names."""
        return f"{self.place}+{self.pid}+{self.started}"

    @classmethod
    def from_name(cls, name: str) -> Process | None:
        """The process of a `name`, None if it is none."""
        found = _NAME.fullmatch(name)
        return found and cls(found["place"], int(found["pid"]), found["started"])

    def is_alive(self) -> bool | None:
        """Whether it is running; None if that cannot be known from here."""
        if self.place != _place():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # Somebody else's.
        started = _start_of(self.pid)
        if started == self.started:
            return True
        # Without an answer it has just ended, or its files are hidden from us.
        return False if started else None


def this_process() -> Process:
    """The process that this runs in."""
    pid = os.getpid()
    return Process(_place(), pid, _start_of(pid))


@functools.cache
def _place() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            parts = [file.read(), os.readlink("/proc/self/ns/pid")]
        # Start times may count in one of their own, since Linux 5.6.
        with contextlib.suppress(OSError):
            parts.append(os.readlink("/proc/self/ns/time"))
    except OSError:
        # Systems without namespaces: there are no containers that could share a name.
        parts = [socket.gethostname(), str(uuid.getnode())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _start_of(pid: int) -> str:
    """When a process started. Empty where the system does not say."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
