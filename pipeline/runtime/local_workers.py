"""Worker processes of this machine, which run the calls of `pipeline.runtime.spread`.

The job starts them, and each is connected with it by a pipe, so nothing listens at a port.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from typing_extensions import override

from pipeline.errors import JobError, plain
from pipeline.runtime.machine import see_one_gpu
from pipeline.runtime.spread import ADVICE, Answer, Call, Engine, end_steps, run_call

_LOG = logging.getLogger(__name__)
_LOSSES = 3
"""How often a call is made again because its worker was lost."""
# A fork would inherit locks that other threads hold, and could not use CUDA.
_CONTEXT = multiprocessing.get_context("spawn")


class LocalWorkers(Engine):
    """An engine of worker processes, which start when calls come.

    Args:
      has_cards: whether each has a card of its own, and runs the calls of its place.
    """

    def __init__(self, number: int, has_cards: bool = False) -> None:
        self._number, self.has_cards = number, has_cards
        self._processes: dict[int, tuple[BaseProcess, Connection]] = {}
        self._is_closed = False

    @override
    def answers(self, calls: Sequence[Call]) -> Iterator[Answer]:
        queues = [collections.deque[Call]() for _ in range(self._number if self.has_cards else 1)]
        for call in calls:
            queues[call.place % len(queues)].append(call)
        answers = queue.SimpleQueue[Answer]()
        for number in range(self._number):
            threading.Thread(
                target=self._work,
                args=(number, queues[number % len(queues)], answers.put),
                daemon=True,
            ).start()
        yield from (answers.get() for _ in calls)
        for _, connection in self._processes.values():
            with contextlib.suppress(OSError):  # It may have ended meanwhile.
                connection.send(calls[0].token)

    def _work(
        self, number: int, calls: collections.deque[Call], put: Callable[[Answer], None]
    ) -> None:
        """Has a process run calls until none is left."""
        while calls and not self._is_closed:
            # Another thread may have taken the last one.
            with contextlib.suppress(IndexError):
                put(self._answer(number, calls.popleft()))

    def _answer(self, number: int, call: Call) -> Answer:
        for _ in range(_LOSSES + 1):
            try:
                process, connection = self._processes.get(number) or self._start(number)
                connection.send(call)
                answer: Answer = connection.recv()
                return answer
            except (EOFError, OSError) as error:
                if self._is_closed or number not in self._processes:  # It cannot be started.
                    return Answer(error=plain(error))
                process.join()
                del self._processes[number]
                _LOG.warning(
                    "a worker ended with exit code %s; its part is done again", process.exitcode
                )
        why = f"{_LOSSES + 1} workers were lost at one part; the last ended with exit code"
        return Answer(error=JobError(f"{why} {process.exitcode}. {ADVICE}"))

    def _start(self, number: int) -> tuple[BaseProcess, Connection]:
        ours, theirs = _CONTEXT.Pipe()
        with theirs:
            process = _CONTEXT.Process(
                target=_serve, args=(theirs, self._number, number if self.has_cards else None)
            )
            process.start()
        self._processes[number] = process, ours
        return process, ours

    @override
    def __exit__(self, *_: object) -> None:
        # No call of a stopped job may go on.
        self._is_closed = True
        for process, _pipe in [*self._processes.values()]:
            process.kill()
            process.join()


def _serve(connection: Connection, peers: int, card: int | None) -> None:
    """Runs calls, and ends the steps of tokens, until the job ends."""
    # They may reach all processes of a terminal or a batch job; the job's own ends this one.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # As in the job's own process.
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    threading.Thread(target=_end_with_job, daemon=True).start()
    if card is not None:
        import torch

        see_one_gpu(card, torch.cuda.device_count())
    with contextlib.suppress(EOFError):
        while call := connection.recv():
            if isinstance(call, Call):
                connection.send(run_call(call, peers))
            else:
                end_steps(call)


def _end_with_job() -> None:
    """Ends this process when the job's process has ended, however that was."""
    job = multiprocessing.parent_process()
    assert job is not None
    job.join()
    os._exit(1)
