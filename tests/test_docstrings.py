"""Docstrings: a function's begins with what it does, in the third person ("Counts ...")."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from runs import ROOT

FOLDERS = ("pipeline", "transforms", "tests", "benchmarks", "deploy", "examples")
VERBS = set((ROOT / "tests" / "docstring_verbs.txt").read_text(encoding="utf-8").split())


def first_words(source: str) -> Iterator[tuple[int, str]]:
    """Yields (line, first words) of the docstring of each function, but not of properties, which
    are nouns. With "of" behind it, the first word is a noun, too, and so both are given."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            decorators = {
                ast.unparse(getattr(each, "func", each)).rpartition(".")[2]
                for each in node.decorator_list
            }
            if text and not decorators & {"property", "cached_property", "fixture"}:
                words = text.split()
                yield node.lineno, " ".join(words[: 1 + (words[1:2] == ["of"])])


def test_a_noun_in_front_is_found() -> None:
    source = 'def count():\n    """The number of images."""\n'
    assert [word in VERBS for _, word in first_words(source)] == [False]
    assert [word in VERBS for _, word in first_words(source.replace("The", "Counts the"))] == [True]


def test_docstrings_of_functions_begin_with_a_verb() -> None:
    files = [ROOT / "in9.py", ROOT / "setup.py"]
    files += sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {word}"
        for path in files
        for line, word in first_words(path.read_text(encoding="utf-8"))
        if word not in VERBS
    ]
    assert not wrong, "\n".join(["No verb of tests/docstring_verbs.txt in front:", *wrong])
