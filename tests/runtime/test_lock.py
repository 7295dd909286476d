"""One writer at a time, by real processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_in9, start_in9, wait_until

from pipeline.errors import JobError
from pipeline.runtime.lock import DATASET_LOCK, TABLES_LOCK, held
from pipeline.storage.store import Store


def test_a_held_lock_names_its_process_and_is_released(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with held(store, DATASET_LOCK):
        owner = json.loads((tmp_path / DATASET_LOCK).read_text())
        assert owner["pid"] == os.getpid()
        with pytest.raises(JobError, match=f"process {os.getpid()} on"), held(store, DATASET_LOCK):
            pass
        with held(store, TABLES_LOCK):
            pass
    assert not (tmp_path / DATASET_LOCK).exists()
    with pytest.raises(ZeroDivisionError), held(store, DATASET_LOCK):
        raise ZeroDivisionError
    assert not (tmp_path / DATASET_LOCK).exists()


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_the_locks_of_dead_processes_are_taken_over(tmp_path: Path) -> None:
    store, lock = Store(str(tmp_path)), tmp_path / DATASET_LOCK
    lock.parent.mkdir()
    host = socket.gethostname()
    lock.write_text(json.dumps({"host": host, "pid": dead_process(), "started": "1"}))
    with held(store, DATASET_LOCK):
        pass
    # A number that another process has got since.
    lock.write_text(json.dumps({"host": host, "pid": os.getpid(), "started": "1"}))
    with held(store, DATASET_LOCK):
        pass
    # Of another host nothing is known.
    lock.write_text(json.dumps({"host": "elsewhere", "pid": dead_process(), "started": "1"}))
    with pytest.raises(JobError, match="on elsewhere"), held(store, DATASET_LOCK):
        pass


@pytest.mark.parametrize("content", ["", "junk", "{}", '{"host": "x", "pid": 0, "started": "1"}'])
def test_a_damaged_lock_is_nobodys(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is waited for, since it may be one that is just being written."""
    store, lock = Store(str(tmp_path)), tmp_path / DATASET_LOCK
    lock.parent.mkdir()
    lock.write_text(content)
    with held(store, DATASET_LOCK):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert [str(lock) in message for message in caplog.messages] == [True]


def test_of_two_runs_on_one_output_one_works(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ("generate", "--output", output)
    first = start_in9(*command)
    wait_until((output / DATASET_LOCK).exists, first)
    second = run_in9(*command, check=1)
    assert f"process {first.pid} on {socket.gethostname()} is at work" in second.stderr
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL


@pytest.mark.parametrize("name", [".in9", ".in9/tmp", DATASET_LOCK])
def test_what_stands_in_the_way_of_a_lock_is_named(name: str, tmp_path: Path) -> None:
    """It is not waited for."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if name == DATASET_LOCK else path.write_text("")
    with pytest.raises((JobError, OSError), match=name), held(Store(str(tmp_path)), DATASET_LOCK):
        pass
