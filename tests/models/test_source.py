"""Tests that models are built without a random initialisation, whatever loads their weights."""

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from small_models import checkpoint, vit
from timm.models import get_pretrained_cfg
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.models.registry import load_model
from pipeline.models.source import built_on_meta, state_hash

DRAWS = [getattr(torch.ops.aten, name) for name in ("normal_", "uniform_", "randn", "rand")]


class Drawn(TorchDispatchMode):
    """Counts the random values that are drawn in memory.

    Attributes:
      values: their number.
    """

    values = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in DRAWS and not result.is_meta:
            self.values += result.numel()
        return result


def size(state: Mapping[str, torch.Tensor]) -> int:
    return sum(value.numel() for value in state.values())


@pytest.mark.parametrize("kind", ["file", "hub", "torchvision", "hf", "open_clip"])
def test_weights_are_loaded_and_not_drawn(
    kind: str, tmp_path: Path, torchvision_cache: torch.nn.Module, request: pytest.FixtureRequest
) -> None:
    if kind == "file":
        # Its buffers are no part of the state, and lie on the device of a parameter.
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
    with Drawn() as drawn:
        model = load_model(entry)
    if kind == "open_clip":
        # Its digest also covers what the head is computed from.
        loaded = model.module.state_dict()
        del loaded["head"]
        named = {name: value for name, value in state.items() if name.startswith("visual.")}
        assert state_hash(loaded) == state_hash(named)
    else:
        assert model.weights_sha256 == state_hash(state)
    assert drawn.values < 0.05 * size(state)


def test_draws_are_counted() -> None:
    with Drawn() as drawn:
        state = timm.create_model("mobilenetv3_small_050").state_dict()
    assert drawn.values > 0.9 * size(state)


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


class _Computes(torch.nn.Module):
    """A module whose constructor computes with a parameter and a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(3))
        self.register_buffer("total", (self.weight + torch.ones(3)).sum(), persistent=False)


class _ComputesNumbers(torch.nn.Module):
    """A module whose constructor needs the value of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.number = int(self.weight.sum())


def _by_state(kind: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    module = kind()
    module.load_state_dict({"weight": torch.tensor([1.0, 2, 3], dtype=torch.float64)})
    return module


def _by_copying(kind: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    module = kind()
    with torch.no_grad():
        module.get_parameter("weight").copy_(torch.tensor([1.0, 2, 3]))
    return module


@pytest.mark.parametrize("load", [_by_state, _by_copying])
@pytest.mark.parametrize("kind", [_Computes, _ComputesNumbers])
def test_modules_that_cannot_be_built_on_meta_are_built_in_memory(
    kind: Callable[[], torch.nn.Module], load: Callable[..., torch.nn.Module]
) -> None:
    module = built_on_meta(lambda: load(kind))
    weight = module.get_parameter("weight")
    assert (weight.tolist(), weight.dtype, weight.requires_grad) == ([1, 2, 3], torch.float32, True)
    assert not any(buffer.is_meta for buffer in module.buffers())


def test_modules_of_other_threads_are_built_as_ever() -> None:
    built: list[torch.nn.Module] = []

    def load() -> torch.nn.Module:
        thread = threading.Thread(target=lambda: built.append(torch.nn.Linear(2, 2)))
        thread.start()
        thread.join()
        module = torch.nn.Linear(2, 2)
        assert module.weight.is_meta
        module.load_state_dict(built[0].state_dict())
        return module

    module = built_on_meta(load)
    assert torch.equal(module.weight, built[-1].weight)
    assert len(built) == 1


def test_a_network_that_fails_is_not_asked_again() -> None:
    asked = []

    def load() -> torch.nn.Module:
        asked.append(1)
        raise ConnectionError("no route")

    with pytest.raises(ConnectionError, match="no route"):
        built_on_meta(load)
    assert len(asked) == 1
