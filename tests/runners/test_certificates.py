"""Tests who gets what from Dask with the certificates of `deploy/certificates`."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from cluster import listens_at
from machines import until
from runs import ROOT, SHARDS, results_of, run_in9

PAGES = ("health", "info/main/workers.html", "json/counts.json", "metrics")
"""Pages that Dask shows everybody by default."""


def _make(folder: Path) -> Path:
    """Makes certificates; returns the file for `DASK_CONFIG`."""
    subprocess.run([ROOT / "deploy" / "certificates", folder], check=True)
    return folder / "dask.yaml"


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[tuple[Path, list[int]]]:
    """A scheduler and a worker with certificates; (their folder, ids of their processes)."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    environment["DASK_CONFIG"] = str(_make(tmp_path / "own"))
    file = ("--scheduler-file", tmp_path / "scheduler")
    commands = {
        "scheduler": ("--host", "tls://127.0.0.1", "--port", 0, *file),
        "worker": (*file, "--nthreads", 1, "--memory-limit", 0, "--local-directory", tmp_path),
    }
    with contextlib.ExitStack() as stack:
        processes = []
        for name, flags in commands.items():
            with (tmp_path / f"{name}.log").open("wb") as log:
                words = (sys.executable, "-m", "dask", name, *flags, "--no-dashboard")
                processes.append(
                    subprocess.Popen(
                        ["setpriv", "--pdeathsig=KILL", *map(str, words)],
                        env=environment,
                        stderr=log,
                        start_new_session=True,
                    )
                )
            stack.callback(processes[-1].wait)
            stack.callback(os.killpg, processes[-1].pid, signal.SIGKILL)
        until(lambda: "Registered to:" in (tmp_path / "worker.log").read_text())
        children = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(processes[1].pid)], capture_output=True, text=True
        ).stdout.split()
        yield tmp_path, [*(process.pid for process in processes), *map(int, children)]


def _context(settings: dict[str, str] | None, file: Path) -> ssl.SSLContext:
    """Returns a context of TLS for who has these certificates, or none."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if settings:
        file.write_text(settings["cert"] + settings["key"])
        context.load_cert_chain(file)
    return context


def _told(port: int, context: ssl.SSLContext | None, says: bytes = b"") -> bytes:
    """Returns what a port tells who connects and says something, before it closes or is silent."""
    with socket.create_connection(("127.0.0.1", port)) as plain, contextlib.suppress(OSError):
        plain.settimeout(2)
        with contextlib.ExitStack() as stack:
            line = stack.enter_context(context.wrap_socket(plain)) if context else plain
            line.sendall(says)
            return line.recv(4096)
    return b""


def test_strangers_get_nothing(dask: tuple[Path, list[int]]) -> None:
    folder, processes = dask
    other = _make(folder / "other")
    own_tls, other_tls = (
        yaml.safe_load(path.read_text())["distributed"]["comm"]["tls"]
        for path in (folder / "own" / "dask.yaml", other)
    )
    own = _context(own_tls["client"], folder / "own.pem")
    nobody, somebody = _context(None, other), _context(other_tls["client"], folder / "other.pem")
    ports = {port for process in processes for _, port in listens_at(process)}
    of_dask = {port for port in ports if _told(port, own)}
    # The scheduler, the worker and its nanny; beside the first two, what would serve pages.
    assert (len(of_dask), len(ports)) == (3, 5)
    for port in of_dask:
        assert [_told(port, each, b"0" * 64) for each in (nobody, somebody, None)] == [b""] * 3
    for port in ports - of_dask:
        for page in (*PAGES, "sitemap.json"):
            answer = _told(port, None, f"GET /{page} HTTP/1.0\r\n\r\n".encode())
            assert b" 404 " in answer or answer.endswith(b'{"paths": ["/sitemap.json"]}')


def test_a_job_on_dask_with_certificates(
    dask: tuple[Path, list[int]],
    small_sample: Path,
    one_worker: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = dask
    output = folder / "out"
    flags = ("generate", "--input", small_sample, *SHARDS, "--output", output)
    flags = (*flags, "--dask", folder / "scheduler")
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "3s")
    for stranger in (_make(folder / "other"), Path("/dev/null")):
        monkeypatch.setenv("DASK_CONFIG", str(stranger))
        (line,) = run_in9(*flags, check=2).stderr.splitlines()
        assert "no scheduler answers at tls://127.0.0.1:" in line
        assert not output.exists()
    monkeypatch.setenv("DASK_CONFIG", str(folder / "own" / "dask.yaml"))
    run_in9(*flags)
    assert results_of(output) == results_of(one_worker)


def test_only_the_user_reads_certificates(tmp_path: Path) -> None:
    path = _make(tmp_path / "new")
    assert [each.stat().st_mode & 0o777 for each in (path.parent, path)] == [0o700, 0o600]
    assert os.listdir(path.parent) == [path.name]
