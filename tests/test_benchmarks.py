"""Tests that the benchmark of stages runs without Beam, and that rows hold figures."""

import importlib
import json
import sys
from pathlib import Path

import pytest
from runs import ROOT, run_program


def test_stages_that_run_models_are_measured_without_beam(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['apache_beam'] = None\n")
    rows = tmp_path / "rows.jsonl"
    flags = "--quick --device cpu --models test_resnet --images 2 --grid 2x2 --to"
    done = run_program(
        *(sys.executable, ROOT / "benchmarks" / "gpu.py", *flags.split(), rows),
        HF_HUB_OFFLINE="1",
        # The compiler of C++ would take most of the time. tests/models/test_predict.py runs it.
        TORCH_COMPILE_OVERRIDE_BACKENDS=">=0:aot_eager",
        PYTHONPATH=str(tmp_path),
    )
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert all(f"{line['what']}: {line['value']}" in done.stdout for line in written)
    for stage in ("evaluate", "attack", "saliency", "train"):
        assert f"{stage}, test_resnet fp32: too few to tell (bare loop, " in done.stdout
    for figure in (
        "evaluate, test_resnet fp32-compiled: too few to tell (bare loop, ",
        *("load from a file, test_resnet, first: ", "tenth of ten models, test_resnet fp32: "),
        "slow storage, test_resnet fp32: not measured (apache-beam is not installed)",
        "fp32 compiled: answers equal to fp32's, test_resnet: ",
        "bf16: answers equal to fp32's, test_resnet: ",
        "several GPUs, test_resnet fp32: not measured (apache-beam is not installed)",
        "two processes on one device, test_resnet fp32: too few to tell",
    ):
        assert f"\n{figure}" in done.stdout


def test_rows_are_positive_and_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    measure = importlib.import_module("measure")
    monkeypatch.setenv(measure.TABLE, str(tmp_path / "rows"))
    good = ("1.02 x", "135 of 135", "1,000 MB", "3e-05 s", "17, 30, 4", "too few to tell")
    for value in good:
        measure.row("speed", value)
    for value in ("0", "0.00 x", "-0.1 s", "nan x", "inf MB", "18, 0, 37", "0 of 135"):
        with pytest.raises(SystemExit, match=f"speed: {value} is not positive and finite"):
            measure.row("speed", value)
    rows = [json.loads(line)["value"] for line in (tmp_path / "rows").read_text().splitlines()]
    assert rows == list(good)
