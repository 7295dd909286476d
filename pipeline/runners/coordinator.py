"""Runs a graph on worker processes, which a command or worker pools start, also elsewhere.

This is Beam's in-process runner with three changes. Its worker processes are started by a command
or by pools (`pipeline.runners.worker`). Its servers listen on one interface, and answer nobody but
these workers. And the work of a stage is dealt from a queue, to which a lost worker's part returns.
Only keys, paths and records pass through this process.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import itertools
import logging
import re
import secrets
import signal
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import apache_beam as beam
import grpc
from apache_beam.metrics import monitoring_infos
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability import python_urns
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner import execution, fn_runner, worker_handlers
from apache_beam.runners.runner import PipelineResult
from typing_extensions import override

from pipeline.errors import JobError, counted
from pipeline.runners.beam_options import servers_at
from pipeline.runners.worker import CONTROL, ask_pool, settings_text, start_process
from pipeline.runners.workers import Workers

_LOG = logging.getLogger(__name__)
_OUTPUT_LOG = logging.getLogger("worker")

_PARTS_PER_WORKER = 64
"""A stage's work is divided into this many parts for each worker, unless it has fewer elements. So
workers end at about the same time, and a lost worker loses little."""
_REPEATS = 3
"""How often a part is done again because its worker is lost."""
_PATIENCE = 10
"""Seconds after which the terminal says how many workers are missing."""
_GRACE = 10
"""Seconds that workers have to end after the job, before they are killed."""
_ADVICE = "Run the same command again to go on"
_CLOSED = "Channel closed prematurely."
"""Beam's message for a worker that has ended."""


class _Worker(worker_handlers.GrpcWorkerHandler):
    """A worker process, from its start to its end.

    Args:
      plan: the workers of the job.
      door: admits it. The number of those before it chooses its pool.
      changed: what is notified when its attributes change.

    Attributes:
      has_come: whether it has called back.
      is_busy: whether it is working on a part.
      is_closing: whether the job needs it no more.
      end: why it is given up; "" as long as it is not.
      last_line: the last line of its output.
    """

    def __init__(
        self, plan: Workers, door: _Door, changed: threading.Condition, _: bytes, *arguments: Any
    ) -> None:
        self._plan, self._changed = plan, changed
        self._pool = plan.pools[len(door) % len(plan.pools)] if plan.pools else None
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self.has_come = self.is_busy = self.is_closing = False
        self.end = self.last_line = ""
        # Beam also closes workers that could not be started.
        self._stop: Callable[[int], object] = lambda _: None
        super().__init__(*arguments)
        # Beam's ids are numbers that anybody can guess.
        self.worker_id = secrets.token_hex()
        self.control_conn = self.control_handler.get_conn_by_worker_id(self.worker_id)
        self.data_conn = self.data_plane_handler.get_conn_by_worker_id(self.worker_id)
        door[self.worker_id] = self

    @property
    def is_free(self) -> bool:
        """Whether it waits for a part."""
        return self.has_come and not self.is_busy and not self.end

    @override
    def host_from_worker(self) -> str:
        return self._plan.address

    @override
    def start_worker(self) -> None:
        settings = settings_text(
            {
                "WORKER_ID": self.worker_id,
                CONTROL: str(self.control_api_service_descriptor()),
                "LOGGING_API_SERVICE_DESCRIPTOR": str(self.logging_api_service_descriptor()),
                "PIPELINE_OPTIONS": '{"default_sdk_harness_log_level": "WARNING"}',
                "RUNNER_CAPABILITIES": " ".join(worker_handlers.FNAPI_RUNNER_CAPABILITIES),
            }
        )
        if self._pool:
            self._output, self._stop = ask_pool(self._pool, self._plan.secret, settings)
        else:
            self._output, self._stop = start_process(self._plan.command, settings)
        self._watcher.start()

    def _watch(self) -> None:
        """Logs the worker's output, and waits for its end."""
        try:
            for line in self._output:
                if text := line.decode(errors="replace").strip():
                    self.last_line = text
                    _OUTPUT_LOG.warning("%s", text)
        except (JobError, OSError, ValueError) as error:
            # It says more than that the worker no longer answers, unless `explain` has ended it.
            self.end = self.end if self.is_closing else str(error)
            self.give_up(str(error))

    def serve_control(
        self, serve: Callable[..., Any], responses: Iterable[Any], context: grpc.ServicerContext
    ) -> Any:
        """Serves the call by which the worker gets its work, and which lasts as long as it."""
        with self._changed:
            self.has_come = True
            self._changed.notify_all()
        lost = functools.partial(self.give_up, "no longer answers")
        if not context.add_callback(lost):
            lost()  # The call is over already.
        return serve(responses, context)

    def give_up(self, why: str) -> None:
        """Gives the worker up: whoever waits for it gets an error with the message `_CLOSED`."""
        if self.is_closing:
            return
        with self._changed:
            self.end = self.end or why
            # Else a stage would wait for its data until its channel is closed, too.
            self.data_conn._closed = True
            # A thread may be about to wait for another answer, which the next call ends.
            with contextlib.suppress(RuntimeError):
                self.control_conn.abort(RuntimeError(_CLOSED))
            self._changed.notify_all()

    def explain(self) -> str:
        """Returns why it is given up or missed, with the last line of its output; ends it."""
        if self.end:
            # Its connection is lost a moment before it ends.
            self._watcher.join(1)
        why = self.end or f"has not called back in {self._plan.seconds:g} s"
        self.is_closing = True
        self._stop(signal.SIGTERM)
        return (
            f"a worker {f'of the pool {self._pool} ' if self._pool else ''}{why}"
            f"{self.last_line and f': {self.last_line[-300:]}'}"
        )

    @override
    def close(self) -> None:
        self.is_closing = True
        # An idle worker ends with its call.
        if not self.is_free:
            self._stop(signal.SIGTERM)
        self.control_conn.push(worker_handlers.BeamFnControlServicer._DONE_MARKER)

    def wait(self, until: float) -> None:
        """Waits for its end, and kills it at a time of the monotonic clock."""
        if self._watcher.is_alive():
            self._watcher.join(max(0, until - time.monotonic()))
        if self._watcher.is_alive():
            self._stop(signal.SIGKILL)


