"""Tests files that jobs leave for others.

Damaged ones count as missing, and no name in them leads out of the folder.
"""

import ast
import csv
import errno
import io
import json
import logging
import os
import posixpath
import stat
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import ROOT, run_python

from pipeline.commands.flags import flags_of
from pipeline.dataset.manifest import LATEST, MANIFEST, read_latest, read_manifest
from pipeline.dataset.records import Record, read_metadata, write_table
from pipeline.errors import JobError, UsageError, escaped, escaped_texts, shown_bytes
from pipeline.evaluate.results import RunSettings
from pipeline.models.identity import PredictConfig
from pipeline.runtime.job_log import in_one_line, job_log
from pipeline.runtime.lock import DATASET_LOCK, locked
from pipeline.storage.state_files import (
    NotJsonError,
    RelativePath,
    convert,
    csv_bytes,
    parse_json,
    read_csv,
    read_json,
)
from pipeline.storage.store import FileDigest, Store
from transforms.hashing import text_bytes
from transforms.limits import MAX_NESTING, load_json


@pytest.mark.parametrize(
    "content", [b"", bytes(100), b'{"a": [1, ', b"\xff\xfe", b"[" * 100_000, b"[]", b'{"a": ["1"]}']
)
def test_json_that_was_not_written_whole_or_is_of_another_form_counts_as_not_there(
    content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "note.json").write_bytes(content)
    for _ in range(2):
        assert read_json(store, "note.json", dict[str, list[int]]) is None
    assert len(caplog.messages) == 1
    assert str(tmp_path / "note.json") in caplog.messages[0]
    assert read_json(store, "gone.json", dict[str, list[int]]) is None
    assert len(caplog.messages) == 1


