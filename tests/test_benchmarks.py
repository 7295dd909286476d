"""Tests that the benchmark of stages runs to its end without Beam, whichever rows fail."""

import json
import sys
from pathlib import Path

from runs import ROOT, run_program


def test_stages_that_run_models_are_measured_without_beam(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['apache_beam'] = None\n")
    rows = tmp_path / "rows.jsonl"
    flags = "--quick --device cpu --models no_such_net,test_resnet --images 2 --grid 2x2 --to"
    # Rows of a network that timm does not know fail, each by itself.
    done = run_program(
        *(sys.executable, ROOT / "benchmarks" / "gpu.py", *flags.split(), rows),
        code=1,
        HF_HUB_OFFLINE="1",
        # The compiler of C++ would take most of the time. tests/models/test_predict.py runs it.
        TORCH_COMPILE_OVERRIDE_BACKENDS=">=0:aot_eager",
        PYTHONPATH=str(tmp_path),
    )
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    failed = [line for line in written if line["value"] == "failed"]
    assert len(failed) == 12
    assert all("Unknown model (no_such_net)" in line["yardstick"] for line in failed)
    assert all(f"{line['what']}: {line['value']}" in done.stdout for line in written)
    for stage in ("evaluate", "attack", "saliency", "train"):
        assert f"{stage}, test_resnet fp32: too few to tell (bare loop, " in done.stdout
    for figure in (
        "evaluate, test_resnet fp32-compiled: too few to tell (bare loop, ",
        *("load from a file, test_resnet, first: ", "tenth of ten models, test_resnet fp32: "),
        "slow storage, test_resnet fp32: not measured (apache-beam is not installed)",
        "fp32 compiled: answers equal to fp32's, test_resnet: ",
        "tf32: answers equal to fp32's, test_resnet: not measured (this device computes fp32)",
        "bf16: answers equal to fp32's, test_resnet: ",
        "several GPUs, test_resnet fp32: not measured (apache-beam is not installed)",
        "two processes on one device, test_resnet fp32: too few to tell",
        "weights of test_resnet: random",
    ):
        assert f"\n{figure}" in done.stdout
