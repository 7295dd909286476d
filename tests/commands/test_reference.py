"""Tests that the docs match the code: the reference, all commands on pages, the tutorial."""

import re
import shlex
import shutil
from pathlib import Path

import pandas
import pytest
from runs import ROOT, run_in9

from pipeline.commands.command_line import COMMANDS, build_parser, parse_command_line, refuse_keys
from pipeline.commands.flags import flags_of
from pipeline.commands.reference import FILES, REASONS, TABLES, meaning, reference
from transforms.filters import Reason

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks" / "REPRODUCTION.md",
]
_BLOCK = re.compile(r"^```(bash|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"(?:\w+=\S+ )*(?:\S*/)?in9 (.*)")


def commands_of(text: str) -> list[list[str]]:
    """Returns the words after `in9` of every command in a page's shell blocks."""
    commands = []
    for kind, block in _BLOCK.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            is_command = kind == "bash" or line.startswith("$ ")
            command = _COMMAND.fullmatch(line.removeprefix("$ "))
            if is_command and command:
                words = shlex.split(command[1], comments=True)
                commands.append(words[: words.index(">")] if ">" in words else words)
    return commands


def test_the_reference_is_what_the_code_says() -> None:
    page = (ROOT / "docs" / "reference.md").read_text()
    assert page == f"{reference()}\n", "python -m pipeline.commands.reference > docs/reference.md"


def test_every_flag_column_and_reason_has_a_line() -> None:
    text = (ROOT / "docs" / "reference.md").read_text()
    for command in COMMANDS:
        assert f"\n| `in9 {command}` |" in text
        for flag in flags_of(command):
            shown = flag.name if flag.name.startswith("--") else re.escape(flag.metavar)
            shown = flag.dest if flag.in_file else shown
            rows = re.findall(rf"^\| `{shown}[ `].*$", text.replace("\\|", "|"), re.MULTILINE)
            assert any(command in row.split("|")[-2] for row in rows), (command, flag)
    for name, table in TABLES.items():
        for column in table.columns:
            assert f"\n| `{column}` | {meaning(name, column)} | " in text
    for _, schema, _ in FILES.values():
        assert all(f"\n| `{column}` | `" in text for column in schema.names)
    assert list(REASONS) == list(Reason)
    assert "\n| `--per_class all\\|min\\|N` | `all` | images per class: all, min (as many" in text
    with pytest.raises(KeyError, match="column spin of gaps"):
        meaning("gaps", "spin")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one(page: Path) -> None:
    for words in commands_of(page.read_text()):
        refuse_keys(words)
        arguments, rest = build_parser().parse_known_args(words)
        assert arguments.command == words[0]
        # Beam gets the rest, so the rest must begin with a flag.
        assert all(word.startswith("--") for word in rest[:1]), words


def test_files_of_flags_on_pages_have_known_keys(tmp_path: Path) -> None:
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    ]
    assert any("\n[attack]\n" in block for block in blocks)
    for block in blocks:
        (tmp_path / "flags.toml").write_text(block)
        for command in set(COMMANDS) - {"models"}:
            parse_command_line([command, "--config", str(tmp_path / "flags.toml")])


def test_the_tutorials_sample_is_as_told(
    sample_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    text = text[text.index("## The sample") : text.index("## ImageNet")]
    shutil.copytree(sample_run, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    first, *others = commands_of(text)
    assert first == ["run", "--output", "out"]
    assert [words[0] for words in others] == ["evaluate", "report", "verify"]
    for words in others:
        done = run_in9(*words)
        if words[0] == "report":
            printed = text.split("$ in9 run --output out\n")[1].split("```")[0]
            assert printed in done.stdout
            assert "cannot tell" not in done.stdout
            assert printed.startswith("these pictures are composites from the embedded sample")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image" not in page
    # The page tells what the pictures are before any figure, and claims nothing about ImageNet.
    note = (
        "These pictures are composites from the embedded sample, so accuracies on them say nothing"
    )
    assert 0 < page.index(note) < page.index('class="facts"')
    assert "No claim of the source is judged here" in page
    assert 'class="claims"' not in page
    assert "Published" not in page
    assert note in (tmp_path / "out" / "README.md").read_text()

    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    scope: dict[str, pandas.DataFrame] = {}
    exec(code, scope)
    counts = scope["index"].status.value_counts().to_dict()
    phrase = ", ".join(f"`{status}` {n}" for status, n in counts.items())
    assert f"{phrase}:" in text
