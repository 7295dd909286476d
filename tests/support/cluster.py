"""A job server and worker pools as separate processes, for tests of portable runners."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from forking import Started
from gcs import free_port
from runs import ROOT, forks


class Cluster:
    """Worker pools, whose workers are forks, and the job server that `serve` starts."""

    server: subprocess.Popen[bytes]
    flags: tuple[str, ...]

    def __init__(self, stack: contextlib.ExitStack, log: Path, pools: int) -> None:
        # The models of tests are in this folder.
        modules = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
        more = {"PYTHONPATH": modules, "HF_HUB_OFFLINE": "1"}
        self._stack, self._log, self._env = stack, log, {**os.environ, **more}
        ports = [free_port() for _ in range(pools)]
        self.pools = [self._start_pool(port) for port in ports]
        self.addresses = [f"localhost:{port}" for port in ports]
        for port, process in zip(ports, self.pools, strict=True):
            wait_for(port, process)

    def _start_pool(self, port: int) -> Started:
        program = Path(__file__).with_name("worker_pool.py")
        process = forks().start(["--service_port", str(port)], self._env, program=program)
        self._stack.callback(kill, process)
        return process

    def serve(self, port: int, pool: str, *command: object) -> None:
        """Starts a job server on a port, whose workers the pool at an address starts."""
        self.server = self._start(port, *command)
        wait_for(port, self.server)
        self.flags = (
            *("--runner=PortableRunner", f"--job_endpoint=localhost:{port}"),
            *("--environment_type=EXTERNAL", f"--environment_config={pool}"),
        )

    def _start(self, name: int, *command: object) -> subprocess.Popen[bytes]:
        with open(self._log / f"{name}.log", "wb") as log:
            process = subprocess.Popen(
                [*map(str, command)], stdout=log, stderr=log, env=self._env, start_new_session=True
            )
        self._stack.callback(kill, process)
        return process

    def workers(self, pool: int) -> list[int]:
        """Returns the process ids of a pool's live workers."""
        return children(*children(self.pools[pool].pid))


def children(pid: int, running: bytes = b"") -> list[int]:
    """Returns the ids of a process's live children whose command lines have a word."""
    found = []
    with contextlib.suppress(OSError):  # It may end at any moment.
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{child}/cmdline").read_bytes()
                    found += [int(child)] if words and running in words else []
    return found


LOOPBACK = {"0100007F", f"{'0' * 16}FFFF00000100007F", f"{'0' * 24}01000000"}
"""127.0.0.1 as the system writes it, the same in an address of IPv6, and ::1."""


def listens_at(pid: int) -> set[tuple[str, int]]:
    """Returns the (address, port) at which a process accepts connections, as the system writes it.

    Raises OSError if it ends, or closes a file, meanwhile.
    """
    descriptors = [os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir()]
    places = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            _, place, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in descriptors:
                address, _, port = place.partition(":")
                places.add((address, int(port, 16)))
    return places


def wait_for(port: int, process: subprocess.Popen[bytes] | Started) -> None:
    """Waits until a process accepts connections on a port."""
    until = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
            return
        assert process.poll() is None, f"the server of port {port} ended"
        assert time.monotonic() < until, f"the server of port {port} does not start"
        time.sleep(0.05)


def kill(process: subprocess.Popen[bytes] | Started) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
