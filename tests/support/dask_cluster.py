"""A Dask cluster on this machine, of real processes."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cluster import children, kill, wait_for
from gcs import free_port
from machines import until
from runs import ROOT


class DaskCluster:
    """A scheduler, and the workers that `add` starts; files and logs are in a folder."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path, **variables: str) -> None:
        self._stack, self._folder = stack, folder
        # No test depends on modules that the workers find by themselves.
        alone = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
        self._environment = {**os.environ, **alone, **variables}
        self._nannies: list[subprocess.Popen[bytes]] = []
        port = free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        where = ("--host", "127.0.0.1", "--port", port, "--no-dashboard")
        self.scheduler = self._start("scheduler", "scheduler", *where)
        wait_for(port, self.scheduler)

    def add(
        self, *flags: object, number: int = 1, wait: bool = True, **variables: str
    ) -> list[subprocess.Popen[bytes]]:
        """Starts workers, with further flags of `dask worker` and environment variables."""
        first = len(self._nannies)
        local = ("--local-directory", self._folder / "local", "--no-dashboard")
        one = ("worker", self.address, "--nthreads", 1, "--memory-limit", 0, *local, *flags)
        for place in range(first, first + number):
            self._nannies.append(self._start(f"worker-{place}", *one, **variables))
        logs = [self._folder / f"worker-{place}.log" for place in range(first, first + number)]
        if wait:
            until(lambda: all("Registered to:" in log.read_text() for log in logs))
        return self._nannies[first:]

    def workers(self) -> set[int]:
        """Returns the ids of the processes that run calls, of workers with a nanny."""
        nannies = [nanny.pid for nanny in self._nannies if nanny.poll() is None]
        return {worker for nanny in nannies for worker in spawned_by(nanny)}

    def log(self) -> str:
        """Returns what all processes have written."""
        return "\n".join(path.read_text() for path in sorted(self._folder.glob("*.log")))

    def remove(self, workers: list[subprocess.Popen[bytes]]) -> None:
        """Kills workers, and their nannies first."""
        for worker in workers:
            kill(worker)

    def _start(self, name: str, *words: object, **variables: str) -> subprocess.Popen[bytes]:
        # The shell's word `dask` may be that of another environment.
        dask = (sys.executable, "-m", "dask", *map(str, words))
        with (self._folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *dask],
                stdout=log,
                stderr=log,
                env={**self._environment, **variables},
                cwd=self._folder,
                start_new_session=True,
            )
        self._stack.callback(kill, process)
        return process


@contextlib.contextmanager
def dask_cluster(folder: Path, number: int, **variables: str) -> Iterator[DaskCluster]:
    """Runs a cluster with so many workers while the block runs."""
    with contextlib.ExitStack() as stack:
        cluster = DaskCluster(stack, folder, **variables)
        cluster.add(number=number)
        yield cluster


def spawned_by(pid: int) -> list[int]:
    """Returns the ids of a process's live children that `multiprocessing` has started to work."""
    return children(pid, b"--multiprocessing-fork")