class _Door(dict[str, _Worker], grpc.ServerInterceptor):
    """Workers by their secret ids, whose calls are admitted; a stranger gets nothing."""

    @override
    def intercept_service(self, continuation: Callable[..., Any], call: Any) -> Any:
        worker = self.get(dict(call.invocation_metadata).get("worker_id", ""))
        if worker is None:
            return grpc.stream_stream_rpc_method_handler(
                lambda _, context: context.abort(grpc.StatusCode.UNAUTHENTICATED, "not for you")
            )
        handler = continuation(call)
        if call.method.endswith("/Control"):
            serve = functools.partial(worker.serve_control, handler.stream_stream)
            return handler._replace(stream_stream=serve)
        if call.method.endswith("/Logging"):
            return handler._replace(stream_stream=_log_entries)
        return handler


_OURS = re.compile(r"(.*/)?(pipeline|transforms)/[\w/]+\.py:")
"""The place of a message of ours, below the folder of installed packages if it is in one."""


def _log_entries(messages: Iterable[Any], _: object) -> Iterator[Any]:
    """Logs the messages of a worker like those of this process."""
    yield beam_fn_api_pb2.LogControl()
    for entry in itertools.chain.from_iterable(message.log_entries for message in messages):
        log = _LOG if _OURS.match(entry.log_location.rpartition("-packages/")[2]) else _OUTPUT_LOG
        log.log(
            worker_handlers.LOGENTRY_TO_LOG_LEVEL_MAP[entry.severity],
            "%s",
            entry.message,
            exc_info=RuntimeError(entry.trace) if entry.trace else None,
        )


class _Part(dict[str, list[bytes]]):
    """A part of the elements of a stage, encoded, by the step that reads them.

    Attributes:
      losses: how many workers were lost at it.
    """

    losses: int = 0

    def size(self) -> int:
        """Returns the number of bytes, which grows with the work."""
        return sum(map(len, itertools.chain.from_iterable(self.values())))


