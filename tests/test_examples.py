"""Tests the programs of examples/ on tiny pictures."""

import json
import os
import re
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Listener
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

FORK = """#!{python}
import os, sys
from multiprocessing.connection import Client
with Client({address!r}) as client:
    client.send((sys.argv[1:], dict(os.environ)))
    code, out, err = client.recv()
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
"""
"""The command `in9` as `run_in9` starts it, for programs that take it from the path."""


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the command `FORK`, which works in the working directory of this process."""
    folder = tmp_path_factory.mktemp("forked")
    listener = Listener(str(folder / "socket"))

    def answer() -> None:
        while True:
            with listener.accept() as connection:
                done = forks().run(*connection.recv())
                connection.send((done.returncode, done.stdout, done.stderr))

    threading.Thread(target=answer, daemon=True).start()
    (folder / "in9").write_text(FORK.format(python=sys.executable, address=listener.address))
    (folder / "in9").chmod(0o755)
    return folder


@pytest.fixture
def run(
    small_sample: Path, forked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """A function that runs an example on 18 small pictures in a folder and returns its output."""
    monkeypatch.chdir(tmp_path)
    input_flags = ("--input", str(small_sample))

    def run(name: str, *arguments: str, makes: bool = True) -> str:
        commands = os.pathsep.join([str(forked), os.environ["PATH"]])
        modules = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
        words = (ROOT / "examples" / name, *arguments, *(input_flags if makes else ()))
        variables = {"PATH": commands, "PYTHONPATH": modules}
        return run_program(sys.executable, *words, cwd=tmp_path, **variables).stdout

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
            self.forward = network(9)

        def validation_step(self, batch: Any, _: int) -> None:
            self(batch)

    pictures = torch.utils.data.DataLoader(torch.rand(2, 3, 64, 64))
    trainer = lightning.Trainer(logger=False, callbacks=[BackgroundGap(three_draws)])
    trainer.validate(Module(), pictures)
    assert -1 <= trainer.logged_metrics["in9/bg_gap"] <= 1
