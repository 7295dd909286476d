"""Tests how the authors' archive is fetched, by an archive of our own on a local server."""

import hashlib
import http.server
import json
import re
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import manifest_of, refusal, run_here

from pipeline.errors import JobError, UsageError
from pipeline.released import paper_archive
from pipeline.released.paper_archive import AUTHORS, PAPER_NAME, find_archive, is_archive

pytestmark = pytest.mark.usefixtures("no_figures")


class Site:
    """A server of one file, which `content` holds.

    Attributes:
      cut: number of bytes of an answer after which the connection is closed; None for no such end.
      takes_ranges: whether it sends a part of the file if it is asked for one.
      requests, sent: the range that each request asked for, and the number of bytes it was sent.
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.takes_ranges = content, True
        self.cut: int | None = None
        self.requests: list[str] = []
        self.sent: list[int] = []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *_: object) -> None:
                """Logs nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/data"

    def answer(self, request: Any) -> None:
        asked = request.headers["Range"]
        self.requests.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if self.takes_ranges else 0
        found = request.path == f"/data/{PAPER_NAME}"
        there = found and start < len(self.content)
        body = self.content[start:] if there else b"no such file"
        status = (206 if self.takes_ranges else 200) if there else 416 if found else 404
        # Before the answer: who has it may read this at once.
        self.sent.append(len(body[: self.cut]))
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.cut])


