"""Tests that benchmarks run where few packages are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

WITHOUT = """
import json, os, sys
from importlib.machinery import PathFinder

REFUSED = json.loads(os.environ["REFUSED"])

class Without:
    @staticmethod
    def find_spec(name, path=None, target=None):
        is_refused = name.partition(".")[0] in REFUSED
        return None if is_refused else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
"""
"""A module that every new Python process imports, and which hides packages."""


def with_what_they_need(names: list[str]) -> set[str]:
    """Returns distributions together with all that they require."""
    needed: set[str] = set()
    while names:
        name = canonicalize_name(names.pop())
        if name not in needed:
            needed.add(name)
            wanted = map(Requirement, metadata.requires(name) or ())
            names += [r.name for r in wanted if r.marker is None or r.marker.evaluate()]
    return needed


def test_stages_that_run_models_need_nothing_but_what_the_page_says(tmp_path: Path) -> None:
    page = (ROOT / "benchmarks" / "README.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("pip install ")]
    allowed = with_what_they_need(line.split()[2:]) | {"imagenet9-pipeline"}
    refused = [
        package
        for package, distributions in metadata.packages_distributions().items()
        if allowed.isdisjoint(map(canonicalize_name, distributions))
    ]
    assert {"apache_beam", "google", "scipy", "defusedxml", "requests"} <= set(refused)
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", "--quick", "--device", "cpu"],
        env={
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
            "REFUSED": json.dumps(refused),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for stage in ("evaluate", "attack", "saliency", "train"):
        assert f"{stage}, efficientnet_lite0 fp32: too few to tell (bare loop, " in done.stdout
