"""Beam's own job server, but with two workers.

    python tests/support/job_server.py PORT

`apache_beam.runners.portability.local_job_service_main` runs one worker whatever a job asks for.
"""

import sys
import threading
from typing import Any

from apache_beam.portability.api import beam_job_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.local_job_service import BeamJob, LocalJobServicer


class Job(BeamJob):
    def _invoke_runner(self) -> Any:
        self.set_state(beam_job_api_pb2.JobState.RUNNING)
        runner = fn_runner.FnApiRunner(provision_info=self._provision_info)
        runner._num_workers = 2
        return runner.run_via_runner_api(self._pipeline_proto, self.pipeline_options())


if __name__ == "__main__":
    LocalJobServicer(beam_job_type=Job).start_grpc_server(int(sys.argv[1]))
    threading.Event().wait()
