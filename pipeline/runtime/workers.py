"""Engines and their workers: threads or processes that run calls, each a step on one element.

`LocalThreads` are of the job's own process, `LocalWorkers` are processes of this machine, and
`pipeline.runtime.dask_workers` are those of a Dask cluster. A worker process imports no Beam, which
takes a second and 100 MB. Only keys, paths and records travel with a call.
"""

from __future__ import annotations

import abc
import concurrent.futures
import contextlib
import dataclasses
import functools
import importlib.metadata
import logging
import multiprocessing
import os
import pickle
import platform
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, cast

from typing_extensions import override

from pipeline.errors import JobError, plain
from pipeline.runtime import machine
from pipeline.runtime.custom_functions import digest_of_module, imported_digests
from pipeline.runtime.own_code import digest_of_code
from pipeline.runtime.progress import counted_here

_LOG = logging.getLogger(__name__)
_LOSSES = 3
"""How often a call is made again because its worker was lost."""
# A fork would inherit locks that other threads hold, and could not use CUDA.
_CONTEXT = multiprocessing.get_context("spawn")
_OF_GROUP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

ADVICE = "Run the same command again to go on"


class Step(abc.ABC):
    """A step of the graph that `pipeline.runtime.spread` spreads; one object for each thread.

    Only `process` must be written.
    """

    def setup(self) -> None:  # noqa: B027
        """Is called once, before the first element."""

    @abc.abstractmethod
    def process(self, element: Any) -> Iterable[object]:
        """Returns the outputs of an element."""

    def teardown(self) -> None:  # noqa: B027
        """Is called after the last element."""


@dataclasses.dataclass(frozen=True)
class Call:
    """What a worker needs to run a step on one element.

    Attributes:
      token: names one step of one job, whose calls share a step in each thread of a worker.
      step, element: the step and the element; pickled.
      path: the folders of the job's PYTHONPATH.
      code: versions and digests of the code that the job has imported, by name.
      place: number of the block, if the step runs a model.
    """

    token: str
    step: bytes
    element: bytes
    path: Sequence[str]
    code: Mapping[str, str]
    place: int | None = None


class Answer(NamedTuple):
    """What came of a call; its error is of a class that can be unpickled."""

    outputs: Sequence[object] = ()
    counters: Mapping[str, int] = {}
    records: Sequence[logging.LogRecord] = ()
    error: Exception | None = None


class Engine(contextlib.AbstractContextManager["Engine"]):
    """Workers that run calls, from the beginning of a block to its end.

    If it `has_cards`, workers have one each, and so run only steps with a `card`.
    """

    has_cards = False

    @abc.abstractmethod
    def answers(self, calls: Sequence[Call]) -> Iterator[Answer]:
        """Runs calls, the first ones first; yields an answer for each, as they come."""


class _Records(logging.Handler):
    """Keeps what a worker logs for its next answer."""

    kept: Sequence[logging.LogRecord] = ()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.format(record)  # Sets the text of the traceback, which can be pickled.
            record.msg, record.args, record.exc_info = record.getMessage(), None, None
            self.kept = (*self.kept, record)
        except Exception:  # Its text may not go with its arguments.
            self.handleError(record)


_records = _Records(logging.WARNING)
_steps: dict[int, tuple[str, Step]] = {}
"""The token and the step of each thread of this worker."""


def run_call(call: Call, peers: int) -> Answer:
    """Runs a call in one of `peers` workers of this machine, which share its memory."""
    sys.path[:] = [*call.path, *(folder for folder in sys.path if folder not in call.path)]
    if why := refusal(tuple(call.code.items())):
        return Answer(error=JobError(f"the worker {socket.gethostname()} {why}"))
    machine.share_with(peers)
    logging.getLogger().addHandler(_records)
    outputs, raised = [], None
    with counted_here() as counters:
        try:
            outputs = [*_step_of(call).process(pickle.loads(call.element))]
        except Exception as error:
            logging.getLogger("apache_beam").exception("a call failed")
            raised = plain(error)
    records, _records.kept = _records.kept, ()
    return Answer(outputs, counters, records, raised)


def _step_of(call: Call) -> Step:
    """Returns the step of a call, which is set up once in each thread."""
    thread = threading.get_ident()
    token, step = _steps.get(thread, ("", None))
    if step is None or token != call.token:
        # Other threads may be in the middle of theirs.
        if ended := _steps.pop(thread, None):
            ended[1].teardown()
        step = pickle.loads(call.step)
        step.setup()
        _steps[thread] = call.token, step
    return step


def end_steps(token: str) -> None:
    """Ends the step of a token, in all threads of this worker."""
    for thread, (other, step) in [*_steps.items()]:
        if other == token:
            del _steps[thread]
            step.teardown()


def _own_code() -> dict[str, str]:
    """Returns what must be equal in a job and its workers: versions, and a digest of our code."""
    return {
        "Python": platform.python_version(),
        "apache-beam": importlib.metadata.version("apache-beam"),
        "in9": digest_of_code(".py"),
    }


CODE = _own_code()
"""The code that this process has imported."""


