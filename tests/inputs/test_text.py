"""Tests how lines of a user's text files are read."""

from pathlib import Path

import pytest

from pipeline.errors import UsageError
from pipeline.inputs import tables


def test_lines_come_whole_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa\nb\u2028c\n\nd".encode())
    assert list(tables.TextLines(str(path), "--include")) == ["a\n", "b\u2028c\n", "\n", "d"]
    path.write_bytes(b"")
    assert list(tables.TextLines(str(path), "--include")) == []


def test_what_is_no_text_or_too_long_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes(b"a\n\xff\n")
    with pytest.raises(UsageError, match=f"^--include {path} is not text in UTF-8$"):
        list(tables.TextLines(str(path), "--include"))
    monkeypatch.setattr(tables, "MAX_ROW", 5)
    path.write_bytes(b"12345\n")
    with pytest.raises(UsageError, match=f"^{path}, line 1: a row of more than 5 characters$"):
        list(tables.TextLines(str(path), ""))
    # The limit is for all lines of a row together.
    path.write_bytes(b"123\n45\n")
    with pytest.raises(UsageError, match="line 2"):
        list(tables.TextLines(str(path), "--boxes"))
    lines = tables.TextLines(str(path), "--boxes")
    rows = []
    for line in lines:
        rows.append(line)
        lines.begin_row()
    assert rows == ["123\n", "45\n"]
