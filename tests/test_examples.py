"""Tests the programs of examples/ on tiny pictures."""

import json
import os
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from runs import ROOT, forks, keys, run_in9, run_program
from small_models import network

import in9

pytestmark = pytest.mark.usefixtures("no_figures")

SMALL = ("--image_size", "64", *keys(resize=64), "--formats", "parquet", "--pictures", "none")
BOX = ("--segmenter", "box")


@pytest.fixture
def run(
    small_sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., str]:
    """A function that runs an example on 18 small pictures in a folder and returns what it prints.

    It runs in this process, and the commands that it starts are forks.
    """
    monkeypatch.chdir(tmp_path)

    def start(words: list[str], env: Any = os.environ, **_: Any) -> Any:
        done = forks().run(words[1:], dict(env))
        assert (words[0], done.returncode) == ("in9", 0), done.stderr
        return done

    monkeypatch.setattr("subprocess.run", start)

    def run(name: str, *arguments: str, makes: bool = True) -> str:
        path, added = str(ROOT / "examples" / name), ("--input", str(small_sample))
        monkeypatch.setattr("sys.argv", [path, *arguments, *(added if makes else ())])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


def test_two_models_are_compared(run: Callable[..., str], tmp_path: Path) -> None:
    models = ("python:tiny_models:first", "python:tiny_models:second")
    few = ("--variants", "original,mixed_same,mixed_rand")
    output = run("compare_models.py", "out", *models, *SMALL, *BOX, *few)
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
    # A dataset that exists, such as an import, is evaluated, perhaps beside other models.
    run_in9("evaluate", "--dataset", tmp_path / "out", "--models", "python:tiny_models:third")
    printed = run("compare_models.py", "out", *models, makes=False)
    assert printed.splitlines()[-3:] == output.splitlines()[-3:]


def test_help_needs_no_package() -> None:
    program = ROOT / "examples" / "compare_models.py"
    printed = run_program(sys.executable, "-I", "-S", program, "--help").stdout
    assert "flags of `in9 evaluate`" in printed


def test_a_variant_of_ones_own_is_evaluated(run: Callable[..., str], tmp_path: Path) -> None:
    models = ("--models", "python:tiny_models:first")
    output = run("own_variant.py", "out", *SMALL, *BOX, *models)
    assert re.search(r"^python:tiny_models:first( +\d+\.\d){3}$", output, re.MULTILINE)
    pictures = in9.open_dataset(tmp_path / "out", "silhouette")
    for (picture, _, _), (mask, _, _) in zip(pictures, pictures.select("fg_mask"), strict=True):
        assert picture[mask > 0].mean() < 32


def test_a_segmenter_of_ones_own_stands_beside_grabcut(run: Callable[..., str]) -> None:
    output = run("own_segmenter.py", "out", *SMALL)
    (share,) = re.findall(r"mean IoU of (\d\.\d\d)$", output, re.MULTILINE)
    assert 0.2 < float(share) < 1


def test_a_training_measures_the_gap_after_each_epoch(run: Callable[..., str]) -> None:
    # The program takes arguments of `in9.generate_dataset`, which have the keys' names, too.
    size = ("--image_size", "64", "--resize", "64")
    flags = (*size, *BOX, "--formats", "parquet")
    lines = run("validate_while_training.py", "out", *flags).splitlines()
    line = re.compile(r"epoch \d: \d+\.\d %, BG-Gap -?\d+\.\d \[-?\d+\.\d, -?\d+\.\d\]")
    assert sum(bool(line.fullmatch(each)) for each in lines) == 3


def test_the_notebook_runs(
    three_draws: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").symlink_to(three_draws)
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "examples" / "evaluate_model.ipynb").read_text())
    names: dict[str, Any] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)
    assert "mean colour" in names["result"]._repr_html_()
    assert set(names["flips"]["label_rule"]) == {"closed_choice"}


def test_lightning_logs_the_gap(three_draws: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lightning = pytest.importorskip("lightning")
    monkeypatch.syspath_prepend(ROOT / "examples")
    from lightning_callback import BackgroundGap

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.network = network(9)

        def forward(self, pictures: torch.Tensor) -> torch.Tensor:
            return self.network(pictures)

        def validation_step(self, batch: Any, _: int) -> None:
            self(batch)

    pictures = torch.utils.data.DataLoader(torch.rand(2, 3, 64, 64))
    trainer = lightning.Trainer(logger=False, callbacks=[BackgroundGap(three_draws)])
    trainer.validate(Module(), pictures)
    assert -1 <= trainer.logged_metrics["in9/bg_gap"] <= 1
