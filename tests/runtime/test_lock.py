"""Tests locks with real processes: one writes at a time, and one that has lost its lock stops."""

import dataclasses
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gcs import BUCKET
from lock_races import race
from machines import until
from runs import ROOT, Run, run_in9, run_python, start_in9, take_over, wait_until

from pipeline.errors import JobError
from pipeline.generate import commit
from pipeline.runtime import lock
from pipeline.runtime.lock import DATASET_LOCK, TABLES_LOCK, acquire, is_held, locked, release
from pipeline.storage import files, processes
from pipeline.storage.files import files_of
from pipeline.storage.store import TEMPORARY, Store

ELSEWHERE = {"host": "elsewhere", "place": "feed" * 3, "pid": 1, "started": "1"}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times so short that a silent holder counts as dead after less than a second."""
    monkeypatch.setattr(lock, "RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(lock, "EXPIRY_SECONDS", 0.6)
    monkeypatch.setattr(lock, "_LOOK_SECONDS", 0.02)
    monkeypatch.setattr(lock, "_REMOTE_LOOK_SECONDS", 0.02)


def assert_refused(store: Store, says: str, name: str = DATASET_LOCK, wait: float = 0) -> None:
    with pytest.raises(JobError, match=says), locked(store, name, wait=wait):
        pass


def test_a_held_lock_names_its_process_and_is_released(store: Store) -> None:
    threads = threading.active_count()
    with locked(store, DATASET_LOCK):
        assert_refused(store, f"process {os.getpid()} on {socket.gethostname()} is at work")
        with locked(store, TABLES_LOCK):
            pass
    assert not is_held(store, DATASET_LOCK)
    with pytest.raises(ZeroDivisionError), locked(store, DATASET_LOCK):
        raise ZeroDivisionError
    assert not is_held(store, DATASET_LOCK)
    assert threading.active_count() == threads
    assert list(store.walk("")) == []


def test_what_is_known_to_be_over_is_taken_over_at_once(store: Store) -> None:
    me = lock.this_process()
    ended = subprocess.Popen(["true"])
    ended.wait()
    for owner in ({**me, "pid": ended.pid}, {**me, "started": "1"}):  # Its id was reused.
        acquire(store, DATASET_LOCK, "0" * 32, owner)
        with locked(store, DATASET_LOCK):
            assert not is_held(store, DATASET_LOCK, "0" * 32)
        # The release of the earlier holder comes late and does nothing.
        release(store, DATASET_LOCK, "0" * 32)
    dead, out_of_sight = lock.model_lock("dead", 0), lock.model_lock("elsewhere", 0)
    acquire(store, dead, "1" * 32, {**me, "started": "1"})
    acquire(store, out_of_sight, "2" * 32, ELSEWHERE)
    assert lock.current_holder(store, dead) is None
    assert lock.current_holder(store, DATASET_LOCK) is None
    assert lock.current_holder(store, out_of_sight) == "process 1 on elsewhere"


@pytest.mark.usefixtures("short")
def test_what_is_known_to_be_alive_is_not_taken_over_without_a_sign_of_life(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    acquire(store, DATASET_LOCK, "0" * 32, lock.this_process())
    assert_refused(store, "is at work", wait=1.0)


@pytest.mark.usefixtures("short")
def test_one_out_of_sight_counts_as_over_when_it_gives_no_sign_of_life(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Checks that what the waiting process sees decides, not clocks or time stamps."""
    acquire(store, DATASET_LOCK, "0" * 32, ELSEWHERE)
    renewal = lock.Renewal(store, DATASET_LOCK, "0" * 32)
    assert_refused(store, "process 1 on elsewhere is at")
    assert "process 1 on elsewhere holds" in caplog.text
    renewal.stop()
    for folder, _, names in os.walk(store.root):
        for name in ("", *names):
            os.utime(os.path.join(folder, name), (2**32, 2**32))
    asked = time.monotonic()
    with locked(store, DATASET_LOCK):
        assert time.monotonic() - asked > 0.5


