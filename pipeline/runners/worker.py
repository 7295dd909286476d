"""A worker process of a job that another process coordinates (`pipeline.runners.coordinator`).

    python -m pipeline.runners.worker

It reads its settings from standard input: environment variables of Beam's worker, one `NAME=VALUE`
a line. There they cross ssh, which passes no environment, and no other user sees them in `ps`.

    python -m pipeline.runners.worker --listen ADDRESS:PORT --secret FILE

This is a pool, which starts workers on its machine for jobs that know its secret. Beam's own pool
starts a process for whoever asks, with the worker's id on its command line, and does not send the
worker's output to the job. Here, a call lasts as long as its worker. Job and pool first prove to
each other that they know the secret, by HMACs of random numbers and of the pool's address. So
neither a caller nor what listens at that address learns anything to use again. What a caller says
is metadata of its call, so that nobody keeps the pool waiting.
"""

import argparse
import contextlib
import hmac
import importlib.metadata
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, cast

import grpc

import pipeline
from pipeline.errors import JobError, UsageError
from pipeline.runtime.machine import open_standard_streams
from transforms.hashing import text_bytes

CONTROL = "CONTROL_API_SERVICE_DESCRIPTOR"
"""The setting that holds the address of a job's server."""
_COMMAND = (sys.executable, "-m", "pipeline.runners.worker")
_VERSIONS = "IN9_VERSIONS"
_OWN_VERSIONS = (
    f"in9 {pipeline.__version__}, apache-beam {importlib.metadata.version('apache-beam')}, "
    f"Python {sys.version_info.major}.{sys.version_info.minor}"
)
"""What must be equal in a job and its workers, because pickled functions may hold bytecode."""
_SHORTEST = 16
"""Number of bytes below which a secret might be guessed."""
_BYTES = 32
"""Length of random numbers and proofs."""
_SERVICE, _PROVE, _START, _TOLD = "in9.Pool", "Prove", "StartWorker", "told-bin"


def settings_text(settings: Mapping[str, str]) -> bytes:
    """Returns what a worker reads: environment variables for Beam's worker, and the versions."""
    lines = {**settings, _VERSIONS: _OWN_VERSIONS}.items()
    return text_bytes("".join(f"{name}={value}\n" for name, value in lines))


