"""Tests who gets what from Dask with the certificates of `deploy/certificates`."""

import contextlib
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from engine_jobs import DaskCluster, dask_cluster, listens_at
from runs import ROOT, SHARDS, results_of, run_in9

PAGES = ("health", "info/main/workers.html", "json/counts.json", "metrics", "sitemap.json")
"""Pages that Dask shows everybody by default."""


def _make(folder: Path) -> Path:
    """Makes certificates; returns the file for `DASK_CONFIG`."""
    subprocess.run([ROOT / "deploy" / "certificates", folder], check=True)
    return folder / "dask.yaml"


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskCluster]:
    """A scheduler and a worker with certificates, which are in `own`."""
    folder = tmp_path_factory.mktemp("certificates") / "dask"
    file = str(_make(folder.with_name("own")))
    with dask_cluster(folder, 1, "tls", DASK_CONFIG=file) as cluster:
        yield cluster


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
        plain.settimeout(20)
        with contextlib.ExitStack() as stack:
            line = stack.enter_context(context.wrap_socket(plain)) if context else plain
            line.sendall(says)
            return line.recv(4096)
    return b""


def _asked(port: int, page: str) -> bytes:
    return _told(port, None, f"GET /{page} HTTP/1.0\r\n\r\n".encode())


def test_strangers_get_nothing(dask: DaskCluster, tmp_path: Path) -> None:
    other = _make(tmp_path / "other")
    own_tls, other_tls = (
        yaml.safe_load(path.read_text())["distributed"]["comm"]["tls"]
        for path in (dask.folder.with_name("own") / "dask.yaml", other)
    )
    own = _context(own_tls["client"], tmp_path / "own.pem")
    nobody, somebody = _context(None, other), _context(other_tls["client"], tmp_path / "other.pem")
    processes = [dask.scheduler.pid, *(worker.pid for worker in dask.workers), *dask.at_work()]
    ports = {port for process in processes for _, port in listens_at(psutil.Process(process))}
    pages = {port for port in ports if _asked(port, PAGES[0]).startswith(b"HTTP")}
    # The scheduler, the worker and its nanny; beside the first two, what would serve pages.
    assert (len(ports - pages), len(pages)) == (3, 2)
    for port in ports - pages:
        assert _told(port, own)
        assert [_told(port, each, b"0" * 64) for each in (nobody, somebody, None)] == [b""] * 3
    for port in pages:
        for page in PAGES:
            answer = _asked(port, page)
            assert b" 404 " in answer or answer.endswith(b'{"paths": ["/sitemap.json"]}')


def test_a_job_on_dask_with_certificates(
    dask: DaskCluster,
    small_sample: Path,
    one_worker: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out"
    flags = ("generate", "--input", small_sample, *SHARDS, "--output", output)
    flags = (*flags, "--dask", dask.folder / "scheduler")
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "3s")
    for stranger in (_make(tmp_path / "other"), Path("/dev/null")):
        monkeypatch.setenv("DASK_CONFIG", str(stranger))
        (line,) = run_in9(*flags, check=2).stderr.splitlines()
        assert "no scheduler answers at tls://127.0.0.1:" in line
        assert not output.exists()
    monkeypatch.setenv("DASK_CONFIG", str(dask.folder.with_name("own") / "dask.yaml"))
    monkeypatch.delenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT")
    run_in9(*flags)
    assert results_of(output) == results_of(one_worker)


def test_only_the_user_reads_certificates(tmp_path: Path) -> None:
    path = _make(tmp_path / "new")
    assert [each.stat().st_mode & 0o777 for each in (path.parent, path)] == [0o700, 0o600]
    assert os.listdir(path.parent) == [path.name]