def is_stale(code: Mapping[str, str]) -> bool:
    """Returns whether this process has imported other code than a job's."""
    imported = CODE | imported_digests
    return any(imported.get(name, wanted) != wanted for name, wanted in code.items())


@functools.lru_cache(1)
def refusal(code: tuple[tuple[str, str], ...]) -> str:
    """Returns how this worker's code differs from a job's; "" if it does not."""
    on_disk = _own_code()
    for name, wanted in code:
        if (found := on_disk.get(name) or digest_of_module(name)) != wanted:
            return f"has {name} {found[:12]}, but the job has {wanted[:12]}"
    return "has imported code that has changed since; restart it" if is_stale(dict(code)) else ""


class LocalThreads(Engine):
    """An engine of threads of this process, each of which takes the next call after its last one.

    Beam's own threads get equal numbers of elements, so that all wait for the slowest. If it
    `has_cards`, each thread has one of its own, and runs the calls of its place.
    """

    def __init__(self, number: int, has_cards: bool = False) -> None:
        self._number, self.has_cards = number, has_cards
        self._pools = [
            concurrent.futures.ThreadPoolExecutor(threads)
            for threads in ([1] * number if has_cards else [number])
        ]

    @override
    def answers(self, calls: Sequence[Call]) -> Iterator[Answer]:
        pools = len(self._pools)
        # Nothing else holds the list, so that answers do not stay in memory.
        for done in concurrent.futures.as_completed(
            [self._pools[(call.place or 0) % pools].submit(self._answer, call) for call in calls]
        ):
            yield done.result()

    def _answer(self, call: Call) -> Answer:
        """Runs a call in this thread; raises what its step raises."""
        with counted_here() as counters:
            return Answer([*_step_of(call).process(pickle.loads(call.element))], counters)

    @override
    def __exit__(self, *_: object) -> None:
        # A stopped job does not wait for threads that are in the middle of a call.
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for token, _step in [*_steps.values()]:
            end_steps(token)


class LocalWorkers(LocalThreads):
    """An engine of worker processes, one for each thread, which start when calls come.

    Unless it `has_cards`, models run in the threads, which share the device and decoded pictures.
    """

    def __init__(self, number: int, has_cards: bool = False) -> None:
        super().__init__(number, has_cards)
        self._processes: dict[int, tuple[BaseProcess, Connection]] = {}
        self._is_closed = False

    @override
    def answers(self, calls: Sequence[Call]) -> Iterator[Answer]:
        yield from super().answers(calls)
        for _, connection in self._processes.values():
            with contextlib.suppress(OSError):  # It may have ended meanwhile.
                connection.send(calls[0].token)

    @override
    def _answer(self, call: Call) -> Answer:
        if (call.place is None) == self.has_cards:
            return super()._answer(call)
        thread = threading.get_ident()
        for _ in range(_LOSSES + 1):
            try:
                process, connection = self._processes.get(thread) or self._start(thread, call)
                connection.send(call)
                return cast(Answer, connection.recv())
            except (EOFError, OSError) as error:
                if self._is_closed or thread not in self._processes:  # It cannot be started.
                    return Answer(error=plain(error))
                process.join()
                del self._processes[thread]
                _LOG.warning(
                    "a worker ended with exit code %s; its part is done again", process.exitcode
                )
        why = f"the last ended with exit code {process.exitcode}. {ADVICE}"
        return Answer(error=JobError(f"{_LOSSES + 1} workers were lost at one part; {why}"))

    def _start(self, thread: int, call: Call) -> tuple[BaseProcess, Connection]:
        ours, theirs = _CONTEXT.Pipe()
        with theirs:
            process = _CONTEXT.Process(target=_serve, args=(theirs, self._number, call.place))
            # From its first moment on, it keeps out signals that may reach all processes of a
            # terminal or a batch job; the job's own process ends it.
            resource_tracker.ensure_running()  # Its start would let them in again.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_GROUP)
            try:
                process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._processes.setdefault(thread, (process, ours))

    @override
    def __exit__(self, *_: object) -> None:
        # No call of a stopped job may go on.
        self._is_closed = True
        super().__exit__()
        for process, _pipe in [*self._processes.values()]:
            process.kill()
            process.join()


def _serve(connection: Connection, peers: int, place: int | None) -> None:
    """Runs calls, and ends the steps of tokens, until the job ends; with a place, on its card."""
    # As in the job's own process.
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    threading.Thread(target=_end_with_job, daemon=True).start()
    cards = 0
    if place is not None:
        import torch

        machine.see_one_gpu(place % peers, torch.cuda.device_count)
        cards = torch.cuda.device_count()
    with contextlib.suppress(EOFError):
        while call := connection.recv():
            if isinstance(call, Call) and cards > 1:
                why = (
                    f"each process must see one GPU, and this one sees {cards}: name those to use "
                    "in CUDA_VISIBLE_DEVICES"
                )
                connection.send(Answer(error=JobError(why)))
            elif isinstance(call, Call):
                connection.send(run_call(call, peers))
            else:
                end_steps(call)


def _end_with_job() -> None:
    """Ends this process when the job's process has ended, however that was."""
    job = multiprocessing.parent_process()
    assert job is not None
    job.join()
    os._exit(1)
