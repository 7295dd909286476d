"""Tests weights that `in9 models fetch` has stored, and the command `models`."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from runs import ONE, refusal, run_here
from small_models import checkpoint, export, logits, network, pictures, vit

from pipeline.errors import JobError, UsageError
from pipeline.models.registry import check_model, load_model
from pipeline.models.source import LoadedModel

pytestmark = pytest.mark.usefixtures("no_figures")


@pytest.fixture
def models(
    tmp_path: Path, clip_folder: Path, my_models: str, torchvision_cache: torch.nn.Module
) -> dict[str, LoadedModel]:
    """An entry of every kind, loaded from its source, which lies in tmp_path/gone."""
    gone = tmp_path / "gone"
    gone.mkdir()
    vit(gone / "vit", num_labels=9)
    shutil.copytree(clip_folder, gone / "clip")
    entries = (
        *("efficientnet_lite1", checkpoint(gone / "net.pth")),
        *(export(gone / "net.onnx", network(9), 64, {}), f"hf:{gone / 'vit'}"),
        *(f"open_clip:{gone / 'clip'}", f"python:{my_models}:described"),
        "torchvision:squeezenet1_1",
    )
    return {entry: load_model(entry) for entry in entries}


def test_fetched_weights_are_the_models_themselves(
    models: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "weights"
    printed = run_here("models", "fetch", "--models", ",".join(models), "--to", folder).out
    assert printed.count(": stored, sha256 ") == len(models)
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    index = json.loads((folder / "index.json").read_text())["models"]
    stored = {f"{entry['sha256']}.safetensors" for entry in index.values()}
    assert {path.name for path in files} == {"index.json", *stored}
    # CLIP is left out because its prompts take a while.
    again = [spec for spec in models if not spec.startswith("open_clip:")]
    printed = run_here("models", "fetch", "--models", ",".join(again), "--to", folder).out
    assert printed.count(": already stored, sha256 ") == len(again)
    assert files == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    shutil.rmtree(tmp_path / "gone")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    for spec, model in models.items():
        check_model(spec, str(folder))
        loaded = load_model(spec, str(folder))
        for name in ("weights_sha256", "name", "architecture", "preprocessing", "num_outputs"):
            assert getattr(loaded, name) == getattr(model, name)
        batch = pictures(2, 64)
        torch.testing.assert_close(logits(loaded, batch), logits(model, batch), rtol=0, atol=0)
    printed = run_here("models", "list", "--weights", folder).out
    assert models["efficientnet_lite1"].weights_sha256 in printed


def test_tampered_and_missing_weights_are_refused(tmp_path: Path, my_models: str) -> None:
    spec, folder = f"python:{my_models}:plain", str(tmp_path / "weights")
    run_here("models", "fetch", "--models", spec, "--to", folder)
    index = json.loads((Path(folder) / "index.json").read_text())
    (file,) = Path(folder).glob("*.safetensors")
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(JobError, match=rf"tensors have sha256 \w{{64}}, .* says {file.stem}"):
        load_model(spec, folder)
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(JobError, match=r"cannot be read .* fetch them again"):
        load_model(spec, folder)
    # Fetching again repairs the file.
    run_here("models", "fetch", "--models", spec, "--to", folder)
    assert file.read_bytes() == good
    file.unlink()
    with pytest.raises(UsageError, match="is missing; fetch again"):
        check_model(spec, folder)
    with pytest.raises(UsageError, match="resnet50 --to"):
        check_model("resnet50", folder)
    check_model("efficientnet_lite0", folder)
    for depth in (70, 100_000):
        (Path(folder) / "index.json").write_text("[" * depth + "]" * depth)
        with pytest.raises(UsageError, match=r"is not an index of weights \(it has more than 64"):
            load_model(my_models, folder)
    for change in ({"format": "other"}, {"format_version": 2}):
        (Path(folder) / "index.json").write_text(json.dumps({**index, **change}))
        with pytest.raises(UsageError, match="which is not supported; fetch into an empty folder"):
            check_model(spec, folder)
    (Path(folder) / "index.json").write_text("{}")
    with pytest.raises(UsageError, match="not an index of weights"):
        check_model(spec, folder)
    with pytest.raises(UsageError, match="holds no weights"):
        check_model(spec, str(tmp_path / "none"))


def test_evaluation_takes_weights_from_the_folder(
    for_gaps: Path, tmp_path: Path, my_models: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = shutil.copytree(for_gaps, tmp_path / "out")
    names = tmp_path / "models.txt"
    spec = checkpoint(tmp_path / "net.pth")
    names.write_text(f"{spec}\npython:{my_models}:plain # ours\n")
    digest = load_model(spec).weights_sha256
    folder = tmp_path / "weights"
    run_here("models", "fetch", "--models", f"@{names}", "--to", folder)
    (tmp_path / "net.pth").unlink()
    flags = ("evaluate", "--dataset", output, "--models", f"@{names}", *ONE)
    assert "there is no file" in run_here(*flags, code=2).err
    monkeypatch.setenv("IN9_WEIGHTS", str(folder))
    run_here(*flags)
    summaries = [json.loads(p.read_text()) for p in output.glob("results/*/model.json")]
    assert {summary["model"] for summary in summaries} == {spec, f"python:{my_models}:plain"}
    assert digest in {summary["weights_sha256"] for summary in summaries}


def test_models_command_says_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, my_models: str
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    needs = "open_clip:* needs open_clip_torch: pip install open_clip_torch"
    assert needs in refusal("models", "list", "open_clip:*")
    both = f"python:{my_models}:failing,python:{my_models}:plain"
    (line,) = run_here(
        "models", "fetch", "--models", both, "--to", tmp_path / "w", code=1
    ).err.splitlines()
    assert "1 of 2 models could not be fetched: python:my_models:failing" in line
    assert len(list((tmp_path / "w").glob("*.safetensors"))) == 1
    assert "resnet18.a1_in1k" in run_here("models", "list", "resnet18.*").out
