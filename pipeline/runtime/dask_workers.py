"""A Dask cluster, whose workers run the calls of `pipeline.runtime.workers`.

Dask deals the call of a lost worker again. An error of our code is part of an answer, because Dask
would cut a long one.
"""

import collections
import contextlib
import logging
import os
import queue
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self, cast
from urllib.parse import urlsplit

import dask
import distributed
from typing_extensions import override

from pipeline.errors import JobError, UsageError, one_line, refuse_first
from pipeline.runtime.lock import release_all
from pipeline.runtime.machine import usable_cores
from pipeline.runtime.workers import ADVICE, Answer, Call, Engine, end_steps, is_stale, run_call
from transforms.limits import load_json

_LOG = logging.getLogger(__name__)
_CALLS = 2
"""Calls of each worker that are in flight: one runs, and one waits, so that no worker idles."""
_OF_NANNY = str(dask.config.get("distributed.nanny.pre-spawn-environ").get("OMP_NUM_THREADS"))
_THREADS = os.environ.get("OMP_NUM_THREADS", _OF_NANNY)
"""How many threads a model may use; it says nothing if Dask's nanny alone has chosen it."""
_PATIENCE = 10
"""Seconds after which the terminal says that there is no worker."""
_INSECURE = "insecure:"
_LOOPBACK = re.compile(r"localhost|::1|127(\.[0-9]+){3}")


class DaskWorkers(Engine):
    """An engine of the workers of a Dask cluster.

    Raises UsageError if the address is wrong or unsafe; or, where the block begins, no scheduler
    answers.
    """

    def __init__(self, address: str) -> None:
        self._address = _scheduler_address(address)

    @override
    def __enter__(self) -> Self:
        try:
            self._client = distributed.Client(self._address, set_as_default=False)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise UsageError(
                f"--dask: no scheduler answers at {self._address}: {one_line(error)}"
            ) from error
        return self

    @override
    def answers(self, calls: Sequence[Call]) -> Iterator[Answer]:
        try:
            yield from self._answers(calls)
        except OSError as error:
            raise JobError(f"the connection with Dask's scheduler was lost. {ADVICE}") from error

    def _answers(self, calls: Sequence[Call]) -> Iterator[Answer]:
        found = self._client.run(is_stale, calls[0].code, on_error="return")
        try:
            self._client.restart_workers(
                [worker for worker, stale in found.items() if stale is True]
            )
        except (KeyError, TimeoutError, ValueError) as error:
            raise JobError(f"a worker has imported other code: {error}; restart it") from error
        waiting, done = collections.deque(calls), queue.SimpleQueue[distributed.Future]()
        running, seen, has_told = set[distributed.Future](), time.monotonic(), False
        workers, looked = dict[str, int](), 0.0
        while waiting or running:
            # Workers may come and go; to ask costs as much as a call.
            if (now := time.monotonic()) > looked + 1:
                workers, looked = self._client.nthreads(), now
            seen = now if workers else seen
            if now - seen > _PATIENCE and not has_told:
                has_told = True
                _LOG.warning("waiting for workers: none is connected with %s", self._address)
            hosts = collections.Counter(urlsplit(worker).hostname for worker in workers)
            for _ in range(min(len(waiting), _CALLS * len(workers) - len(running))):
                future = self._client.submit(_run, waiting.popleft(), hosts, pure=False)
                future.add_done_callback(done.put)
                running.add(future)
            with contextlib.suppress(queue.Empty):
                future = done.get(timeout=1)
                running.remove(future)
                yield _answer_of(future)
        self._client.run(end_steps, calls[0].token, on_error="ignore")

    @override
    def __exit__(self, *_: object) -> None:
        # Workers see that nobody wants what still runs.
        self._client.close(timeout=2)


def _answer_of(future: distributed.Future) -> Answer:
    """Returns the answer to a call, or what kept Dask from it."""
    if future.status == "finished":
        return cast(Answer, future.result())
    if future.status != "error":
        raise ConnectionError(future.status)
    if isinstance(error := future.exception(), distributed.KilledWorker):
        why = f"workers were lost at one part; the last was {error.last_worker.address}"
    else:
        why = f"a worker cannot do its part: {type(error).__name__}: {one_line(error)}"
    return Answer(error=JobError(f"{why}. {ADVICE}"))


def _run(call: Call, hosts: Mapping[str | None, int]) -> Answer:
    """Runs a call, in a worker of a cluster with so many workers on each host."""
    worker, ended = distributed.get_worker(), threading.Event()
    peers = hosts.get(urlsplit(worker.address).hostname, 1)
    if _THREADS == _OF_NANNY:
        os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // peers))
    threading.Thread(
        target=_end_if_unwanted, args=(worker, worker.get_current_task(), ended), daemon=True
    ).start()
    try:
        return run_call(call, peers)
    finally:
        ended.set()


def _end_if_unwanted(worker: distributed.Worker, key: str, ended: threading.Event) -> None:
    """Ends this process when nobody wants a call any more; its nanny starts another one.

    So no call of a job that was stopped goes on, such as one that runs a model for hours.
    """
    while not ended.wait(1):
        task = worker.state.tasks.get(key)
        # A worker that has lost the scheduler waits for its calls.
        is_wanted = task and task.state == "executing" and worker.status.name != "closing"
        if not is_wanted and not ended.is_set():
            release_all()
            os._exit(1)


def _scheduler_address(text: str) -> str:
    """Returns the address in `--dask`; UsageError if wrong, or where strangers could run code."""
    place = text.removeprefix(_INSECURE)
    if place == "auto":
        place = os.environ.get("DASK_SCHEDULER_ADDRESS", "DASK_SCHEDULER_ADDRESS, which is not set")
    try:
        if "://" not in place:
            place = str(load_json(Path(place).read_bytes())["address"])
        scheme, host = urlsplit(place).scheme, urlsplit(place).hostname or ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"--dask {text}: expected tls://HOST:PORT, tcp://127.0.0.1:PORT, a scheduler's file, "
            f"or auto: {one_line(error)}"
        ) from error
    is_safe = scheme == "tls" or text.startswith(_INSECURE) or _LOOPBACK.fullmatch(host)
    reasons = {
        f"{place} begins with neither tls:// nor tcp://": scheme not in ("tcp", "tls"),
        f"whoever reaches {place} can run code there; use tls:// with certificates, or say "
        f"{_INSECURE}{text} in a network that nobody else reaches": not is_safe,
    }
    refuse_first(reasons, f"--dask {text}: ")
    return place
