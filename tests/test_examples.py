"""Tests the programs of examples/ on tiny pictures."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas
import pytest
from runs import ROOT

import in9

SMALL = ("--image_size", "64", "--resize", "64")


@pytest.fixture
def run(small_sample: Path, tmp_path: Path) -> Callable[..., str]:
    """A function that runs an example on 18 small pictures in a folder and returns its output."""

    def run(name: str, *arguments: str) -> str:
        commands = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        modules = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / name, *arguments, "--input", small_sample],
            cwd=tmp_path,
            env={**os.environ, "PATH": commands, "PYTHONPATH": modules},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_two_models_are_compared(run: Callable[..., str], tmp_path: Path) -> None:
    models = ("python:tiny_models:first", "python:tiny_models:second")
    flags = (*SMALL, "--segmenter", "box", "--pictures", "none")
    output = run("compare_models.py", "out", *models, *flags)
    assert re.search(r"^BG-Gap of \S+ minus that of \S+: -?\d+\.\d points \[", output, re.MULTILINE)
    only = re.findall(
        r"^(\d+) images that only (\S+) gets right on mixed_rand", output, re.MULTILINE
    )
    assert [model for _, model in only] == list(models)
    answers = [
        pandas.read_parquet(folder) for folder in sorted((tmp_path / "out").glob("results/*/pred*"))
    ]
    rows = pandas.concat(answers).query("variant == 'mixed_rand'")
    right = rows[rows["label_rule"] == "argmax_then_map"].groupby("model")["correct"].sum()
    assert int(only[0][0]) - int(only[1][0]) == right[models[0]] - right[models[1]]


def test_a_variant_of_ones_own_is_evaluated(run: Callable[..., str], tmp_path: Path) -> None:
    flags = (*SMALL, "--segmenter", "box", "--models", "python:tiny_models:first")
    output = run("own_variant.py", "out", *flags, "--pictures", "none")
    assert re.search(r"^python:tiny_models:first( +\d+\.\d){3}$", output, re.MULTILINE)
    pictures = in9.open_dataset(tmp_path / "out", "silhouette")
    for (picture, _, _), (mask, _, _) in zip(pictures, pictures.select("fg_mask"), strict=True):
        assert picture[mask > 0].mean() < 32


def test_a_segmenter_of_ones_own_stands_beside_grabcut(run: Callable[..., str]) -> None:
    output = run("own_segmenter.py", "out", *SMALL)
    (share,) = re.findall(r"mean IoU of (\d\.\d\d)$", output, re.MULTILINE)
    assert 0.2 < float(share) < 1
