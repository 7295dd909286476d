"""Runs every bundle of a job twice, on the server of `bundle_server`."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import tempfile
import time
from pathlib import Path

from bundle_server import Note
from forking import Forks
from gcs import free_port
from runs import words_of

HERE = Path(__file__).parent
SUPPORT = HERE.with_name("support")
STAGES = ("--attack", "4x3", "--saliency", "2")
"""Flags that add the optional stages to a job."""
_TELLS_TIME = re.compile("time: ")
_OF_A_RUN = re.compile(r"/\.in9/(report\.json|tmp/|progress/)")
"""Files that may differ between runs. `report.json` depends on the times of files; `tmp` is for
files of a process that may be gone, and `progress` for notes of a job: a later run removes both."""


def _environment() -> dict[str, str]:
    """Returns an environment in which processes find the modules of the tests, such as models."""
    paths = [str(SUPPORT), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}


class Server:
    """The job server as a separate process; the first job must have no fates."""

    def __init__(self, root: Path, fates: tuple[tuple[str, ...], ...], forks: Forks) -> None:
        self._forks, self._folder = forks, tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        port, pool, self._notes = free_port(), free_port(), folder / "notes.json"
        flags = (
            *("--port", port, "--pool", pool, "--root", root, "--notes", self._notes),
            *("--fates", *map(",".join, fates)),
        )
        program = HERE / "bundle_server.py"
        self._process = forks.start([*map(str, flags)], _environment(), program=program)
        self._flags = (
            *("--runner=PortableRunner", f"--job_endpoint=localhost:{port}"),
            *("--environment_type=EXTERNAL", f"--environment_config=localhost:{pool}"),
        )

    def __enter__(self) -> Server:
        return self

    def run(self, root: Path, *flags: object) -> tuple[list[str], list[Note]]:
        """Runs `in9` with `--output` in a folder; returns its output without times, and the notes.

        The notes are those of all bundles, after suspended executions have been woken and have
        ended.
        """
        command = [*words_of(flags), *self._flags, "--output", str(root / "out")]
        command += ["--publish", str(root / "published")]
        done = self._forks.run(command, _environment())
        assert done.returncode == 0, done.stderr
        os.kill(self._process.pid, signal.SIGUSR1)
        while not self._notes.exists():
            assert self._process.poll() is None, "the server has ended"
            time.sleep(0.05)
        notes = [Note(**note) for note in json.loads(self._notes.read_text())]
        self._notes.unlink()
        lines = [line for line in done.stdout.splitlines() if not _TELLS_TIME.match(line)]
        return [line.replace(str(root), "ROOT") for line in lines], notes

    def __exit__(self, *_: object) -> None:
        # Kills the workers too; they would try to reconnect forever.
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._folder.cleanup()


def files_below(folder: Path) -> dict[str, bytes]:
    """Returns digests of all files that must not depend on how often bundles run."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).digest()
        for path in folder.rglob("*")
        if path.is_file() and not _OF_A_RUN.search(str(path))
    }