def test_a_zombie_has_ended(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with subprocess.Popen(["sleep", "60"]) as child:
        process = dataclasses.replace(processes.this_process(), pid=child.pid)
        process = dataclasses.replace(process, started=processes._start_of(child.pid))
        assert process.is_alive()
        acquire(store, DATASET_LOCK, "a" * 32, {"host": "here", **dataclasses.asdict(process)})
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process.is_alive() is False
        with locked(store, DATASET_LOCK):
            pass


@pytest.mark.parametrize("content", [None, b"", b"{}", b'{"owner": {"pid": 0}}'])
def test_a_damaged_lock_is_nobodys(
    content: bytes | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(lock, "_DAMAGED_SECONDS", 0.3)
    store, claim = Store(str(tmp_path)), tmp_path / DATASET_LOCK / ("0" * 32)
    claim.mkdir(parents=True)
    if content is not None:
        (claim / "about").write_bytes(content)
    with locked(store, DATASET_LOCK):
        assert [store.path(DATASET_LOCK) in message for message in caplog.messages] == [True]
    assert not is_held(store, DATASET_LOCK)


@pytest.mark.parametrize("name", [".in9", ".in9/tmp", DATASET_LOCK, f"{DATASET_LOCK}/notes.txt"])
def test_what_stands_in_the_way_of_a_lock_is_named(name: str, tmp_path: Path) -> None:
    """Checks that it is reported instead of waited for."""
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    with (
        pytest.raises((JobError, OSError), match=Path(name).name),
        locked(Store(str(tmp_path)), DATASET_LOCK),
    ):
        pass
    assert path.exists()


STEPS: dict[str, Callable[[Store], object]] = {
    "write": lambda store: store.write("a", b"late", durable=True),
    "update": lambda store: store.update("a", b"late"),
    "write together": lambda store: _write_together(store),
    "move": lambda store: store.move("b", "a"),
    "copy": lambda store: store.copy_into(store, [("b", "a")]),
    "delete": lambda store: store.delete("a"),
    "delete what is not there": lambda store: store.delete("c"),
    "delete all": lambda store: store.delete_all(["a", "b"]),
    "delete a folder": lambda store: store.delete_tree("folder"),
    "below": lambda store: store.below("folder").delete("c"),
}


def _write_together(store: Store) -> None:
    with store.together() as view:
        view.write("a", b"late")


@pytest.mark.parametrize("step", STEPS)
def test_a_late_holder_stops_instead_of_writing(store: Store, step: str) -> None:
    for path in ("a", "b", "folder/c"):
        store.write(path, path.encode())
    with locked(store, DATASET_LOCK) as fenced:
        take_over(store, DATASET_LOCK)
        before = {path: store.read(path) for path in store.walk("")}
        with pytest.raises(JobError, match="It stops without writing") as stopped:
            STEPS[step](fenced)
        assert len(str(stopped.value).splitlines()) == 1
        assert {path: store.read(path) for path in store.walk("")} == before
    # Nor does it release the lock of another holder.
    assert is_held(store, DATASET_LOCK)


def test_a_late_holder_leaves_folders_alone(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with locked(store, DATASET_LOCK) as fenced:
        fenced.make_folder("kept/empty")
        take_over(store, DATASET_LOCK)
        for step in (lambda: fenced.make_folder("late"), lambda: fenced.prune("kept")):
            with pytest.raises(JobError, match="It stops without writing"):
                step()
    assert [store.has_folder(name) for name in ("kept/empty", "late")] == [True, False]


def test_where_there_are_no_hard_links_files_are_looked_after_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(files._NO_LINKS[0], "no links")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(str(tmp_path))
    store.write("a", b"a")
    with locked(store, DATASET_LOCK) as fenced:
        fenced.move("a", "b")
        take_over(store, DATASET_LOCK)
        with pytest.raises(JobError, match="It stops without writing"):
            fenced.move("b", "a")
    assert store.read("b") == b"a"


def test_in_object_storage_a_commit_is_of_what_its_writer_has_seen(server: None) -> None:
    """Checks that writes are conditional.

    A late holder may be suspended between its look at the lock and its request.
    """
    store = Store.at(f"gs://{BUCKET}/seen")
    store.write("manifest.json", b"0")
    with locked(store, DATASET_LOCK) as fenced:
        fenced.read("manifest.json")
        fenced.write("manifest.json", b"1", durable=True)
        fenced.write("manifest.json", b"2", durable=True)
        store.write("manifest.json", b"late")
        with pytest.raises(JobError, match=r"manifest\.json has been written by another job"):
            fenced.write("manifest.json", b"3", durable=True)
        # If the content is there already, the holder has written it and the answer was lost.
        fenced.write("manifest.json", b"late", durable=True)
        fenced.write("manifest.json", b"4", durable=True)


def test_steps_of_a_job_take_over_what_its_lost_machines_hold(store: Store) -> None:
    job, other = store.for_job("1" * 32), store.for_job("2" * 32)
    acquire(job, TABLES_LOCK, "a" * 32, ELSEWHERE)
    late = job.fenced(TABLES_LOCK, "a" * 32)
    late.write("x", b"first")
    asked = time.monotonic()
    with locked(job, TABLES_LOCK) as fenced:
        assert time.monotonic() - asked < lock.EXPIRY_SECONDS
        fenced.write("x", b"second")
        with pytest.raises(JobError, match="stops without writing"):
            late.write("x", b"late", durable=True)
        # A step that runs at the same time is known not to be lost.
        assert_refused(job, "is at work", TABLES_LOCK)
        assert_refused(other, "is at work", TABLES_LOCK)
    # The dataset's lock belongs to the job as a whole.
    with locked(job, DATASET_LOCK):
        lock.fenced_for_job(job).write("x", b"by another machine")
        with pytest.raises(JobError, match="stops without writing"):
            lock.fenced_for_job(other).write("x", b"of another job")
    assert store.read("x") == b"by another machine"


@pytest.mark.usefixtures("short")
def test_a_renewal_that_fails_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, calls = Store(str(tmp_path)), 0
    renew = files.LocalFiles.renew

    def fails_at_first(*arguments: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise OSError("no way to the disk")
        return renew(*arguments)

    monkeypatch.setattr(files.LocalFiles, "renew", fails_at_first)
    current_claim = store.files.current_claim
    with locked(store, DATASET_LOCK):
        before = current_claim(store.path(DATASET_LOCK))
        until(lambda: current_claim(store.path(DATASET_LOCK)) != before)
    assert calls >= 3


@pytest.mark.usefixtures("short")
def test_a_lost_lock_is_not_renewed(store: Store) -> None:
    with locked(store, DATASET_LOCK):
        take_over(store, DATASET_LOCK)
        claim = store.files.current_claim(store.path(DATASET_LOCK))
        # Time for several renewals.
        time.sleep(0.5)
        assert store.files.current_claim(store.path(DATASET_LOCK)) == claim


HOLDER = """
import sys, time
from pipeline.runtime import lock
from pipeline.storage.store import Store

lock.RENEWAL_SECONDS = 0.1
store = Store(sys.argv[1])
holding = lock.locked(store, lock.DATASET_LOCK)
mine = holding.__enter__()
store.write("made", b"")
"""
"""Takes a lock, and shows that it has; what a test adds follows."""


def test_a_lock_keeps_no_process_alive(tmp_path: Path) -> None:
    run_python(HOLDER, str(tmp_path))
    # The process has ended without releasing its lock, which can be taken over.
    with locked(Store(str(tmp_path)), DATASET_LOCK):
        pass


@pytest.mark.usefixtures("short")
def test_containers_that_share_a_host_name_do_not_take_each_other_for_dead(tmp_path: Path) -> None:
    """Checks that process ids mean nothing in another container, and a killed one blocks nobody."""
    unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"]).returncode:
        pytest.skip("no process-id namespaces here")
    store = Store(str(tmp_path))
    # A file that is being written is not a leftover of a dead process.
    code = f"{HOLDER}with store.create('half'): time.sleep(120)"
    words = (*unshare, sys.executable, "-c", code, str(tmp_path))
    running = subprocess.Popen(words, cwd=ROOT)
    try:
        until(lambda: list((tmp_path / TEMPORARY).glob("*+*")) and store.exists("made"))
        assert_refused(store, rf"process 1 on {socket.gethostname()} is at work")
        store.remove_temporary()
        assert list((tmp_path / TEMPORARY).glob("*+1+*"))
    finally:
        running.kill()
        running.wait()
    with locked(store, DATASET_LOCK):
        pass


def test_of_two_runs_on_one_output_one_works(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = ("generate", "--output", output)
    first = start_in9(*command)
    wait_until(lambda: is_held(Store(str(output)), DATASET_LOCK), first)
    second = run_in9(*command, check=1)
    assert f"process {first.pid} on {socket.gethostname()} is at work" in second.stderr
    assert first.poll() is None
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL


def test_a_job_that_has_lost_the_dataset_does_not_commit(
    run_small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Store(str(tmp_path / "out"))

    def late(in_time: Callable[..., Any], *arguments: Any) -> Any:
        take_over(output, DATASET_LOCK)
        return in_time(*arguments)

    for step in ("prepare", "move_files"):
        with monkeypatch.context() as patch:
            patch.setattr(commit, step, functools.partial(late, getattr(commit, step)))
            message = run_small("generate", code=1)
        assert "is held by another job" in message
        assert len(message.splitlines()) == 1
        assert not any(map(output.sizes, ("layers", "index", "parquet")))
        assert not output.exists("manifest.json")
        output.delete_tree(DATASET_LOCK)
    run_small("generate")
    assert output.exists("manifest.json")


@pytest.mark.parametrize("how", [{"rounds": 30}, {"disturbances": 25}], ids=["fair", "torture"])
def test_no_two_hold_a_lock_at_once(store: Store, how: dict[str, int], tmp_path: Path) -> None:
    """Runs a small part of `scripts/races`."""
    logs = tmp_path / "logs"
    logs.mkdir()
    done = race(store.below("race"), logs, **how)
    assert done.doubles == 0
    assert done.rounds >= how.get("rounds", 10)


def test_a_claim_that_was_renewed_is_not_removed_by_who_saw_it_before(store: Store) -> None:
    files, path = files_of(store.root), store.path(".in9/lock")
    assert files.claim(path, "0f" * 16, b"{}", store.temporary())
    before = files.current_claim(path)
    assert before is not None
    assert files.renew(path, before)
    if not store.is_remote:
        # The test server ignores the condition and deletes.
        assert not files.unclaim(path, before, store.temporary())
    assert not files.renew(path, before)
    after = files.current_claim(path)
    assert after is not None
    assert (after.token, after.metadata) == (before.token, before.metadata)
    assert after.state != before.state
    assert files.unclaim(path, after, store.temporary())
    assert files.current_claim(path) is None