class _Stage:
    """Deals the parts of a stage to the workers; takes the place of Beam's bundle manager."""

    def __init__(self, coordinator: Coordinator, stage: execution.BundleContextManager) -> None:
        self._coordinator, self._stage, self._changed = coordinator, stage, coordinator.changed
        self._queue: list[_Part] = []
        self._error: Exception | None = None
        self._metrics: list[Any] = []

    def process_bundle(
        self,
        inputs: Mapping[str, Any],
        expected_outputs: Mapping[str, bytes],
        fired_timers: object,
        expected_output_timers: object,
        dry_run: bool = False,
    ) -> tuple[Any, list[Any]]:
        """Runs the stage. The arguments and the result are those of Beam's BundleManager.

        Raises:
          JobError: no worker is left, or too many were lost at one part.
          RuntimeError: the pipeline's code has raised an error.
        """
        # Its state would have to be kept apart, too.
        assert not self._stage.stage.is_stateful()
        workers = self._stage.worker_handlers
        number = _PARTS_PER_WORKER * len(workers)
        pieces = {step: buffer.partition(number) for step, buffer in inputs.items()}
        parts = [_Part({step: each[i] for step, each in pieces.items()}) for i in range(number)]
        # The largest comes last, and is taken first. A stage without elements has an empty part.
        self._queue = sorted(filter(_Part.size, parts), key=_Part.size) or parts[:1]
        with self._changed:
            while not self._error and (self._queue or any(each.is_busy for each in workers)):
                for worker in workers:
                    if self._queue and worker.is_free:
                        worker.is_busy = True
                        threading.Thread(
                            target=self._do,
                            args=(worker, self._queue.pop(), expected_outputs, dry_run),
                            daemon=True,
                        ).start()
                self._changed.wait(1)
                self._coordinator.check()
        if self._error:
            raise self._error
        return beam_fn_api_pb2.InstructionResponse(
            process_bundle=beam_fn_api_pb2.ProcessBundleResponse(monitoring_infos=self._metrics)
        ), []

    def _do(
        self, worker: _Worker, part: _Part, expected_outputs: Mapping[str, bytes], dry_run: bool
    ) -> None:
        """Has a worker do a part, whose output reaches the stage only as a whole."""
        outputs: dict[tuple[bytes, str], list[bytes]] = collections.defaultdict(list)
        # What Beam's manager needs of a stage.
        context = types.SimpleNamespace(
            process_bundle_descriptor=self._stage.process_bundle_descriptor,
            worker_handlers=[worker],
            split_managers=(),
            get_buffer=lambda buffer, step: outputs[buffer, step],
        )
        try:
            result, _ = fn_runner.BundleManager(context).process_bundle(
                part, expected_outputs, {}, {}, dry_run
            )
            with self._changed:
                for (buffer, step), elements in outputs.items():
                    self._stage.get_buffer(buffer, step).append(b"".join(elements))
                self._metrics = list(
                    monitoring_infos.consolidate(
                        (*self._metrics, *result.process_bundle.monitoring_infos)
                    )
                )
        except Exception as error:
            self._fail(worker, part, error)
        with self._changed:
            worker.is_busy = False
            self._changed.notify_all()

    def _fail(self, worker: _Worker, part: _Part, error: Exception) -> None:
        """Gives a lost worker's part back; any other error ends the job."""
        if worker.is_closing:
            return
        if str(error) == _CLOSED:
            worker.give_up("no longer answers")
            why = worker.explain()
            part.losses += 1
            if part.losses <= _REPEATS:
                _LOG.warning("%s; its part is done again", why)
                self._queue.append(part)
                return
            error = JobError(f"{part.losses} workers were lost at one part; {why}. {_ADVICE}")
        self._error = self._error or error


class Coordinator(fn_runner.FnApiRunner):
    """A runner whose worker processes a command or pools have started.

    Args:
      plan: the workers.

    Attributes:
      changed: guards, and tells changes of, the workers and the parts of a stage.
    """

    def __init__(self, plan: Workers) -> None:
        super().__init__()
        self._plan = plan
        self._workers = _Door()
        self._started = time.monotonic()
        self._has_told = False
        self.changed = threading.Condition()

    @override
    def run_pipeline(self, pipeline: beam.Pipeline, options: PipelineOptions) -> PipelineResult:
        direct = options.view_as(DirectOptions)
        # In this mode, all workers are of the environment that is registered here.
        direct.direct_running_mode = "multi_processing"
        direct.direct_num_workers = self._plan.number
        register = worker_handlers.WorkerHandler.register_environment(
            python_urns.SUBPROCESS_SDK, bytes
        )
        register(functools.partial(_Worker, self._plan, self._workers, self.changed))
        # Half of the time passes before the ping, and half before its answer is given up.
        ping = [
            (f"grpc.{name}", int(self._plan.seconds * 500))
            for name in ("keepalive_time_ms", "keepalive_timeout_ms", "http2.ping_timeout_ms")
        ]
        try:
            with servers_at(self._plan.address, (self._workers,), ping):
                return super().run_pipeline(pipeline, options)
        finally:
            until = time.monotonic() + _GRACE
            for worker in self._workers.values():
                worker.wait(until)
            register(worker_handlers.SubprocessSdkWorkerHandler)

    @override
    def _get_bundle_manager(self, bundle_context_manager: execution.BundleContextManager) -> _Stage:
        return _Stage(self, bundle_context_manager)

    def check(self) -> None:
        """Checks that all workers come; the terminal says how many are missing.

        Raises:
          JobError: a worker does not come, or none is left.
        """
        workers, waited = self._workers.values(), time.monotonic() - self._started
        for worker in workers:
            if worker.end:
                worker.give_up(worker.end)
            if not worker.has_come and (worker.end or waited > self._plan.seconds):
                raise JobError(f"{worker.explain()}. {_ADVICE}")
        if all(worker.end for worker in workers):
            raise JobError(f"no worker is left: {next(iter(workers)).explain()}. {_ADVICE}")
        missing = [worker for worker in workers if not worker.has_come]
        if missing and waited > _PATIENCE and not self._has_told:
            self._has_told = True
            _LOG.warning("waiting for %d of %s", len(missing), counted(len(workers), "worker"))
