"""Tests `Spread`, and jobs, on both engines: processes of this machine, and a Dask cluster."""

import os
import re
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine_jobs import DaskCluster, Signs, dask_cluster, listened_at, printed, spawned_by
from gcs import free_port
from lost_workers import STEPS, lost_after_steps
from machines import until
from runs import (
    QUICK,
    ROOT,
    forks,
    manifest_of,
    refusal,
    results_of,
    run_in9,
    start_in9,
    take_over,
    wait_until,
    words_of,
)
from spread_steps import Die, Fail, Import, Meet, Note, Shared, Sleep, outputs_of

from pipeline.errors import JobError, UsageError
from pipeline.runtime import workers
from pipeline.runtime.dask_workers import DaskWorkers
from pipeline.runtime.lock import DATASET_LOCK
from pipeline.runtime.workers import Engine, LocalThreads, LocalWorkers
from pipeline.storage.store import Store

Words = tuple[object, ...]
PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


@pytest.fixture(scope="module", autouse=True)
def losses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of `lost_after_steps` for all workers."""
    folder = tmp_path_factory.mktemp("dask") / "losses"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in lost_after_steps(folder).items():
            patch.setenv(name, value)
        yield folder


@pytest.fixture(scope="module")
def cluster(losses: Path) -> Iterator[DaskCluster]:
    """A cluster of two workers, which can be lost after each step."""
    with dask_cluster(losses.with_name("cluster"), 2, **lost_after_steps(losses)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def bare(losses: Path) -> Iterator[DaskCluster]:
    """A scheduler without workers, which deals no call of a lost worker again."""
    never = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with dask_cluster(losses.with_name("bare"), 0, **never) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=["local", "dask"])
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """An engine of two workers that have imported everything."""
    if request.param == "local":
        own: Engine = LocalWorkers(2)
    else:
        own = DaskWorkers(request.getfixturevalue("cluster").address)
    with own:
        shared = Shared(own)
        meet = Meet(tmp_path_factory.mktemp("meet"))
        outputs_of(shared, meet, [2, 2], tmp_path_factory.mktemp("job"))
        yield shared


def test_a_step_is_set_up_once_for_each_thread_and_job(engine: Engine, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    for name in ("first", "second"):
        outputs, _ = outputs_of(engine, Note(notes, name), [*range(20)], tmp_path)
        assert sorted(outputs) == [*range(20)]
    by_process = defaultdict(list)
    for line in notes.read_text().splitlines():
        name, what, process, thread = line.split()
        by_process[process].append((f"{name} {what}", thread))
    assert len(by_process) == 2
    for found in by_process.values():
        said = [what for what, _ in found]
        ends = said.index("second setup")
        assert said[0] == "first setup"
        assert said[ends - 1] == "first teardown"
        assert set(said[1 : ends - 1]) == {"first process"}
        assert set(said[ends + 1 :]) - {"second teardown"} == {"second process"}
        assert len({thread for what, thread in found if not what.endswith("teardown")}) == 1


def test_workers_do_not_wait_for_beam(engine: Engine, tmp_path: Path) -> None:
    modules = [f"pipeline.generate.{name}" for name in ("segment", "compose", "commit")]
    assert outputs_of(engine, Import(), modules, tmp_path)[0] == [False] * 3


@pytest.mark.parametrize(
    ("kind", "length"), [(JobError, 20_000), (UsageError, 10), (ValueError, 20_000)]
)
def test_an_error_of_a_step_is_raised_once_as_in_threads(
    engine: Engine, tmp_path: Path, kind: type[Exception], length: int
) -> None:
    raised = []
    for number, one in enumerate((None, engine)):
        folder = tmp_path / str(number)
        folder.mkdir()
        fail = Fail(folder, kind, "long " * (length // 5))
        with pytest.raises((JobError, UsageError)) as error:
            outputs_of(one, fail, [0], tmp_path)
        assert len(os.listdir(folder)) == 1
        raised.append((error.type, str(error.value)))
        if error.type is JobError:  # The log says where it was raised.
            assert "spread_steps.py" in (tmp_path / "job.log").read_text()
    assert raised[0] == raised[1]
    assert len(raised[0][1]) >= length


def test_a_worker_that_joins_late_gets_work(cluster: DaskCluster, tmp_path: Path) -> None:
    meet = tmp_path / "meet"
    meet.mkdir()
    with ThreadPoolExecutor(1) as threads:
        work = (DaskWorkers(cluster.address), Meet(meet), [3] * 4, tmp_path)
        running = threads.submit(outputs_of, *work)
        until(lambda: len(os.listdir(meet)) == 2)
        late = cluster.add("--nthreads", 2, "--no-nanny", wait=False)
        found, _ = running.result()
    assert [len(each) for each in found] == [3] * 4
    # It has two threads, and a step of its own in each.
    notes = tmp_path / "notes"
    outputs_of(DaskWorkers(cluster.address), Note(notes, "it"), [*range(40)], tmp_path)
    cluster.remove(late)
    lines = [tuple(line.split()[1:]) for line in notes.read_text().splitlines()]
    set_up = [line[1:] for line in lines if line[0] == "setup"]
    assert sorted(set_up) == sorted({line[1:] for line in lines if line[0] == "process"})
    assert len([what for what, *_ in lines if what == "teardown"]) == len(set_up) == 4


def test_threads_take_calls_as_long_as_there_are_some(tmp_path: Path) -> None:
    (tmp_path / "meet").mkdir()
    meet = Meet(tmp_path / "meet", time.monotonic_ns)
    found, _ = outputs_of(LocalThreads(2), meet, [6, *[1] * 5], tmp_path)
    assert max(map(len, found)) == 6
    outputs_of(LocalThreads(2), Note(tmp_path / "notes", "it"), [*range(20)], tmp_path)
    said = (tmp_path / "notes").read_text()
    assert said.count("setup") == said.count("teardown") == 2


def test_a_call_that_ends_each_worker_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_LOSSES", 0)
    with pytest.raises(JobError, match=r"1 workers were lost at one part; .* exit code -9\. Run"):
        outputs_of(LocalWorkers(2), Die(), [0], tmp_path)


def test_what_stops_all_processes_of_a_terminal_does_not_reach_workers(tmp_path: Path) -> None:
    with LocalWorkers(1) as workers:
        (worker,), _ = outputs_of(Shared(workers), Sleep(), [0.0], tmp_path)
        (found,) = re.findall(r"SigBlk:\s*(\w+)", Path(f"/proc/{worker}/status").read_text())
    kept_out = {number for number in range(1, 64) if int(found, 16) >> (number - 1) & 1}
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= kept_out


# Jobs, in processes of their own.


@pytest.fixture(params=["local", "dask"])
def address(request: pytest.FixtureRequest) -> str:
    """The address of the cluster; "" for processes of this machine."""
    return "" if request.param == "local" else request.getfixturevalue("cluster").address


def workers_at(address: str) -> Words:
    """Returns the flags of a job on workers at an address."""
    return ("--dask", address) if address else PROCESSES


def without_progress(error: str) -> str:
    """Removes the lines of progress that a stage leaves if it takes longer than half a minute."""
    return re.sub(r"(?m)^\w+: \d+ of \d+ \w+.*\n", "", error)


def test_a_job_that_loses_workers_says_and_makes_what_one_in_threads_does(
    address: str, losses: Path, whole_job: Words, by_threads: Path, tmp_path: Path
) -> None:
    steps = {*STEPS} if address else {"Move"}  # Models run in the job's own process.
    for step in steps:
        (losses / step).touch()
    output = tmp_path / "out"
    running = start_in9(*whole_job, output, *workers_at(address))
    listened = listened_at(running)
    out, error = running.communicate()
    assert running.returncode == 0, error
    assert {path.name for path in losses.iterdir()}.isdisjoint(steps)
    assert printed(out, output) == (by_threads / "stdout").read_text().splitlines()
    assert results_of(output) == results_of(by_threads / "out")
    if address:
        assert without_progress(error) == ""
    else:
        lost = "a worker ended with exit code -9; its part is done again"
        assert error.count(lost) == len(steps)
        assert listened == set()
        assert (by_threads / "listened").read_text() == ""


@pytest.fixture
def signs(modules: Path) -> Signs:
    """The signs of a segmenter that works until it may go on."""
    return Signs(modules)


def test_workers_that_are_killed_at_once_are_replaced_and_no_call_outlives_its_job(
    address: str,
    request: pytest.FixtureRequest,
    quick_job: Words,
    signs: Signs,
    tmp_path: Path,
    by_signs: Path,
) -> None:
    command = (*quick_job, *signs.flags, "--output", tmp_path / "out")
    ends = (signal.SIGINT, signal.SIGKILL) if address else (signal.SIGKILL,)
    for how in ends:
        before = signs.seen()
        running = start_in9(*command, *workers_at(address))
        wait_until(lambda before=before: len(signs.seen() - before) == 2, running)
        if how == ends[0]:
            cluster = request.getfixturevalue("cluster") if address else None
            killed = cluster.at_work() if cluster else {*spawned_by(running.pid)}
            assert killed == signs.seen()
            for worker in killed:
                os.kill(worker, signal.SIGKILL)
            wait_until(lambda: len(signs.seen()) == 4, running)
        os.kill(running.pid, how)
        _, said = running.communicate()
        assert running.returncode == (1 if how == signal.SIGINT else -how)
        if how == signal.SIGINT:
            assert said == "in9 generate: stopped; run the same command again to go on\n"
        signs.wait_for_end()
    assert not (tmp_path / "out" / "manifest.json").exists()
    signs.go_on()
    run_in9(*command)
    assert results_of(tmp_path / "out") == results_of(by_signs)


def test_a_job_that_has_lost_its_lock_moves_nothing(
    cluster: DaskCluster, losses: Path, quick_job: Words, tmp_path: Path
) -> None:
    output, hold = tmp_path / "out", losses / "Move"
    hold.mkdir()
    running = start_in9(*quick_job, "--output", output, "--dask", cluster.address)
    wait_until(lambda: [*hold.iterdir()], running)
    take_over(Store(str(output)), DATASET_LOCK)
    left = results_of(output)
    shutil.rmtree(hold)
    _, error = running.communicate()
    assert running.returncode == 1
    assert "It stops without writing" in error.splitlines()[-1]
    assert results_of(output) == left


def test_jobs_share_workers(
    cluster: DaskCluster, quick_job: Words, tmp_path: Path, by_boxes: Path
) -> None:
    outputs = [tmp_path / name for name in ("a", "b")]
    running = [start_in9(*quick_job, "--dask", cluster.address, "--output", one) for one in outputs]
    for one, output in zip(running, outputs, strict=True):
        _, error = one.communicate()
        assert one.returncode == 0, error
        assert results_of(output) == results_of(by_boxes)


EDITED = """
import numpy as np

