"""Tests `scripts/environment`: what it installs again, and what it keeps.

A stand-in for pip records how it was called, because the real one would download gigabytes.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import ROOT

_PIP = """
import os, sys
with open("calls", "a") as file:
    print(*sys.argv[1:], os.environ.get("PIP_EXTRA_INDEX_URL", ""), file=file)
sys.exit("no way to the registry" if os.path.exists("offline") else 0)
"""
_PYTHON = f"""#!/bin/sh
case "$*" in
  *"print(sys.version)") cat other-version 2>/dev/null && exit ;;
  "-m venv --clear .venv") set -- "$@" --without-pip ;;
esac
exec "{sys.executable}" "$@"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with its own setup.py."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "environment", tmp_path / "scripts")
    for name, text in {
        "setup.py": "# one",
        "pyproject.toml": "",
        "bin/python3": _PYTHON,
        "packages/pip/__init__.py": "",
        "packages/pip/__main__.py": _PIP,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "bin" / "python3").chmod(0o755)
    return tmp_path


def call(checkout: Path, extra: str, **environment: str) -> list[str]:
    """Sources the script; returns all calls of pip so far."""
    with (checkout / "said").open("w") as log:
        subprocess.run(
            ["bash", "-c", f". scripts/environment {extra}"],
            cwd=checkout,
            env={
                **os.environ,
                "PATH": f"{checkout}/bin:{os.environ['PATH']}",
                "PYTHONPATH": f"{checkout}/packages",
                **environment,
            },
            # A pipe would stay open until the last `sleep` between two dots ends.
            stdout=log,
            stderr=log,
            check=not (checkout / "offline").exists(),
        )
    return (checkout / "calls").read_text().splitlines()


def installation(extra: str, index: str = "") -> str:
    return f"install --quiet --use-pep517 --editable .[{extra}] {index}"


def test_an_edit_updates_the_environment_and_keeps_what_is_there(checkout: Path) -> None:
    assert call(checkout, "models") == [installation("models")]
    assert call(checkout, "models") == [installation("models")]
    assert call(checkout, "test") == [installation("models"), installation("test")]
    own = checkout / ".venv" / "own"
    own.touch()
    (checkout / "setup.py").write_text("# two")
    calls = call(checkout, "models")
    assert calls[2:] == [installation("models")]
    # The requirements of the other extra may have changed too.
    assert call(checkout, "test")[3:] == [installation("test")]
    assert call(checkout, "test")[4:] == call(checkout, "models")[4:] == []
    assert own.exists()


def test_another_python_gets_another_environment(checkout: Path) -> None:
    index = "https://download.pytorch.org/whl/cpu"
    call(checkout, "models", PIP_EXTRA_INDEX_URL=index)
    own = checkout / ".venv" / "own"
    own.touch()
    (checkout / "other-version").write_text("9.9\n")
    calls = [installation("models", index), installation("models")]
    assert call(checkout, "models") == calls
    assert not own.exists()


def test_what_was_not_finished_is_tried_again(checkout: Path) -> None:
    (checkout / "offline").touch()
    call(checkout, "models")
    assert "no way to the registry" in (checkout / "said").read_text()
    (checkout / "offline").unlink()
    assert call(checkout, "models") == 2 * [installation("models")]
    # Simulates an environment made by hand or cut short, in which pip is not found.
    own = checkout / ".venv" / "own"
    own.touch()
    (checkout / "packages" / "pip").rename(checkout / "packages" / "hidden")
    with pytest.raises(subprocess.CalledProcessError):
        call(checkout, "models")
    assert not own.exists()