@pytest.fixture(scope="module")
def archive(three_draws: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset in the released layout, as a compressed tar."""
    folder = tmp_path_factory.mktemp("released")
    run_here("export", "--dataset", three_draws, "--to", folder / "bg_challenge")
    with tarfile.open(folder / PAPER_NAME, "w:gz") as tar:
        tar.add(folder / "bg_challenge", "bg_challenge")
    return folder / PAPER_NAME


@pytest.fixture
def site(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of the archive, in place of the authors'. The cache is `tmp_path / "cache"`."""
    content = archive.read_bytes()
    site = Site(content)
    monkeypatch.setattr(paper_archive, "PAPER_SITE", site.url)
    monkeypatch.setattr(paper_archive, "PAPER_BYTES", len(content))
    monkeypatch.setattr(paper_archive, "PAPER_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setenv("IN9_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("IN9_RELEASED", raising=False)
    threading.Thread(target=site.server.serve_forever, args=(0.01,), daemon=True).start()
    yield site
    site.server.shutdown()
    site.server.server_close()


def test_what_is_cut_off_is_gone_on_with_and_imported(
    site: Site, archive: Path, tmp_path: Path
) -> None:
    whole, part = len(site.content), tmp_path / "cache" / f"{PAPER_NAME}.part"
    command = ("import", "--from", "paper:", "--output", tmp_path / "out")
    site.cut = whole // 3
    (line,) = run_here(*command, code=1).err.splitlines()
    for words in (
        f"{site.url}/{PAPER_NAME}",
        f"{whole:,} bytes",
        paper_archive.PAPER_SHA256,
        "same command",
    ):
        assert words in line
    kept = part.read_bytes()
    assert site.content.startswith(kept)
    assert len(kept) > whole // 3 - (1 << 16) > 0
    assert not (tmp_path / "out").exists()
    site.cut = None
    run_here(*command)
    assert site.requests == ["bytes=0-", f"bytes={len(kept)}-"]
    assert site.sent == [whole // 3, whole - len(kept)]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [PAPER_NAME]
    assert "nothing to do" in run_here(*command).out
    assert len(site.requests) == 2
    # The same file is the authors' wherever it lies, and a folder may be anybody's.
    run_here("import", "--from", archive, "--output", tmp_path / "named")
    for name in ("out", "named"):
        assert manifest_of(tmp_path / name)["about"]["creator"] == AUTHORS
        assert f"Made by {AUTHORS}." in (tmp_path / name / "README.md").read_text()
        croissant = json.loads((tmp_path / name / "croissant.json").read_text())
        assert croissant["creator"] == {"@type": "sc:Organization", "name": AUTHORS}
        assert "Xiao, Engstrom, Ilyas, Madry" in croissant["citeAs"]
    run_here("import", "--from", archive.parent / "bg_challenge", "--output", tmp_path / "folder")
    assert "about" not in manifest_of(tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    assert "The protocol, and the pictures if these are the release's:\n\n> Xiao, Eng" in card


@pytest.mark.parametrize("wrong", [b"<html>Sign in</html>", None])
def test_other_bytes_are_refused_before_they_are_read_and_fetched_again(
    wrong: bytes | None, site: Site, tmp_path: Path
) -> None:
    content = site.content
    site.content = wrong or content[:-1] + bytes([content[-1] ^ 1])
    line = refusal("import", "--from", "paper:", "--output", tmp_path / "out")
    wanted, found = (
        f"{len(data):,} bytes, SHA-256 {hashlib.sha256(data).hexdigest()}"
        for data in (content, site.content)
    )
    told = f"is not the authors' archive of {wanted}, but has {found}; use --from FILE"
    assert line == f"in9 import: {site.url}/{PAPER_NAME} {told}"
    site.content = content
    assert Path(find_archive()).read_bytes() == content
    assert site.requests == ["bytes=0-"] * 2


def test_a_server_without_ranges_sends_everything_again(site: Site) -> None:
    site.cut, site.takes_ranges = 1000, False
    with pytest.raises(JobError, match="was not fetched whole"):
        find_archive()
    site.cut = None
    assert is_archive(find_archive())
    assert site.sent == [1000, len(site.content)]


def test_a_file_that_a_killed_run_had_whole_is_taken(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / f"{PAPER_NAME}.part").write_bytes(site.content)
    assert is_archive(find_archive())
    assert site.requests == [f"bytes={len(site.content)}-"]


def test_without_a_network_one_line_says_what_to_fetch(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("import", "--from", "paper:", "--output", tmp_path / "out")
    again = "run the same command again to go on, or "
    for place, reason, advice in (
        (f"{site.url}/other", "HTTPError 404", ""),
        ("http://127.0.0.1:9/data", "ConnectionError", again),
    ):
        monkeypatch.setenv("IN9_RELEASED", place)
        (line,) = run_here(*command, code=1).err.splitlines()
        assert line == (
            f"in9 import: the job failed: {place}/{PAPER_NAME} was not fetched whole ({reason}): "
            f"{advice}fetch the file elsewhere "
            f"({len(site.content):,} bytes, SHA-256 {paper_archive.PAPER_SHA256}) and name it by "
            "--from"
        )
        assert not (tmp_path / "out").exists()


def test_a_mirror_may_be_an_address_a_folder_or_a_file(
    site: Site, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in (archive, archive.parent, f"{archive.parent}/"):
        monkeypatch.setenv("IN9_RELEASED", str(place))
        assert find_archive() == str(archive)
    (tmp_path / PAPER_NAME).write_bytes(b"other")
    for place, said in (
        (tmp_path, f"{tmp_path}/{PAPER_NAME} is not the authors' archive"),
        (tmp_path / "missing", f"there is no {tmp_path}/missing/{PAPER_NAME}"),
    ):
        monkeypatch.setenv("IN9_RELEASED", str(place))
        with pytest.raises(UsageError, match=said):
            find_archive()
    assert not site.requests
    for place in (site.url, f"{site.url}/", f"{site.url}/{PAPER_NAME}"):
        monkeypatch.setenv("IN9_RELEASED", place)
        assert is_archive(find_archive())
    assert len(site.requests) == 1


def test_a_cache_that_others_can_change_is_not_written_to(site: Site, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    with pytest.raises(OSError, match="others may write to it"):
        find_archive()
    assert not site.requests
    assert not list((tmp_path / "cache").iterdir())
