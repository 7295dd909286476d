"""A job server with several workers, each from a different worker pool.

    python tests/support/job_server.py --port PORT --pools HOST:PORT,HOST:PORT

Beam's own server, `apache_beam.runners.portability.local_job_service_main`, runs a single worker
whatever a job asks for. This is the same server and runner, with a worker from each pool.
"""

import argparse
import itertools
import threading
from typing import Any

import grpc
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_job_api_pb2,
)
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.local_job_service import BeamJob, LocalJobServicer
from apache_beam.utils.thread_pool_executor import shared_unbounded_instance


class Pools(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """A worker pool that starts its workers in other pools, in turn."""

    def __init__(self, addresses: list[str]) -> None:
        stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub
        self._pools = itertools.cycle([stub(grpc.insecure_channel(a)) for a in addresses])
        self._lock = threading.Lock()

    def StartWorker(
        self, request: beam_fn_api_pb2.StartWorkerRequest, context: Any
    ) -> beam_fn_api_pb2.StartWorkerResponse:
        with self._lock:
            pool = next(self._pools)
        return pool.StartWorker(request)


def job_of(workers: int) -> type[BeamJob]:
    """Returns the server's class of jobs, which run on this many workers."""

    class Job(BeamJob):
        def _invoke_runner(self) -> Any:
            self.set_state(beam_job_api_pb2.JobState.RUNNING)
            runner = fn_runner.FnApiRunner(provision_info=self._provision_info)
            runner._num_workers = workers
            return runner.run_via_runner_api(self._pipeline_proto, self.pipeline_options())

    return Job


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dispatch_port", type=int, required=True)
    parser.add_argument("--pools", required=True, type=lambda text: text.split(","))
    arguments = parser.parse_args()
    dispatcher = grpc.server(shared_unbounded_instance())
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(
        Pools(arguments.pools), dispatcher
    )
    dispatcher.add_insecure_port(f"localhost:{arguments.dispatch_port}")
    dispatcher.start()
    LocalJobServicer(beam_job_type=job_of(len(arguments.pools))).start_grpc_server(arguments.port)
    threading.Event().wait()


if __name__ == "__main__":
    main()
