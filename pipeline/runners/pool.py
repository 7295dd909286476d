"""A pool, which starts workers on its machine for jobs that know its secret.

    python -m pipeline.runners.pool --listen ADDRESS:PORT --secret FILE

Beam's own pool starts a process for whoever asks, with the worker's id on its command line, and
does not send the worker's output to the job. Here, a call lasts as long as its worker. Job and pool
first prove to each other that they know the secret, by HMACs of fresh random numbers and of the
pool's address. So neither a caller nor what listens at that address learns anything to use again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hmac
import os
import queue
import secrets
import signal
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import grpc

from pipeline.errors import JobError, UsageError
from pipeline.runners.worker import COMMAND
from transforms.hashing import text_bytes

_SHORTEST = 16
"""Number of bytes below which a secret might be guessed."""
_SERVICE, _METHOD = "in9.Pool", "StartWorker"
_SECONDS = 10
"""Time that a caller has to prove that it knows the secret."""
_BYTES = 32
"""Length of random numbers and proofs."""


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


def _proof(secret: bytes, *words: object) -> bytes:
    return hmac.digest(secret, text_bytes(repr(words)), "sha256")


def _by_number(address: str) -> str:
    host, _, port = address.rpartition(":")
    return f"{socket.gethostbyname(host)}:{port}"


def ask_pool(
    channel: grpc.Channel, address: str, secret: bytes, settings: bytes
) -> Iterator[bytes]:
    """Has a pool start a worker, once both have proved that they know the secret.

    Args:
      channel: a connection to the pool.
      address: the pool's address.
      secret: what the pool knows, too.
      settings: what the worker reads.

    Yields:
      Lines of the worker's output.

    Raises:
      JobError: the pool has another secret, or the worker has ended; the message goes on after "the
        worker".
      OSError: the pool's name is not known.
    """
    own = secrets.token_bytes(_BYTES)
    told: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    told.put(own)
    try:
        call = channel.stream_stream(f"/{_SERVICE}/{_METHOD}")
        answers = call(iter(told.get, b""), wait_for_ready=True)
        answer = next(answers, b"")
        words = (_by_number(address), own, answer[:_BYTES])
        if not hmac.compare_digest(answer[_BYTES:], _proof(secret, "pool", *words)):
            raise JobError("was not started: the pool has another secret, or another --listen")
        told.put(_proof(secret, "job", *words, settings) + settings)
        yield from answers
    except grpc.RpcError as error:
        raise JobError(f"has ended: {error.details()}") from error
    finally:
        told.put(b"")


async def _start_worker(
    address: str, secret: bytes, _: object, context: grpc.aio.ServicerContext[bytes, bytes]
) -> None:
    """Serves a call of `ask_pool`, which takes its worker with it when it ends.

    Args:
      address: the number and the port at which the pool listens.
      secret: what jobs know, too.
      context: the call.
    """
    own, settings = secrets.token_bytes(_BYTES), b""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SECONDS):
            words = (address, await context.read(), own)
            await context.write(own + _proof(secret, "pool", *words))
            told = cast(bytes, await context.read() or b"")
            if hmac.compare_digest(told[:_BYTES], _proof(secret, "job", *words, told[_BYTES:])):
                settings = told[_BYTES:]
    if not settings:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not for you")
    process = await asyncio.create_subprocess_exec(
        *COMMAND, stdin=PIPE, stdout=PIPE, stderr=STDOUT, start_new_session=True, limit=2**24
    )
    try:
        stdin = cast(asyncio.StreamWriter, process.stdin)
        stdin.write(settings)
        stdin.close()
        async for line in cast(asyncio.StreamReader, process.stdout):
            await context.write(line[-4096:])
        await context.abort(grpc.StatusCode.ABORTED, f"exit code {await process.wait()}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


async def _serve(listen: str, secret: bytes) -> None:
    # Without this option, another pool might share the port.
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    start = functools.partial(_start_worker, _by_number(listen), secret)
    handlers = {_METHOD: grpc.stream_stream_rpc_method_handler(start)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    try:
        server.add_insecure_port(listen)
        await server.start()
        print(f"workers are started for jobs that reach {listen}", file=sys.stderr)
        await server.wait_for_termination()
    finally:
        await server.stop(None)


def main() -> None:
    """Serves until a signal ends the process, and with it all workers."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.runners.pool", description=__doc__)
    parser.add_argument("--listen", metavar="ADDRESS:PORT", required=True)
    parser.add_argument("--secret", metavar="FILE", required=True)
    arguments = parser.parse_args()
    # The first process of a container ignores it by default.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        asyncio.run(_serve(arguments.listen, read_secret(arguments.secret)))
    except (UsageError, RuntimeError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
