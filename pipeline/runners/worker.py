"""A worker process of a job that another process coordinates (`pipeline.runners.coordinator`).

    python -m pipeline.runners.worker

It reads its settings from standard input: environment variables of Beam's worker, one `NAME=VALUE`
a line. There they cross ssh, which passes no environment, and no other user sees them in `ps`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import BinaryIO, cast

import pipeline
from transforms.hashing import text_bytes

CONTROL = "CONTROL_API_SERVICE_DESCRIPTOR"
LOGGING = "LOGGING_API_SERVICE_DESCRIPTOR"
"""Settings that hold the addresses of a job's servers."""
COMMAND = (sys.executable, "-m", "pipeline.runners.worker")
_VERSIONS = "IN9_VERSIONS"
_OWN_VERSIONS = (
    f"in9 {pipeline.__version__}, apache-beam {importlib.metadata.version('apache-beam')}, "
    f"Python {sys.version_info.major}.{sys.version_info.minor}"
)
"""What must be equal in a job and its workers, because pickled functions may hold bytecode."""


def settings_text(settings: Mapping[str, str]) -> bytes:
    """Returns what a worker reads: environment variables for Beam's worker, and the versions."""
    lines = {**settings, _VERSIONS: _OWN_VERSIONS}.items()
    return text_bytes("".join(f"{name}={value}\n" for name, value in lines))


def start_worker(command: Sequence[str], settings: bytes) -> subprocess.Popen[bytes]:
    """Starts a worker, in a session of its own, with a pipe for its output and errors.

    Args:
      command: words before the worker's own command, which may start it on another machine.
      settings: what it reads.

    Raises:
      OSError: the command cannot be started.
    """
    process = subprocess.Popen(
        [*command, *COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    # A command that has ended already says why in its output.
    with contextlib.suppress(BrokenPipeError), cast(BinaryIO, process.stdin) as stdin:
        stdin.write(settings)
    return process


def main() -> None:
    """Works until the job ends, or its coordinator is gone."""
    os.environ.update(re.findall("(\\w+)=(.*)\n", sys.stdin.read()))
    if os.environ[_VERSIONS] != _OWN_VERSIONS:
        sys.exit(f"the worker has {_OWN_VERSIONS}, but the job has {os.environ[_VERSIONS]}")
    # Imported late, because Beam reads the worker's id when it is imported.
    import grpc
    from apache_beam.runners.worker import sdk_worker_main

    try:
        sdk_worker_main.main([])
    except (grpc.FutureTimeoutError, grpc.RpcError):
        print(f"no connection to the job at {os.environ[CONTROL]}", flush=True)
    # A thread may be in the middle of a shard that nobody waits for.
    os._exit(0)


if __name__ == "__main__":
    main()
