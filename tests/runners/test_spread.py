"""Tests the laws of `Spread` on both engines, and jobs in processes of this machine."""

import os
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dask_cluster import DaskCluster, dask_cluster, spawned_by
from engine_jobs import Signs, listened_at, printed
from forking import Started
from lost_workers import STEPS, lost_after_steps
from machines import until
from runs import ROOT, everything, results_of, run_in9, start_in9, wait_until
from spread_steps import Die, Fail, Meet, Note, Shared, Sleep, outputs_of

from pipeline.errors import JobError, UsageError
from pipeline.runtime import spread
from pipeline.runtime.dask_workers import DaskWorkers
from pipeline.runtime.spread import Engine, LocalWorkers

PROCESSES = ("--direct_running_mode=multi_processing", "--direct_num_workers=2")


@pytest.fixture(scope="module", autouse=True)
def paths() -> Iterator[None]:
    """Workers find this checkout, and the steps of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'support'}")
        yield


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A Dask cluster of two workers."""
    with dask_cluster(tmp_path_factory.mktemp("dask"), 2) as cluster:
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


def test_all_workers_get_work_and_count(engine: Engine, tmp_path: Path) -> None:
    processes, counters = outputs_of(engine, Sleep(), [0.01] * 60, tmp_path)
    assert counters == {"naps": 60}
    assert len(processes) == 60
    assert len(set(processes)) == 2


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
        assert said[:2] == ["first setup", "first start"]
        assert said[ends - 1] == "first teardown"
        assert set(said[2 : ends - 1]) == {"first process"}
        assert said[ends + 1] == "second start"
        assert set(said[ends + 2 :]) - {"second teardown"} == {"second process"}
        assert len({thread for what, thread in found if not what.endswith("teardown")}) == 1


@pytest.mark.parametrize("length", [10, 20_000])
@pytest.mark.parametrize("kind", ["JobError", "UsageError", "ValueError"])
def test_an_error_of_a_step_is_raised_once_as_in_threads(
    engine: Engine, tmp_path: Path, kind: str, length: int
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
        late = cluster.add("--nthreads", 2, wait=False)
        found, _ = running.result()
    assert [len(each) for each in found] == [3] * 4
    # It has two threads, and a step of its own in each.
    notes = tmp_path / "notes"
    outputs_of(DaskWorkers(cluster.address), Note(notes, "it"), [*range(40)], tmp_path)
    cluster.remove(late)
    lines = [tuple(line.split()[1:]) for line in notes.read_text().splitlines()]
    set_up, begun = ([line[1:] for line in lines if line[0] == what] for what in ("setup", "start"))
    assert sorted(set_up) == sorted(begun) == sorted({i[1:] for i in lines if i[0] == "process"})
    assert len(set_up) == 4
    assert len([what for what, *_ in lines if what == "teardown"]) == 4


def test_a_call_that_ends_each_worker_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "_LOSSES", 1)
    with pytest.raises(
        JobError, match=r"2 workers were lost at one part; .* exit code -9"
    ) as error:
        outputs_of(LocalWorkers(2), Die(), [0], tmp_path)
    assert "Run the same command again to go on" in str(error.value)


def test_a_job_that_loses_a_process_in_each_step_says_what_one_in_threads_says_and_never_listens(
    whole_job: tuple[object, ...], by_threads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses, output = tmp_path / "losses", tmp_path / "out"
    for name, value in lost_after_steps(losses).items():
        monkeypatch.setenv(name, value)
    for step in STEPS:
        (losses / step).touch()
    running = start_in9(*whole_job, output, *PROCESSES)
    assert listened_at(running) == set()
    assert (by_threads / "listened").read_text() == ""
    out, error = running.communicate()
    assert running.returncode == 0, error
    assert {path.name for path in losses.iterdir()}.isdisjoint(STEPS)
    lost = "a worker ended with exit code -9; its part is done again"
    assert error.count(lost) == len(STEPS)
    assert printed(out, output) == (by_threads / "stdout").read_text().splitlines()
    assert results_of(output) == results_of(by_threads / "out")


@pytest.fixture
def at_work(
    quick_job: tuple[object, ...], modules: Path, tmp_path: Path
) -> tuple[Started, Signs, Path]:
    """A job whose two processes are at work, their signs, and its output."""
    signs, output = Signs(modules), tmp_path / "out"
    running = start_in9(*quick_job, *signs.flags, "--output", output, *PROCESSES)
    wait_until(lambda: len(signs.seen()) == 2, running)
    return running, signs, output


def test_processes_that_are_killed_at_once_are_started_again(
    at_work: tuple[Started, Signs, Path], by_signs: Path
) -> None:
    running, signs, output = at_work
    for process in spawned_by(running.pid):
        os.kill(process, signal.SIGKILL)
    wait_until(lambda: len(signs.seen()) == 4, running)
    signs.go_on()
    _, error = running.communicate()
    assert running.returncode == 0, error
    assert results_of(output) == results_of(by_signs)


def test_processes_end_with_a_job_that_is_killed(
    at_work: tuple[Started, Signs, Path], quick_job: tuple[object, ...], by_signs: Path
) -> None:
    running, signs, output = at_work
    running.kill()
    running.wait()
    signs.wait_for_end()
    left = everything(output)
    signs.go_on()
    time.sleep(0.5)
    assert everything(output) == left
    run_in9(*quick_job, *signs.flags, "--output", output)
    assert results_of(output) == results_of(by_signs)
