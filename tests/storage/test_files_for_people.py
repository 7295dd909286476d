"""Tests files that people open, tables and logs, and how they show hostile names."""

import ast
import csv
import io
import logging
import stat
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import ROOT

from pipeline.errors import JobError, counted, escaped, escaped_texts, shown_bytes
from pipeline.runtime.job_log import in_one_line, job_log
from pipeline.storage.state_files import csv_bytes, read_csv
from pipeline.storage.store import Store
from transforms.hashing import text_bytes

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


def test_numbers_of_things_are_as_people_say_them() -> None:
    shown = [counted(number, noun) for number in (0, 1, 2) for noun in ("other file", "class")]
    assert shown == ["0 other files", "0 classes", "1 other file", "1 class",
                     "2 other files", "2 classes"]  # fmt: skip


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
