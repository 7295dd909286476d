"""Workers of engines, among them Dask clusters, and jobs on them: what they show and print."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from forking import Started
from gcs import free_port, wait_for
from machines import children, is_running, kill, until
from runs import ROOT

_SEGMENTER = """
import os, pathlib, time
import numpy as np

HERE = pathlib.Path({folder!r})

def segment(image, box):
    until = time.monotonic() + 120
    while not (HERE / "go").exists() and time.monotonic() < until:
        (HERE / "signs" / str(os.getpid())).touch()
        time.sleep(0.1)
    mask = np.zeros(image.shape[:2], bool)
    mask[box[1] : box[3] + 1, box[0] : box[2] + 1] = True
    return mask

segment.version = 1
"""


class Signs:
    """A segmenter that works for minutes unless it may go on, and what it shows of itself."""

    flags = ("--segmenter", "python:at_work:segment")

    def __init__(self, modules: Path) -> None:
        self._go, self._folder = modules / "go", modules / "signs"
        self._folder.mkdir()
        # A worker may still have imported the module of another test, unless its content differs.
        (modules / "at_work.py").write_text(_SEGMENTER.format(folder=str(modules)))

    def seen(self) -> set[int]:
        """Returns the ids of processes that have been at work."""
        return {int(path.name) for path in self._folder.iterdir()}

    def wait_for_end(self) -> None:
        """Waits until all processes that have been at work have ended."""
        until(lambda: not any(map(is_running, self.seen())))

    def go_on(self) -> None:
        """Lets all calls end soon."""
        self._go.touch()


def printed(stdout: str, output: Path) -> list[str]:
    """Returns the lines that a command prints, without times and without its folder.

    The folder's length decides where a line is wrapped.
    """
    whole = stdout.replace("\n  ", " ").splitlines()
    lines = [" ".join(line.split()) for line in whole if not line.startswith("time: ")]
    return [line.replace(str(output), "OUT") for line in lines]


def listened_at(running: Started) -> set[tuple[str, int]]:
    """Waits for the end of a command; returns where it or its children listened."""
    places: set[tuple[str, int]] = set()
    while running.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):  # It may end at any moment.
            command = psutil.Process(running.pid)
            places.update(*map(listens_at, (command, *command.children(recursive=True))))
        time.sleep(0.3)
    return places


def listens_at(process: psutil.Process) -> set[tuple[str, int]]:
    """Returns the address and port of each socket at which a process accepts connections."""
    return {one.laddr for one in process.net_connections("tcp") if one.status == "LISTEN"}


class DaskCluster:
    """A scheduler, and the workers that `add` starts; files and logs are in a folder.

    The scheduler's file is `scheduler`.
    """

    def __init__(
        self, stack: contextlib.ExitStack, folder: Path, scheme: str = "tcp", **variables: str
    ) -> None:
        self._stack, self.folder = stack, folder
        # No test depends on modules that the workers find by themselves.
        alone = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
        self._environment = {**os.environ, **alone, **variables}
        self.workers: list[subprocess.Popen[bytes]] = []
        port, file = free_port(), folder / "scheduler"
        self.address = f"{scheme}://127.0.0.1:{port}"
        where = ("--host", f"{scheme}://127.0.0.1", "--port", port, "--scheduler-file", file)
        self.scheduler = self._start("scheduler", "scheduler", *where)
        wait_for(port, self.scheduler)

    def add(
        self, *flags: object, number: int = 1, wait: bool = True, **variables: str
    ) -> list[subprocess.Popen[bytes]]:
        """Starts workers, with further flags of `dask worker` and environment variables."""
        names = [f"worker-{len(self.workers) + place}" for place in range(number)]
        local = ("--local-directory", self.folder / "local", "--memory-limit", 0)
        one = ("worker", self.address, "--nthreads", 1, *local, *flags)
        added = [self._start(name, *one, **variables) for name in names]
        self.workers += added
        logs = [self.folder / f"{name}.log" for name in names]
        if wait:
            until(lambda: all("Registered to:" in log.read_text() for log in logs))
        return added

    def at_work(self) -> set[int]:
        """Returns the ids of the processes that run calls, of workers with a nanny."""
        nannies = [nanny.pid for nanny in self.workers if nanny.poll() is None]
        return {worker for nanny in nannies for worker in spawned_by(nanny)}

    def remove(self, workers: list[subprocess.Popen[bytes]]) -> None:
        """Kills workers, and their nannies first."""
        for worker in workers:
            kill(worker)

    def _start(self, name: str, *words: object, **variables: str) -> subprocess.Popen[bytes]:
        # The shell's word `dask` may be that of another environment.
        dask = (sys.executable, "-m", "dask", *map(str, words), "--no-dashboard")
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", *dask],
                stdout=log,
                stderr=log,
                env={**self._environment, **variables},
                cwd=self.folder,
                start_new_session=True,
            )
        self._stack.callback(kill, process)
        return process


@contextlib.contextmanager
def dask_cluster(folder: Path, number: int, *flags: str, **variables: str) -> Iterator[DaskCluster]:
    """Runs a cluster with so many workers in a new folder while the block runs."""
    folder.mkdir()
    with contextlib.ExitStack() as stack:
        cluster = DaskCluster(stack, folder, *flags, **variables)
        cluster.add(number=number)
        yield cluster


def spawned_by(pid: int) -> list[int]:
    """Returns the ids of a process's live children that `multiprocessing` has started to work."""
    return children(pid, b"--multiprocessing-fork")