def start_process(
    command: Sequence[str], settings: bytes
) -> tuple[Iterator[bytes], Callable[[int], None]]:
    """Starts a worker, in a session of its own.

    Args:
      command: words before the worker's own command, which may start it on another machine.
      settings: what it reads.

    Returns:
      Lines of its output and errors, after which a JobError says how it has ended; and a function
      that sends a signal to the command, and to what this has started on this machine.

    Raises:
      OSError: the command cannot be started.
    """
    process = subprocess.Popen(
        [*command, *_COMMAND],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    # A command that has ended already says why in its output.
    with contextlib.suppress(BrokenPipeError), cast(BinaryIO, process.stdin) as stdin:
        stdin.write(settings)

    def output() -> Iterator[bytes]:
        yield from cast(BinaryIO, process.stdout)
        raise JobError(f"ended with exit code {process.wait()}")

    def stop(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if process.poll() is None:
                os.killpg(process.pid, number)
                # A stopped process continues, to end.
                os.killpg(process.pid, signal.SIGCONT)

    return output(), stop


def ask_pool(
    address: str, secret: bytes, settings: bytes
) -> tuple[Iterator[bytes], Callable[[int], None]]:
    """Has a pool start a worker, once both have proved that they know the secret.

    Args:
      address: the pool's address.
      secret: what the pool knows, too.
      settings: what the worker reads, different for each.

    Returns:
      Lines of its output and errors, after which a JobError says how it has ended, or that it was
      not started; and a function that ends it, whatever the signal.
    """
    channel, own = grpc.insecure_channel(address), secrets.token_bytes(_BYTES)
    prove = channel.unary_unary(f"/{_SERVICE}/{_PROVE}")
    start = channel.unary_stream(f"/{_SERVICE}/{_START}")

    def output() -> Iterator[bytes]:
        try:
            answer = prove(b"", metadata=[(_TOLD, own)], wait_for_ready=True)
            words = (_by_number(address), answer[:_BYTES])
            if not hmac.compare_digest(answer[_BYTES:], _proof(secret, "pool", *words, own)):
                raise JobError("was not started: the pool has another secret, or another --listen")
            told = _proof(secret, "job", *words, settings) + settings
            yield from start(b"", metadata=[(_TOLD, told)])
        except grpc.RpcError as error:
            raise JobError(f"is gone: {error.details()}") from error

    return output(), lambda _: channel.close()


class _Pool:
    """What a pool does for jobs.

    Args:
      address: the number and the port at which it listens.
      secret: what jobs know, too.
    """

    def __init__(self, address: str, secret: bytes) -> None:
        self._address, self._secret, self._own = address, secret, secrets.token_bytes(_BYTES)
        self._started: dict[bytes, bytes] = {}

    def prove(self, _: object, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Proves that it knows the secret; yields its number and the proof."""
        yield self._own + _proof(self._secret, "pool", self._address, self._own, _told(context))

    def start_worker(self, _: object, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Starts a worker, which ends with the call; yields lines of its output."""
        told = _told(context)
        proof, settings = told[:_BYTES], told[_BYTES:]
        right = _proof(self._secret, "job", self._address, self._own, settings)
        # Nothing is started twice, because somebody may have overheard it.
        if (
            not hmac.compare_digest(proof, right)
            or self._started.setdefault(proof, told) is not told
        ):
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "not for you")
        output, stop = start_process((), settings)
        if not context.add_callback(lambda: stop(signal.SIGKILL)):
            stop(signal.SIGKILL)  # The call is over already.
        try:
            for line in output:
                yield line[-4096:]
        except JobError as error:
            context.abort(grpc.StatusCode.ABORTED, str(error))


def _told(context: grpc.ServicerContext) -> bytes:
    return cast(bytes, dict(context.invocation_metadata()).get(_TOLD, b""))


def _proof(secret: bytes, *words: object) -> bytes:
    return hmac.digest(secret, text_bytes(repr(words)), "sha256")


def _by_number(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{socket.gethostbyname(host)}:{port}"


def read_secret(path: str) -> bytes:
    """Returns the secret in a file.

    Raises:
      UsageError: the file cannot be read, or is too short for a secret.
    """
    try:
        secret = Path(path).read_bytes().strip()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(secret) < _SHORTEST:
        raise UsageError(f"{path} holds no secret: expected {_SHORTEST} bytes or more")
    return secret


def serve() -> None:
    """Serves as a pool until a signal ends the process, and with it all workers."""
    open_standard_streams()
    parser = argparse.ArgumentParser(prog="python -m pipeline.runners.worker", description=__doc__)
    parser.add_argument("--listen", metavar="ADDRESS:PORT", required=True)
    parser.add_argument("--secret", metavar="FILE", required=True)
    arguments = parser.parse_args()
    # The first process of a container ignores it by default.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    # Each worker takes a thread. Without the option, another pool might share the port.
    server = grpc.server(ThreadPoolExecutor(1000), options=[("grpc.so_reuseport", 0)])
    try:
        pool = _Pool(_by_number(arguments.listen), read_secret(arguments.secret))
        handlers = {
            _PROVE: grpc.stream_stream_rpc_method_handler(pool.prove),
            _START: grpc.stream_stream_rpc_method_handler(pool.start_worker),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        server.add_insecure_port(arguments.listen)
        server.start()
        print(f"workers are started for jobs that reach {arguments.listen}", file=sys.stderr)
        server.wait_for_termination()
    except (UsageError, RuntimeError, OSError) as error:
        parser.error(str(error))
    finally:
        server.stop(None).wait()


def work() -> None:
    """Works until the job ends, or its coordinator is gone."""
    os.environ.update(re.findall("(\\w+)=(.*)\n", sys.stdin.read()))
    if os.environ[_VERSIONS] != _OWN_VERSIONS:
        sys.exit(f"the worker has {_OWN_VERSIONS}, but the job has {os.environ[_VERSIONS]}")
    # Imported late, because Beam reads the worker's id when it is imported.
    from apache_beam.runners.worker import sdk_worker_main

    try:
        sdk_worker_main.main([])
    except (grpc.FutureTimeoutError, grpc.RpcError):
        print(f"no connection to the job at {os.environ[CONTROL]}", flush=True)
    # A thread may be in the middle of a shard that nobody waits for.
    os._exit(0)


if __name__ == "__main__":
    serve() if sys.argv[1:] else work()
