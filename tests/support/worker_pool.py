"""A worker pool whose workers need not import everything again.

    python tests/support/worker_pool.py --service_port PORT

It does what `apache_beam.runners.worker.worker_pool_main` does, but its workers are forks of a
process that has imported what they need. Importing takes longer than most of their work.
"""

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any


class Forker:
    """A child process that forks workers; it must be made before gRPC is loaded."""

    def __init__(self, enter: Callable[..., None] | None = None) -> None:
        self._connection, theirs = socket.socketpair()
        self._lock = threading.Lock()
        if os.fork() == 0:
            self._connection.close()
            with contextlib.suppress(KeyboardInterrupt):
                _serve_forks(theirs, enter)
            os._exit(0)
        theirs.close()

    def start(self, worker: str, address: str, *further: object) -> int:
        """Starts a worker that takes its work from this address; returns its process id."""
        with self._lock:
            self._connection.sendall((json.dumps([worker, address, *further]) + "\n").encode())
            return int.from_bytes(self._connection.recv(4, socket.MSG_WAITALL), "big")


def _serve_forks(connection: socket.socket, enter: Callable[..., None] | None) -> None:
    """Forks a worker for each line received, and answers with its process id."""
    import scipy.ndimage
    import torch
    from apache_beam.runners.worker.sdk_worker import SdkHarness
    from forking import leave_figures_out

    import pipeline.commands.run
    import pipeline.evaluate.resident
    import pipeline.report.page

    del scipy, torch, pipeline
    leave_figures_out()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in connection.makefile("r"):
        worker, address, *further = json.loads(line)
        child = os.fork()
        if child:
            connection.sendall(child.to_bytes(4, "big"))
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # Our code knows a worker by what Beam's pool starts.
        sys.orig_argv = ["python", "-c", "from apache_beam.runners.worker.sdk_worker import *"]
        if enter:
            enter(worker, *further)
        try:
            SdkHarness(
                address, worker_id=worker, state_cache_size=0, data_buffer_time_limit_ms=-1
            ).run()
        finally:
            os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--service_port", type=int, required=True)
    port, forker = parser.parse_args().service_port, Forker()
    import grpc
    from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc
    from apache_beam.utils.thread_pool_executor import shared_unbounded_instance

    class Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
        def __init__(self) -> None:
            self._workers: dict[str, int] = {}

        def StartWorker(self, request: Any, context: Any) -> Any:
            worker, address = request.worker_id, request.control_endpoint.url
            self._workers[worker] = forker.start(worker, address)
            return beam_fn_api_pb2.StartWorkerResponse()

        def StopWorker(self, request: Any, context: Any) -> Any:
            with contextlib.suppress(KeyError, ProcessLookupError):
                os.kill(self._workers.pop(request.worker_id), signal.SIGTERM)
            return beam_fn_api_pb2.StopWorkerResponse()

    server = grpc.server(shared_unbounded_instance())
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(Pool(), server)
    server.add_insecure_port(f"localhost:{port}")
    server.start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
