"""Tests that the folders of tests mirror the layers of `pipeline/`."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from runs import ROOT

PIPELINE, TESTS = ROOT / "pipeline", ROOT / "tests"


def imported(folder: Path) -> Iterator[str]:
    """Yields the modules that the files of a folder import."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                yield node.module
                yield from (f"{node.module}.{name.name}" for name in node.names)
            elif isinstance(node, ast.Import):
                yield from (name.name for name in node.names)


def test_every_layer_has_tests() -> None:
    (layers, *_) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    folders = {name for name in layers["layers"] if (PIPELINE / name).is_dir()}
    assert folders == {path.parent.name for path in PIPELINE.glob("*/__init__.py")}
    expected = {*folders, "transforms", "faults"}
    assert {path.parent.name for path in TESTS.glob("*/test_*.py")} == expected


@pytest.mark.parametrize("layer", ["dataset", "inputs", "generate", "evaluate"])
def test_every_module_is_imported_by_a_test_of_its_layer(layer: str) -> None:
    modules = {
        f"pipeline.{layer}.{path.stem}"
        for path in (PIPELINE / layer).glob("*.py")
        if path.stem != "__init__"
    }
    assert sorted(modules - set(imported(TESTS / layer))) == []


def test_parsed_arguments_stay_in_commands() -> None:
    """Checks that what lies below commands gets flags as typed values, which mypy checks."""
    for path in [ROOT / "in9.py", *PIPELINE.rglob("*.py")]:
        if path.parent == PIPELINE / "commands":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "id", getattr(node, "attr", getattr(node, "name", None)))
            assert name != "Namespace", path
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
                assert getattr(node.args[0], "id", "") != "arguments", path
