"""Every snippet of Python in the documentation runs as it stands there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import run_in9

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"^```(python[^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)

_RUN_ALL = """
import contextlib, io, json, pathlib, sys, traceback

results = {}
for name, code in json.loads(pathlib.Path("snippets.json").read_text()).items():
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            exec(compile(code, name, "exec"), {"__name__": name, "__file__": name})
    except Exception:
        results[name] = traceback.format_exc()
    else:
        results[name] = ""
    print(name, said.getvalue(), sep="\\n", file=sys.stderr)
pathlib.Path("results.json").write_text(json.dumps(results))
"""


def snippets() -> dict[str, str]:
    """Code of all snippets that are meant to run, by page and number."""
    found = {}
    for page in PAGES:
        blocks = _BLOCK.findall(page.read_text())
        for number, (kind, code) in enumerate(blocks, 1):
            if kind == "python":
                found[f"{page.relative_to(ROOT)}:{number}"] = code
    return found


@pytest.fixture(scope="module")
def outcomes(sample_run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The traceback of each snippet, empty if it ran, beside `out` and an export of it."""
    folder = tmp_path_factory.mktemp("snippets")
    (folder / "out").symlink_to(sample_run)
    run_in9("export", "--dataset", sample_run, "--to", folder / "exported")
    (folder / "snippets.json").write_text(json.dumps(snippets()))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    # What they print, for who looks for why one failed.
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    results: dict[str, str] = json.loads((folder / "results.json").read_text())
    return results


@pytest.mark.parametrize("name", snippets())
def test_a_documented_snippet_runs(outcomes: dict[str, str], name: str) -> None:
    assert outcomes[name] == ""


def test_only_what_needs_a_server_is_left_out() -> None:
    left_out = [
        code
        for page in PAGES
        for kind, code in _BLOCK.findall(page.read_text())
        if kind != "python"
    ]
    assert len(left_out) == 1
    assert left_out[0].startswith("import fiftyone")
