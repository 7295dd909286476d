"""Tests that models have the weights of their files, whatever loads them."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from small_models import checkpoint, vit
from timm.models import get_pretrained_cfg

from pipeline.models.registry import load_model
from pipeline.models.source import state_hash


@pytest.mark.parametrize("kind", ["file", "hub", "torchvision", "hf", "open_clip"])
def test_weights_are_those_of_the_file(
    kind: str, tmp_path: Path, torchvision_cache: torch.nn.Module, request: pytest.FixtureRequest
) -> None:
    if kind == "file":
        entry = checkpoint(tmp_path / "a.pth", "swin_tiny_patch4_window7_224")
        state = torch.load(tmp_path / "a.pth")
    elif kind == "hub":
        entry = "legacy_seresnet18.in1k"
        state = timm.create_model("legacy_seresnet18").state_dict()
        url = get_pretrained_cfg(entry).url  # type: ignore[union-attr]
        torch.save(state, tmp_path / "torch/hub/checkpoints" / Path(str(url)).name)
    elif kind == "torchvision":
        entry, state = "torchvision:squeezenet1_1", torchvision_cache.state_dict()
    elif kind == "hf":
        entry = f"hf:{tmp_path}"
        state = vit(tmp_path, id2label=dict(enumerate(map(str, range(1000))))).state_dict()
        state = {f"model.{name}": value for name, value in state.items()}
    else:
        folder = request.getfixturevalue("clip_folder")
        entry = f"open_clip:{folder}"
        state = load_file(folder / "open_clip_model.safetensors")
    model = load_model(entry)
    if kind == "open_clip":
        # Its digest also covers what the head is computed from.
        loaded = model.module.state_dict()
        del loaded["head"]
        named = {name: value for name, value in state.items() if name.startswith("visual.")}
        assert state_hash(loaded) == state_hash(named)
    else:
        assert model.weights_sha256 == state_hash(state)


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