NESTED = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(NESTED, st.integers(0, 2 * MAX_NESTING))
def test_json_is_refused_from_a_number_of_levels_on(content: object, levels: int) -> None:
    assert load_json(json.dumps(content)) == content
    deep = '{"a": [' * (levels // 2) + "[" * (levels % 2) + "1"
    deep += "]" * (levels % 2) + "]}" * (levels // 2)
    if levels <= MAX_NESTING:
        assert load_json(deep) == json.loads(deep)
    else:
        with pytest.raises(ValueError, match="it has more than 64 levels"):
            load_json(deep)


@given(NESTED, st.lists(st.text(), min_size=1, unique=True), st.data())
def test_two_fields_of_one_name_are_refused(
    content: object, names: list[str], data: st.DataObject
) -> None:
    """The standard library would keep the last."""
    twice = data.draw(st.permutations([*names, data.draw(st.sampled_from(names))]))
    text = ", ".join(f"{json.dumps(name)}: {json.dumps(content)}" for name in twice)
    for document in (f"{{{text}}}", f'[{{"a": [{{{text}}}]}}]'):
        with pytest.raises(ValueError, match="an object has two fields "):
            load_json(document)
        with pytest.raises(NotJsonError, match="an object has two fields "):
            parse_json(document.encode(), dict[str, Any])


MANY_THREADS = """
import dataclasses, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pipeline.storage.state_files import convert

sys.setswitchinterval(1e-6)
for _ in range(100):
    inner = dataclasses.make_dataclass("Inner", [(f"i{n}", int) for n in range(9)])
    kind = dataclasses.make_dataclass("Outer", [("inner", inner), ("name", str)])
    content = {"inner": {f"i{n}": n for n in range(9)}, "name": "x"}
    start = threading.Barrier(4)

    def work(_):
        start.wait()
        return convert(content, kind)

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(work, range(4))] == [kind(inner(*range(9)), "x")] * 4
"""


def test_many_threads_may_be_the_first_to_read_a_type() -> None:
    """Runs in another process, because msgspec ended it with signal 11 before."""
    run_python(MANY_THREADS)


def test_a_failing_disk_does_not_mean_that_there_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stat = Store(str(tmp_path)), os.stat
    missing = ("gone", "file/below", "x" * 300, "loop/file", "nul\0")
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert [store.size(name) for name in missing] == [None] * len(missing)

    def failing(path: Any, **options: Any) -> os.stat_result:
        if os.fspath(path) == str(tmp_path / "file"):
            raise OSError(errno.EIO, "Input/output error", path)
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", failing)
    for ask in (store.size, store.exists, lambda path: store.update(path, b"")):
        with pytest.raises(OSError, match="Input/output error"):
            ask("file")


@pytest.mark.parametrize(
    "path", ["/proc/self/status", "/sys/kernel/mm/transparent_hugepage/enabled"]
)
def test_a_file_has_as_many_bytes_as_its_system_tells(path: str) -> None:
    """Reads files of Linux itself: one has more bytes than its size, the other fewer."""
    if not os.path.exists(path):
        pytest.skip(f"no {path}")
    with pytest.raises(OSError, match=f"{path} gave [0-9]+ bytes, of {os.stat(path).st_size}"):
        Store("/").read(path.lstrip("/"))


def test_a_record_is_whole_or_not_there(tmp_path: Path) -> None:
    store, path = Store(str(tmp_path)), "layers/val-00000.parquet"
    files = (FileDigest("layers/val-00000.tar", 1, "0" * 64, 1),)
    write_table(store, path, pa.table({"key": ["a"]}), "f", files)
    assert read_metadata(store, path) == Record("f", path, files)
    intact = (tmp_path / path).read_bytes()
    for length in range(0, len(intact), 97):
        (tmp_path / path).write_bytes(intact[:length])
        assert read_metadata(store, path) is None
    pages = len(intact) - 8 - int.from_bytes(intact[-8:-4], "little")
    # The second leaves the footer, which holds the metadata, as it was.
    for damaged in (bytes(len(intact)), intact[:4] + bytes(pages - 4) + intact[pages:]):
        (tmp_path / path).write_bytes(damaged)
        assert read_metadata(store, path) is None
    # This table is not a record.
    with store.create(path) as file:
        pa.parquet.write_table(pa.table({"key": ["a"]}), file)
    assert read_metadata(store, path) is None


@given(st.lists(st.sampled_from(["..", ".", "", "a", "b.c", ".in9", "\\", "a\nb"]), min_size=1))
def test_a_relative_path_stays_below_its_folder(parts: list[str]) -> None:
    path = "/".join(parts)
    try:
        parse_json(json.dumps(path).encode(), RelativePath)  # type: ignore[arg-type]
    except msgspec.ValidationError:
        return
    assert posixpath.normpath(path) == path
    assert not path.startswith(("/", "."))


HOSTILE = ("../victim", "/victim", "index/../../victim", "index/./a", "index//a", ".in9/lock", "")


@pytest.mark.parametrize("path", HOSTILE)
def test_no_manifest_or_record_names_what_lies_elsewhere(
    path: str, one_worker: Path, tmp_path: Path
) -> None:
    content = json.loads((one_worker / MANIFEST).read_text())
    content["files"][0]["path"] = path
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(UsageError, match=MANIFEST) as caught:
        read_manifest(Store(str(tmp_path)))
    assert repr(path) in str(caught.value)
    store, record = Store(str(tmp_path)), "layers/val-00000.parquet"
    for named, valid in ((path, False), ("layers/val-00000.tar", True)):
        files = [FileDigest(named, 1, "0" * 64)]
        write_table(store, record, pa.table({"key": ["a"]}), "f", files)
        assert (read_metadata(store, record) is not None) == valid


@pytest.mark.parametrize("name", ["../victim", "v-0123456789ab/..", "v-0123456789AB", "v-", ""])
def test_only_folders_of_versions_are_versions(name: str, tmp_path: Path) -> None:
    latest = {"format": "imagenet9-latest", "fingerprint": "f", "versions": [name]}
    (tmp_path / LATEST).write_text(json.dumps(latest))
    with pytest.raises(UsageError, match=LATEST):
        read_latest(Store(str(tmp_path)))


WRITES: dict[str, Callable[[Store], object]] = {
    "write": lambda store: store.write("parquet/deep/new", b""),
    "create": lambda store: store.create("parquet/new").__enter__(),
    "move_in": lambda store: store.move("mine", "parquet/mine"),
    "move_out": lambda store: store.move("parquet/theirs", "stolen"),
    "copy": lambda store: store.copy_into(store, [("mine", "parquet/mine")]),
    "delete": lambda store: store.delete("parquet/theirs"),
    "delete_all": lambda store: store.delete_all(["parquet/theirs"]),
    "delete_tree": lambda store: store.delete_tree("parquet/folder"),
    "below": lambda store: store.below("parquet").write("theirs", b""),
    "prune": lambda store: store.prune("parquet/empty"),
    "lock": lambda store: locked(store.below("parquet"), DATASET_LOCK).__enter__(),
}


@pytest.mark.parametrize("name", WRITES)
def test_nothing_is_written_or_removed_behind_a_link(name: str, tmp_path: Path) -> None:
    """Checks links inside the folder; the folder that the user named may itself be a link."""
    victim, real, output = tmp_path / "victim", tmp_path / "real", tmp_path / "out"
    (victim / "folder").mkdir(parents=True)
    (victim / "empty").mkdir()
    (victim / "theirs").write_text("theirs")
    (victim / "folder" / "theirs").write_text("theirs")
    real.mkdir()
    output.symlink_to(real)
    (real / "mine").write_text("mine")
    (real / "parquet").symlink_to(victim)

    def seen() -> list[str]:
        return sorted(str(path) for path in tmp_path.rglob("*"))

    before = seen()
    with pytest.raises(UsageError, match="parquet is a link to"):
        WRITES[name](Store(str(output)))
    assert seen() == before
    assert (victim / "theirs").read_text() == "theirs"


def test_a_full_disk_is_named_by_the_file_that_did_not_fit(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with (
        pytest.raises(OSError, match=f"free some space: '{tmp_path}/results/a.csv'$"),
        store.create("results/a.csv"),
    ):
        raise OSError(errno.ENOSPC, "full")
    assert not list(store.walk(""))


def test_of_a_link_only_itself_is_removed(tmp_path: Path) -> None:
    victim, output = tmp_path / "victim", tmp_path / "out"
    (victim / "empty").mkdir(parents=True)
    (victim / "theirs").write_text("theirs")
    output.mkdir()
    store = Store(str(output))
    for remove in (store.delete_tree, store.delete):
        (output / "link").symlink_to(victim)
        store.prune("link")
        remove("link")
        assert not os.path.lexists(output / "link")
    assert {path.name for path in victim.iterdir()} == {"empty", "theirs"}


def test_a_folder_that_cannot_be_listed_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, scandir = Store(str(tmp_path)), os.scandir
    store.write("a/b/c", b"")
    assert list(store.walk("a/b/c")) == list(store.walk("none")) == []

    def refuse(path: str) -> object:
        if os.fspath(path).endswith("b"):
            raise PermissionError(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        list(store.walk(""))


@pytest.mark.parametrize("path", ["../victim", "a/../../victim", "/victim"])
def test_no_path_leads_out_of_a_store(path: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leads out of"):
        Store(str(tmp_path)).read(path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """System calls that write and name files, since a power cut cannot be tried here."""
    found: list[str] = []

    def watched(name: str, call: Callable[..., None]) -> Callable[..., None]:
        def run(*arguments: object) -> None:
            target = arguments[0]
            if isinstance(target, int):
                target = os.readlink(f"/proc/self/fd/{target}")
            found.append(f"{name} {'folder' if os.path.isdir(str(target)) else 'file'}")
            call(*arguments)

        return run

    for name, call in (("sync", "fsync"), ("name", "replace"), ("name", "link")):
        monkeypatch.setattr(os, call, watched(name, getattr(os, call)))
    return found


def test_what_commits_others_is_on_the_disk_before_it_has_a_name(
    tmp_path: Path, calls: list[str]
) -> None:
    store = Store(str(tmp_path))
    expected = ["sync file", "name file", "sync folder"]
    write_table(store, "layers/val-00000.parquet", pa.table({"key": ["a"]}), "f")
    assert calls == expected
    calls.clear()
    store.write(MANIFEST, b"{}", durable=True)
    assert calls == expected
    calls.clear()
    with locked(store, DATASET_LOCK) as fenced:
        fenced.write(MANIFEST, b"{}", durable=True)
        assert calls == expected
        calls.clear()
        moves = [("layers/val-00000.parquet", "index/a"), (MANIFEST, "index/b")]
        fenced.move_all(moves)
        # Files pass through the lock's folder, so each gets a name twice.
        assert calls == [*["name file"] * 4, "sync folder"]
    calls.clear()
    store.move_all((target, source) for source, target in moves)
    assert calls == ["name file", "name file", *["sync folder"] * 2]
    calls.clear()
    store.write("results/summary.csv", b"")
    assert calls == ["name file"]


def test_every_way_to_run_a_model_is_a_form_of_results() -> None:
    """Checks that the schema has all values of the flags, since others would count as damage."""
    choices = {flag.dest: flag.choices or () for flag in flags_of("evaluate")}
    for precision in choices["precision"]:
        for is_compiled in (False, True):
            for eval_input in choices["eval_input"]:
                config = PredictConfig("cpu", precision, is_compiled, eval_input=eval_input)
                ways = {"precision": config.arithmetic, "eval_input": config.eval_input}
                convert({"split": "val", "holdout": 0.0, **ways}, RunSettings)
    with pytest.raises(msgspec.ValidationError):
        convert({"split": "val", "holdout": 0.0, **ways, "precision": "fp16"}, RunSettings)


# Files that people open, tables and logs, and how they show hostile names.

FORMULAS = ("=1+1", "+1", "-cmd", "@sum", "\t=1", "\r=1", "'=1", "''@x")


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1))
def test_texts_of_a_table_come_back(texts: list[str]) -> None:
    data = csv_bytes(["a"], [{"a": text} for text in (*texts, *FORMULAS)])
    assert [row["a"] for row in read_csv(data)] == [*texts, *FORMULAS]


def test_no_cell_is_a_formula_but_numbers_stay_numbers() -> None:
    texts = [{"a": text, "b": -0.5} for text in FORMULAS]
    rows = list(csv.DictReader(io.StringIO(csv_bytes(["a", "b"], texts).decode(), newline="")))
    assert {row["a"][0] for row in rows} == {"'"}
    assert {row["b"] for row in rows} == {"-0.5"}
    assert [row["b"] for row in read_csv(csv_bytes(["a", "b"], texts))] == ["-0.5"] * len(texts)
    assert csv_bytes(["a"], [{"a": "it's = 1"}]) == b"a\nit's = 1\n"


def test_text_is_encoded_in_two_ways_only() -> None:
    """Tests it because any other `encode` may meet a lone surrogate, or write other bytes."""
    encoders = Counter(
        str(path.relative_to(ROOT))
        for path in (*ROOT.glob("pipeline/**/*.py"), *ROOT.glob("transforms/**/*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "encode"
    )
    # `escaped`, which encodes single characters, `shown_bytes`, and `text_bytes`.
    assert encoders == {"pipeline/errors.py": 2, "transforms/hashing.py": 1}


ANY_TEXT = st.text(st.one_of(st.characters(), st.characters(categories=("Cs",))))


@given(ANY_TEXT, ANY_TEXT)
def test_text_that_is_not_utf8_is_shown_escaped_and_hashed_as_it_is(one: str, other: str) -> None:
    assert shown_bytes(escaped(one)).decode() == escaped(one)
    assert escaped(shown_bytes(one).decode()) == escaped(one)
    assert (text_bytes(one) == text_bytes(other)) == (one == other)
    assert escaped_texts({one: [other, 1]}) == {escaped(one, ""): [escaped(other, ""), 1]}
    (row,) = read_csv(csv_bytes(["a"], [{"a": f"x{one}"}]))
    assert row["a"] == f"x{shown_bytes(one).decode()}"


@given(ANY_TEXT)
def test_what_is_shown_can_be_seen(text: str) -> None:
    shown = escaped(text)
    assert shown.replace("\n", "").replace("\t", "").isprintable()
    assert escaped(shown) == shown


def test_a_job_log_is_escaped_and_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.log"

    def fail() -> None:
        with job_log(str(path)):
            logging.getLogger("pipeline").warning("red\x1b[31m \u202e")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert "red\\x1b[31m \\u202e" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = str(tmp_path / "file" / "a.log")
    with (
        pytest.raises(JobError, match=f"^the log {path} cannot be made: .*$"),
        in_one_line(path, lambda error: error),
        job_log(path),
    ):
        pass


def test_the_log_of_a_remote_job_has_a_name_that_nobody_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = Store("gs://bucket/out")
    first, second = Path(store.log("run")), Path(store.log("run"))
    assert first != second
    assert first.parent == second.parent == tmp_path
    assert stat.S_IMODE(first.stat().st_mode) == 0o600
    with job_log(str(first)):
        logging.getLogger("pipeline").warning("a line")
    assert not first.exists()
