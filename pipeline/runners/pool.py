"""A pool, which starts workers on its machine for jobs that know its secret.

    python -m pipeline.runners.pool --listen ADDRESS:PORT --secret FILE

Beam's own pool starts a process for whoever asks, with the worker's id on its command line, and
does not send the worker's log to the job.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
from apache_beam.portability.api import beam_fn_api_pb2, beam_fn_api_pb2_grpc

from pipeline.errors import UsageError
from pipeline.runners.worker import SECRET, start_worker

_SHORTEST = 16
"""Number of bytes below which a secret might be guessed."""


def read_secret(path: str) -> str:
    """Returns what a job tells a pool to prove that it has the same file: the file's SHA-256.

    Raises:
      UsageError: the file cannot be read, or is too short for a secret.
    """
    try:
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(secret) < _SHORTEST:
        raise UsageError(f"{path} holds no secret: expected {_SHORTEST} bytes or more")
    return hashlib.sha256(secret).hexdigest()


class _Pool(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """Starts workers, which end with their jobs.

    Args:
      secret: what jobs must tell.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret

    def StartWorker(self, request: Any, context: grpc.ServicerContext) -> Any:
        told = dict(context.invocation_metadata()).get(SECRET, "")
        if not hmac.compare_digest(told, self._secret):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "the pool has another secret")
        start_worker((), dict(request.params))
        return beam_fn_api_pb2.StartWorkerResponse()


def main() -> None:
    """Serves until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.runners.pool", description=__doc__)
    parser.add_argument("--listen", metavar="ADDRESS:PORT", required=True)
    parser.add_argument("--secret", metavar="FILE", required=True)
    arguments = parser.parse_args()
    server = grpc.server(ThreadPoolExecutor(1))
    try:
        pool = _Pool(read_secret(arguments.secret))
        server.add_insecure_port(arguments.listen)
    except (UsageError, RuntimeError) as error:
        parser.error(str(error))
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(pool, server)
    server.start()
    print(f"workers are started for jobs that reach {arguments.listen}", file=sys.stderr)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
