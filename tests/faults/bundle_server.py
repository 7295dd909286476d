"""A job server that starts every bundle again while its first execution is half done.

    bundle_server.py --port PORT --pool PORT --root DIR --notes FILE --fates FATES ...

Flink and Dataflow restart a bundle on another machine when they lose contact with the first
machine, which may still be running, and use the results of one of the two executions. Here, the
first execution is suspended after half of its file accesses below a folder. Then the second one
starts, on a worker that believes it is on another machine. The fate of a bundle says what happens
to its first execution:

  killed    it never resumes.
  dropped   it resumes at once, so both run side by side; the results of the second are dropped.
  late      it resumes in the middle of the next bundle; its own results are dropped.
  after     it resumes when the job is over; its own results are dropped too.

Each job has its own fates. The first job has none: every bundle runs once, and its notes say how
many accesses each one makes. With fates, the notes say what was done to each bundle. They are
written on SIGUSR1, after all suspended executions have resumed and ended.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import mmap
import os
import re
import signal
import struct
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
_SLOT = struct.Struct("qq")
_WORKERS = 1024
_OF_BEAM = re.compile(r"Read$|Write$|Impulse$|\w*\(|\w+RandomKeys$")
_TOUCHES = ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.listdir")


class Slots:
    """Counts of file accesses and the counts at which to stop, one pair for each worker.

    All processes share the memory.
    """

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _SLOT.size * _WORKERS)

    def arm(self, slot: int, stop_at: int) -> None:
        """Resets the count; the worker suspends itself at access `stop_at`, or never for 0."""
        _SLOT.pack_into(self._memory, slot * _SLOT.size, 0, stop_at)

    def accesses(self, slot: int) -> int:
        """Returns the number of accesses since `arm`."""
        return int(_SLOT.unpack_from(self._memory, slot * _SLOT.size)[0])

    def touch(self, slot: int) -> None:
        """Counts an access of this worker before it happens; suspends the worker if it is due."""
        count, stop_at = _SLOT.unpack_from(self._memory, slot * _SLOT.size)
        struct.pack_into("q", self._memory, slot * _SLOT.size, count + 1)
        if count + 1 == stop_at:
            os.kill(os.getpid(), signal.SIGSTOP)


def _be_elsewhere(worker: str) -> None:
    """Makes this process look remote, so that no other process can tell whether it is alive."""
    from pipeline.storage import processes

    machine = hashlib.sha256(worker.encode()).hexdigest()[:12]
    processes._place = lambda: machine


def _look(slots: Slots, slot: int, root: str, event: str, arguments: tuple[Any, ...]) -> None:
    if event in _TOUCHES and isinstance(arguments[0], str) and arguments[0].startswith(root):
        slots.touch(slot)


class Workers:
    """Worker processes, by the id that Beam gives them."""

    def __init__(self, root: str) -> None:
        self._slots, self._numbers = Slots(), itertools.count()
        self._known: dict[str, tuple[int, int]] = {}

        def enter(worker: str, slot: int) -> None:
            _be_elsewhere(worker)
            sys.addaudithook(functools.partial(_look, self._slots, slot, root))

        self._forker = Forker(enter)

    def start(self, worker: str, address: str) -> None:
        """Starts a worker that takes its work from this address."""
        slot = next(self._numbers)
        self._known[worker] = slot, self._forker.start(worker, address, slot)

    def arm(self, worker: str, stop_at: int = 0) -> None:
        """Resets the worker's count of accesses; suspends it at one of them."""
        self._slots.arm(self._known[worker][0], stop_at)

    def accesses(self, worker: str) -> int:
        """Returns the worker's accesses since `arm`."""
        return self._slots.accesses(self._known[worker][0])

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
    """A record of what was done to a bundle.

    Attributes:
      stage: short name of the stage: our steps in it.
      bundle: stage and number of the bundle, the same in every run.
      fate: fate of the first execution; empty if there was only one.
      accesses: file accesses of the execution whose results were used.
      stopped: whether the first execution was suspended half-way.
      ended: how the execution with dropped results ended: `done`, its error, `killed` or `still at
        work`.
      executions: number of executions.
    """

    stage: str
    bundle: str
    fate: str = ""
    accesses: int = 0
    stopped: bool = False
    ended: str = ""
    executions: int = 0