def segment(image, box):
    mask = np.zeros(image.shape[:2], bool)
    mask[box[1] : box[1] + {height}, box[0] : box[2] + 1] = True
    return mask
"""
IMPATIENT = """
from pipeline.commands.cli import run_process
from pipeline.runtime import dask_workers

dask_workers._PATIENCE = 1
run_process()
"""
"""in9 that says sooner that it waits for workers."""


def test_workers_that_come_late_and_run_the_code_of_the_job(
    cluster: DaskCluster, bare: DaskCluster, quick_job: Words, modules: Path, tmp_path: Path
) -> None:
    """Edits a segmenter, which only the launching process finds by itself, between jobs."""
    command = (*quick_job, "--segmenter", "python:edited:segment", "--output")
    (modules / "edited.py").write_text(EDITED.format(height=8))
    (program := tmp_path / "impatient.py").write_text(IMPATIENT)
    words = words_of([*command, tmp_path / "waited", "--dask", bare.address])
    running = forks().start(words, dict(os.environ), program=program)
    wait_until(running.written, running)
    workers = bare.add("--no-nanny")
    _, error = running.communicate()
    assert running.returncode == 0, error
    waits = f"in9: WARNING: waiting for workers: none is connected with {bare.address}\n"
    assert without_progress(error) == waits
    run_in9(*command, tmp_path / "first", "--dask", cluster.address)
    assert results_of(tmp_path / "first") == results_of(tmp_path / "waited")
    (modules / "edited.py").write_text(EDITED.format(height=16))
    run_in9(*command, tmp_path / "second", "--dask", cluster.address)
    run_in9(*command, tmp_path / "fresh")
    assert results_of(tmp_path / "second") == results_of(tmp_path / "fresh")
    assert manifest_of(tmp_path / "first") != manifest_of(tmp_path / "second")
    done = run_in9(*command, tmp_path / "refused", "--dask", bare.address, check=1)
    assert re.fullmatch(r".*a worker has imported other code.*restart it.*\n", done.stderr)
    lost = r"workers were lost at one part; the last was tcp://127.0.0.1:\d+\. Run the same command"
    with pytest.raises(JobError, match=lost):
        outputs_of(DaskWorkers(bare.address), Die(), [0], tmp_path)
    bare.remove(workers)


def test_a_worker_of_another_version_ends_the_job(
    bare: DaskCluster, quick_job: Words, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    for folder in ("pipeline", "transforms"):
        shutil.copytree(ROOT / folder, other / folder)
    with (other / "pipeline" / "errors.py").open("a") as file:
        file.write("# Another version.\n")
    workers = bare.add(PYTHONPATH=str(other))
    done = run_in9(*quick_job, "--output", tmp_path / "out", "--dask", bare.address, check=1)
    bare.remove(workers)
    said = f".*the worker {re.escape(os.uname().nodename)} has in9 .*, but the job has .*\n"
    assert re.fullmatch(said, done.stderr)


def test_the_address_of_the_environment_is_checked_before_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    command = ("generate", "--output", tmp_path / "out", *QUICK, "--dask", "auto")
    assert "DASK_SCHEDULER_ADDRESS, which is not set" in refusal(*command)
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://192.0.2.1:8786")
    assert "whoever reaches tcp://192.0.2.1:8786 can run code" in refusal(*command)


def test_a_scheduler_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "1s")
    for address in (f"tcp://127.0.0.1:{free_port()}", "tcp://192.0.2.1:8786"):
        dask = ("--dask", address if "127" in address else f"insecure:{address}")
        done = run_in9("generate", "--output", tmp_path / "out", *QUICK, *dask, check=2)
        assert done.stderr.count("\n") == 1
        assert f"no scheduler answers at {address}: " in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_job_that_loses_the_scheduler_ends_in_one_line(
    cluster: DaskCluster, quick_job: Words, signs: Signs, tmp_path: Path, by_signs: Path
) -> None:
    # This test comes last because the others need the scheduler.
    command = (*quick_job, *signs.flags, "--output", tmp_path / "out")
    running = start_in9(*command, "--dask", cluster.address)
    wait_until(signs.seen, running)
    os.killpg(cluster.scheduler.pid, signal.SIGKILL)
    _, error = running.communicate()
    assert running.returncode == 1
    assert re.fullmatch(r".*Run the same command again to go on .*\n", error)
    signs.go_on()
    run_in9(*command)
    assert results_of(tmp_path / "out") == results_of(by_signs)
