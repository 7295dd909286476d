"""Inputs and finished datasets that several test modules look at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.job_flags import sample_folder
from pipeline.source import find_layout, list_images
from transforms.taxonomy import imagenet9

SHARED = Path(__file__).resolve().parents[2] / "shared"

In9 = Callable[..., "subprocess.CompletedProcess[str]"]


def run_in9(*arguments: object, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Runs the real command line in a process of its own; fails on another exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if check is not None:
        assert done.returncode == check, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real ImageNet pictures and reference data, which may be absent."""
    if not (SHARED / "reference").is_dir():
        pytest.skip(f"no reference data in {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def sample() -> Path:
    """The embedded sample: 72 pictures with true masks."""
    return Path(sample_folder())


@pytest.fixture(scope="session")
def sample_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job on the sample, with all defaults. Tests must not write into it."""
    output = tmp_path_factory.mktemp("sample") / "out"
    run_in9("run", "--output", output)
    return output


@pytest.fixture(scope="session")
def mini_run(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The main job on 270 real ImageNet pictures. Tests must not write into it."""
    output = tmp_path_factory.mktemp("mini") / "out"
    run_in9("run", "--output", output, "--input", shared / "imagenet-mini")
    return output


def _copy_input(sample: Path, root: Path, labels: set[int]) -> Path:
    """Two sample pictures of each class, with their annotations."""
    listing = list_images(find_layout(str(sample), None, "val"), imagenet9(), limit=2)
    for image in listing.images:
        if image.label not in labels:
            continue
        assert image.annotation is not None
        for path in (image.path, image.annotation):
            target = root / Path(path).relative_to(sample)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(Path(path).read_bytes())
    return root


@pytest.fixture
def small_input(sample: Path, tmp_path: Path) -> Path:
    """A writable input of 18 sample pictures, two of each class."""
    return _copy_input(sample, tmp_path / "input", set(range(9)))


@pytest.fixture
def tiny_input(sample: Path, tmp_path: Path) -> Path:
    """A writable input of 6 sample pictures, two of each of three classes."""
    return _copy_input(sample, tmp_path / "input", {1, 3, 8})
