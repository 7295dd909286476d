"""Tests a job whose bundles all run twice, as on a runner that has lost sight of a machine."""

import contextlib
import hashlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bundle_server import FATES, Note
from forking import NO_FIGURES
from gcs import free_port
from runs import QUICK, ROOT, TINY_MODEL, forks, keys, run_in9
from soundness import assert_sound

_OF_A_RUN = re.compile(r"/\.in9/(report\.json|tmp/|progress/)")
"""Files that may differ between runs. `report.json` depends on the times of files; `tmp` is for
files of a process that may be gone, and `progress` for notes of a job: a later run removes both."""


@contextlib.contextmanager
def server(root: Path) -> Iterator[Callable[..., tuple[list[str], list[Note]]]]:
    """Starts the server for jobs below a folder.

    Yields a function that runs a command into a folder, and returns its output without times, and
    the notes on all bundles, after suspended executions have been woken and have ended.
    """
    port, pool, notes = free_port(), free_port(), root / "notes.json"
    program = ROOT / "tests" / "faults" / "bundle_server.py"
    words = [*map(str, (port, pool, root, notes))]
    process = forks().start(words, dict(os.environ), program=program)
    on_it = (
        *("--runner=PortableRunner", f"--job_endpoint=localhost:{port}"),
        *("--environment_type=EXTERNAL", f"--environment_config=localhost:{pool}"),
    )

    def run(folder: Path, *words: object) -> tuple[list[str], list[Note]]:
        outputs = ("--output", folder / "out", "--publish", folder / "published")
        done = run_in9(*words, *on_it, *outputs)
        os.kill(process.pid, signal.SIGUSR1)
        while not notes.exists():
            assert process.poll() is None, "the server has ended"
            time.sleep(0.05)
        noted = [Note(**note) for note in json.loads(notes.read_text())]
        notes.unlink()
        lines = [line for line in done.stdout.splitlines() if not line.startswith("time: ")]
        return [line.replace(str(folder), "ROOT") for line in lines], noted

    try:
        yield run
    finally:
        # Kills the workers too; they would try to reconnect forever.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def files_below(folder: Path) -> dict[str, str]:
    """Returns digests of all files that must not depend on how often bundles run."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and not _OF_A_RUN.search(str(path))
    }


def test_a_job_whose_bundles_all_run_twice(
    small_sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "support"))
    monkeypatch.setenv(NO_FIGURES, "1")
    more = (*TINY_MODEL, "--attack", "4x3", "--saliency", 2)
    flags = ("run", "--input", small_sample, *QUICK, *keys(images_per_shard=3), *more)
    with server(tmp_path) as run:
        expected, before = run(tmp_path / "once", *flags)
        printed, notes = run(tmp_path / "twice", *flags)
    assert {note.executions for note in notes} == {2}
    assert sorted(note.bundle for note in notes) == sorted(note.bundle for note in before)
    half_done = [note for note in notes if note.stopped]
    assert {note.fate for note in half_done} == set(FATES)
    assert len(half_done) > len(notes) / 2
    assert printed == expected
    assert files_below(tmp_path / "twice") == files_below(tmp_path / "once")
    assert_sound(tmp_path / "twice" / "out")