def _serve(arguments: argparse.Namespace, workers: Workers) -> None:
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

        def take(self) -> None:
            for (buffer, transform), pieces in self.outputs.items():
                for piece in pieces:
                    self._context.get_buffer(buffer, transform).append(piece)

    class Execution(threading.Thread):
        """One execution of a bundle."""

        def __init__(self, context: Any, handler: Any, part: Mapping[str, Any], out: Any) -> None:
            super().__init__(daemon=True)
            self.worker, self.handler = handler.worker_id, handler
            self._context, self._part, self._out = Context(context, handler), part, out
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

        def begin(self, stop_at: int = 0) -> None:
            workers.arm(self.worker, stop_at)
            self.start()

        def has_stopped(self) -> bool:
            """Waits until the worker is suspended (true) or the execution has ended (false)."""
            while self.is_alive():
                if workers.is_stopped(self.worker):
                    return True
                time.sleep(0.002)
            return False

        def take(self) -> Any:
            self._context.take()
            return self.result

        def ending(self) -> str:
            if self.error is None:
                return "done" if self.result is not None else "killed"
            lines = [line for line in str(self.error).splitlines() if line.strip()]
            match = re.search(r"\w+Error: .*", str(self.error).replace("RuntimeError: ", ""))
            return match[0] if match else lines[-1]

    class Runner(fn_runner.FnApiRunner):
        def __init__(self, provision_info: Any) -> None:
            super().__init__(provision_info=provision_info)
            self.notes: list[Note] = []
            fates = arguments.fates[len(runners)]
            self._fates = itertools.cycle(fates.split(",")) if fates else None
            before = runners[0].notes if runners else []
            self._accesses = {note.bundle: note.accesses for note in before}
            self._idle: list[Any] = []
            self._sleeping: list[tuple[Execution, Note]] = []
            self._woken: list[tuple[Execution, Note]] = []

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
            note = Note(_in_short(context.stage), name)
            self.notes.append(note)

            def execution() -> Execution:
                note.executions += 1
                return Execution(context, self._handler(context), part, out)

            first = execution()
            if self._fates is None:
                first.begin()
                return self._end(first, note)
            note.fate = next(self._fates)
            first.begin((self._accesses.get(name, 0) + 1) // 2)
            note.stopped = first.has_stopped()
            second = execution()
            second.begin()
            for late in [late for late in self._sleeping if late[1].fate == "late"]:
                self._wake(late)
            if note.fate == "dropped":
                workers.signal(first.worker, signal.SIGCONT)
                return self._end(first, note, other=second, again=execution)
            if note.fate == "killed":
                workers.signal(first.worker, signal.SIGKILL)
                note.ended = "killed"
            else:
                self._sleeping.append((first, note))
            return self._end(second, note, again=execution)

        def _end(
            self, taken: Execution, note: Note, other: Execution | None = None, again: Any = None
        ) -> Any:
            taken.join()
            if other is not None:
                other.join()
                note.ended = other.ending()
                self._idle.append(other.handler)
                if taken.error is not None and other.error is None:
                    # A runner retries a failed bundle, and the second execution is that retry.
                    taken, other = other, taken
                    note.ended = other.ending()
            elif taken.error is not None and again is not None:
                taken = again()
                taken.begin()
                taken.join()
            self._idle.append(taken.handler)
            if taken.error is not None:
                raise taken.error
            note.accesses = taken.accesses
            return taken.take()

        def _wake(self, late: tuple[Execution, Note]) -> None:
            self._sleeping.remove(late)
            workers.signal(late[0].worker, signal.SIGCONT)
            self._woken.append(late)

        def end_all(self) -> None:
            """Wakes all suspended executions and waits until they have ended."""
            for late in list(self._sleeping):
                self._wake(late)
            for execution, note in self._woken:
                execution.join(60)
                note.ended = "still at work" if execution.is_alive() else execution.ending()

    class Bundles(fn_runner.BundleManager):
        """Runs the bundles of a stage."""

        def __init__(self, context: Any, runner: Runner) -> None:
            super().__init__(context)
            self._runner = runner

        def process_bundle(
            self, inputs: Any, outputs: Any, timers: Any, output_timers: Any, dry_run: bool = False
        ) -> Any:
            assert not timers
            assert not output_timers
            assert not dry_run
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
    pool.add_insecure_port(f"localhost:{arguments.pool}")
    pool.start()
    LocalJobServicer(beam_job_type=Job).start_grpc_server(arguments.port)
    while True:
        signal.sigwait([signal.SIGUSR1])
        runners[-1].end_all()
        notes = [dataclasses.asdict(note) for note in runners[-1].notes]
        written = Path(f"{arguments.notes}.new")
        written.write_text(json.dumps(notes, indent=1))
        written.rename(arguments.notes)


def _in_short(stage: Any) -> str:
    """Returns the names of a stage's own steps, without Beam's."""
    paths = [transform.unique_name.rstrip("/0123456789") for transform in stage.transforms]
    names = [re.sub(r"ParDo\((\w+)\)", r"\1", path.rpartition("/")[2]) for path in paths]
    ours = [name for name in names if not _OF_BEAM.match(name)]
    return " ".join(dict.fromkeys(ours)) or "(Beam's own)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True, help="of the server")
    parser.add_argument("--pool", type=int, required=True, help="port of its worker pool")
    parser.add_argument("--root", required=True, help="folder whose accesses count")
    parser.add_argument("--notes", required=True, help="where they go at SIGUSR1")
    parser.add_argument("--fates", nargs="+", help="of each job, with commas; empty for none")
    arguments = parser.parse_args()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    _serve(arguments, Workers(arguments.root))


if __name__ == "__main__":
    main()
