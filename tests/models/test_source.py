"""Tests that models have the weights of their files, whatever loads them."""

from pathlib import Path

import timm
import torch
from small_models import checkpoint
from timm.models import get_pretrained_cfg

from pipeline.models.registry import load_model
from pipeline.models.source import state_hash


def test_weights_are_those_of_the_file(tmp_path: Path, torchvision_cache: torch.nn.Module) -> None:
    """Checks an architecture with buffers, and weights where torch keeps what it has fetched."""
    entry = checkpoint(tmp_path / "a.pth", "swin_tiny_patch4_window7_224")
    assert load_model(entry).weights_sha256 == state_hash(torch.load(tmp_path / "a.pth"))
    state = timm.create_model("legacy_seresnet18").state_dict()
    url = get_pretrained_cfg("legacy_seresnet18.in1k").url  # type: ignore[union-attr]
    torch.save(state, tmp_path / "torch/hub/checkpoints" / Path(str(url)).name)
    assert load_model("legacy_seresnet18.in1k").weights_sha256 == state_hash(state)
    known = torchvision_cache.state_dict()
    assert load_model("torchvision:squeezenet1_1").weights_sha256 == state_hash(known)


def test_a_file_that_changes_later_changes_no_model(clip_folder: Path) -> None:
    model = load_model(f"open_clip:{clip_folder}")
    file = clip_folder / "open_clip_model.safetensors"
    before, size = state_hash(model.module.state_dict()), file.stat().st_size
    content = file.read_bytes()
    try:
        with file.open("r+b") as opened:
            opened.seek(size // 2)
            opened.write(bytes(size - size // 2))
        assert state_hash(model.module.state_dict()) == before
    finally:
        file.write_bytes(content)
