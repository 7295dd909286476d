"""A job server that starts every bundle again while its first execution is half done.

    bundle_server.py PORT POOL ROOT NOTES

PORT and POOL are the ports of the server and of its worker pool, ROOT the folder whose accesses
count, and NOTES a file.

Flink and Dataflow restart a bundle on another machine when they lose contact with the first
machine, which may still be running, and use the results of one of the two executions. Here, the
first execution is suspended after half of its file accesses below a folder. Then the second one
starts, on a worker that believes it is on another machine. The fate of a bundle says what happens
to its first execution:

  killed    it never resumes.
  dropped   it resumes at once, so both run side by side; the results of the second are dropped.
  late      it resumes in the middle of the next bundle; its own results are dropped.
  after     it resumes when the job is over; its own results are dropped too.

In the first job, every bundle runs once, and its notes say how many accesses each one makes. In
later jobs, they say what was done to each bundle, whose fates take turns. They are written on
SIGUSR1, after all suspended executions have resumed and ended.
"""

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import mmap
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker_pool import Forker

FATES = ("killed", "dropped", "late", "after")
PARTS = 2
"""Number of bundles of a stage with more than one element."""
_WORKERS = 1024
_TOUCHES = ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.listdir")


class Workers:
    """Worker processes, by the id that Beam gives them."""

    def __init__(self, root: str) -> None:
        # For each worker its accesses and the one at which to stop, in memory that all share.
        counts = self._counts = memoryview(mmap.mmap(-1, 16 * _WORKERS)).cast("q")
        self._numbers = itertools.count()
        self._known: dict[str, tuple[int, int]] = {}

        def enter(worker: str, slot: int) -> None:
            from pipeline.storage import processes

            # It looks remote, so no other process can tell whether it is alive.
            machine = hashlib.sha256(worker.encode()).hexdigest()[:12]
            processes._place = lambda: machine
            sys.addaudithook(functools.partial(look, 2 * slot))

        def look(at: int, event: str, arguments: tuple[Any, ...]) -> None:
            is_path = event in _TOUCHES and isinstance(arguments[0], str)
            if is_path and arguments[0].startswith(root):
                counts[at] += 1
                if counts[at] == counts[at + 1]:
                    os.kill(os.getpid(), signal.SIGSTOP)

        self._forker = Forker(enter)

    def start(self, worker: str, address: str) -> None:
        """Starts a worker that takes its work from this address."""
        slot = next(self._numbers)
        self._known[worker] = slot, self._forker.start(worker, address, slot)

    def arm(self, worker: str, stop_at: int = 0) -> None:
        """Resets the worker's count; it suspends itself before access `stop_at`, or never for 0."""
        at = 2 * self._known[worker][0]
        self._counts[at], self._counts[at + 1] = 0, stop_at

    def accesses(self, worker: str) -> int:
        """Returns the worker's accesses since `arm`."""
        return self._counts[2 * self._known[worker][0]]

    def signal(self, worker: str, number: signal.Signals) -> None:
        """Sends the worker a signal, if it is still running."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._known[worker][1], number)

    def is_stopped(self, worker: str) -> bool:
        """Returns whether the worker is suspended."""
        stat = Path(f"/proc/{self._known[worker][1]}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] == "T"


@dataclasses.dataclass
class Note:
    """What was done to a bundle, which has the same name in every run.

    `stopped` is whether its first execution was suspended, `accesses` are those of the one whose
    results were used.
    """

    bundle: str
    fate: str = ""
    accesses: int = 0
    stopped: bool = False
    executions: int = 0


def serve(port: int, pool_port: int, notes_file: Path, workers: Workers) -> None:
    """Serves jobs; gRPC is imported only here, because it must not be loaded when workers fork."""
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc, beam_job_api_pb2
    from apache_beam.runners.portability.fn_api_runner import fn_runner
    from apache_beam.runners.portability.local_job_service import BeamJob, LocalJobServicer
    from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

    class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
        def StartWorker(self, request: Any, context: Any) -> Any:
            workers.start(request.worker_id, request.control_endpoint.url)
            return beam_fn_api_pb2.StartWorkerResponse()

    class Handlers(fn_runner.WorkerHandlerManager):
        def close_all(self) -> None:
            """Keeps the connections, which late executions still need."""

    class Context:
        """The context of a stage for one execution: a single worker, and separate outputs."""

        def __init__(self, context: Any, handler: Any) -> None:
            self._context = context
            self.worker_handlers = [handler]
            self.outputs: dict[tuple[Any, str], Any] = {}

        def __getattr__(self, name: str) -> Any:
            return getattr(self._context, name)

        def get_buffer(self, buffer: Any, transform: str) -> Any:
            return self.outputs.setdefault((buffer, transform), [])

    class Execution(threading.Thread):
        """One execution of a bundle."""

        def __init__(self, context: Any, handler: Any, part: Mapping[str, Any], out: Any) -> None:
            super().__init__(daemon=True)
            self.worker, self.handler = handler.worker_id, handler
            self._of_stage, self._context = context, Context(context, handler)
            self._part, self._out = part, out
            self.result: Any = None
            self.error: Exception | None = None
            self.accesses = 0

        def run(self) -> None:
            tokens = fn_runner.FnApiRunner.get_cache_token_generator(static=False)
            manager = fn_runner.BundleManager(self._context, None, cache_token_generator=tokens)
            try:
                self.result, _ = manager.process_bundle(self._part, self._out, {}, {})
            except Exception as error:
                self.error = error
            self.accesses = workers.accesses(self.worker)

        def has_stopped(self) -> bool:
            """Waits until the worker is suspended (true) or the execution has ended (false)."""
            while self.is_alive():
                if workers.is_stopped(self.worker):
                    return True
                time.sleep(0.002)
            return False

        def take(self) -> Any:
            for (buffer, transform), pieces in self._context.outputs.items():
                whole = self._of_stage.get_buffer(buffer, transform)
                for piece in pieces:
                    whole.append(piece)
            return self.result

    class Runner(fn_runner.FnApiRunner):
        def __init__(self, provision_info: Any) -> None:
            super().__init__(provision_info=provision_info)
            self.notes: list[Note] = []
            self._fates = itertools.cycle(FATES) if runners else None
            before = runners[0].notes if runners else []
            self._accesses = {note.bundle: note.accesses for note in before}
            self._idle: list[Any] = []
            self._sleeping: list[tuple[Execution, str]] = []
            self._woken: list[Execution] = []

        def _get_bundle_manager(self, context: Any) -> Any:
            return Bundles(context, self)

        def _handler(self, context: Any) -> Any:
            if self._idle:
                return self._idle.pop()
            handlers = context.execution_context.worker_handler_manager
            environment = context.stage.environment or next(iter(handlers._environments))
            count = len(handlers._cached_handlers[environment])
            return handlers.get_worker_handlers(environment, count + 1)[-1]

        def bundle(self, context: Any, number: int, part: Mapping[str, Any], out: Any) -> Any:
            """Runs a bundle and returns the result that is used."""
            # Beam lists the steps of a fused stage in no fixed order.
            steps = sorted(transform.unique_name for transform in context.stage.transforms)
            name = f"{' '.join(steps)} {number}"
            note = Note(name)
            self.notes.append(note)

            def begun(stop_at: int = 0) -> Execution:
                note.executions += 1
                execution = Execution(context, self._handler(context), part, out)
                workers.arm(execution.worker, stop_at)
                execution.start()
                return execution

            if self._fates is None:
                return self._end(begun(), note)
            note.fate = next(self._fates)
            first = begun((self._accesses.get(name, 0) + 1) // 2)
            note.stopped = first.has_stopped()
            second = begun()
            self._wake("late")
            if note.fate == "dropped":
                workers.signal(first.worker, signal.SIGCONT)
                return self._end(first, note, other=second, again=begun)
            if note.fate == "killed":
                workers.signal(first.worker, signal.SIGKILL)
            else:
                self._sleeping.append((first, note.fate))
            return self._end(second, note, again=begun)

        def _end(
            self, taken: Execution, note: Note, other: Execution | None = None, again: Any = None
        ) -> Any:
            taken.join()
            if other is not None:
                other.join()
                self._idle.append(other.handler)
                if taken.error is not None and other.error is None:
                    # A runner retries a failed bundle, and the second execution is that retry.
                    taken, other = other, taken
            elif taken.error is not None and again is not None:
                taken = again()
                taken.join()
            self._idle.append(taken.handler)
            if taken.error is not None:
                raise taken.error
            note.accesses = taken.accesses
            return taken.take()

        def _wake(self, *fates: str) -> None:
            """Wakes the suspended executions with these fates."""
            for each in [each for each in self._sleeping if each[1] in fates]:
                self._sleeping.remove(each)
                workers.signal(each[0].worker, signal.SIGCONT)
                self._woken.append(each[0])

        def end_all(self) -> None:
            """Wakes all suspended executions and waits until they have ended."""
            self._wake(*FATES)
            for execution in self._woken:
                execution.join(60)

    class Bundles(fn_runner.BundleManager):
        """Runs the bundles of a stage."""

        def __init__(self, context: Any, runner: Runner) -> None:
            super().__init__(context)
            self._runner = runner

        def process_bundle(
            self, inputs: Any, outputs: Any, timers: Any, output_timers: Any, dry_run: bool = False
        ) -> Any:
            assert not any((timers, output_timers, dry_run))
            parts: list[dict[str, Any]] = [{} for _ in range(PARTS)]
            for name, buffer in inputs.items():
                for part, piece in zip(parts, buffer.partition(PARTS), strict=True):
                    part[name] = piece
            full = [part for part in parts if any(b"".join(p) for p in part.values())]
            results = [
                self._runner.bundle(self.bundle_context_manager, number, part, outputs)
                for number, part in enumerate(full or parts[:1])
            ]
            infos = itertools.chain(*(result.process_bundle.monitoring_infos for result in results))
            merged = results[0]
            if len(results) > 1:
                merged = beam_fn_api_pb2.InstructionResponse(
                    process_bundle=beam_fn_api_pb2.ProcessBundleResponse(
                        monitoring_infos=fn_runner.monitoring_infos.consolidate(infos)
                    )
                )
            return merged, []

    runners: list[Runner] = []

    class Job(BeamJob):
        def _invoke_runner(self) -> Any:
            self.set_state(beam_job_api_pb2.JobState.RUNNING)
            runners.append(Runner(self._provision_info))
            return runners[-1].run_via_runner_api(self._pipeline_proto, self.pipeline_options())

    fn_runner.WorkerHandlerManager = Handlers
    pool = grpc.server(shared_unbounded_instance())
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(Pool(), pool)
    pool.add_insecure_port(f"localhost:{pool_port}")
    pool.start()
    LocalJobServicer(beam_job_type=Job).start_grpc_server(port)
    while True:
        signal.sigwait([signal.SIGUSR1])
        runners[-1].end_all()
        notes = [dataclasses.asdict(note) for note in runners[-1].notes]
        written = notes_file.with_suffix(".new")
        written.write_text(json.dumps(notes))
        written.rename(notes_file)


if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    port, pool, root, notes = sys.argv[1:]
    serve(int(port), int(pool), Path(notes), Workers(root))
