"""Tests the path of a GPU on a CPU: however late it runs, a batch's logits are of its pictures.

Operations on a tensor of the pretended device do not run where they are called, but where an event
after them is waited for: as late as CUDA may run them. So a copy reads its source that late, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_loader import Numbers
from torch.utils._pytree import tree_map_only

from pipeline.models import predict
from pipeline.models.identity import PredictConfig
from pipeline.models.loader import Loader, PixelCache
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model

SIDE = 4
LAUNCHED = deque[Callable[[], object]]()
"""What was launched and has not run."""


class Late(torch.Tensor):
    """A tensor of the pretended device. It has a value once what was launched has run."""

    value: torch.Tensor
    device = property(lambda _: torch.device("cuda", 0))  # type: ignore[assignment]

    def record_stream(self, _: object) -> None:
        pass

    @classmethod
    def launch(cls, operation: Any, args: Any, kwargs: Any) -> Late:
        def shape(tensor: torch.Tensor) -> torch.Tensor:
            size, stride = tensor.shape, tensor.stride()
            return torch.empty_strided(size, stride, dtype=tensor.dtype, device="meta")

        meta = operation(*tree_map_only(torch.Tensor, shape, args), **kwargs)
        made: Late = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, meta.shape, strides=meta.stride(), dtype=meta.dtype
        )

        def run() -> None:
            made.value = operation(*tree_map_only(cls, lambda each: each.value, args), **kwargs)

        LAUNCHED.append(run)
        return made

    @classmethod
    def __torch_dispatch__(cls, operation: Any, _: Any, args: Any, kwargs: Any = None) -> Any:
        made = cls.launch(operation, args, kwargs or {})
        # An operation in place returns what it changes.
        return args[0] if operation._schema.is_mutable else made


class Event:
    def record(self, _: object) -> None:
        LAUNCHED.append(self.occur)
        self.has_occurred = False

    def occur(self) -> None:
        self.has_occurred = True

    def synchronize(self) -> None:
        """Runs what was launched before the event, and nothing else."""
        with torch.inference_mode():
            while not self.has_occurred:
                LAUNCHED.popleft()()


class Stream:
    def __init__(self, *_: object) -> None:
        pass

    def wait_stream(self, _: object) -> None:
        pass


class Mean(torch.nn.Module):
    """A network whose two outputs are a picture's mean, and minus it."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        mean = pictures.mean((1, 2, 3))
        return torch.stack([mean, -mean], dim=1)


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    to, empty, network_input = torch.Tensor.to, torch.empty, predict.NetworkInput

    def copy(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args and getattr(args[0], "type", "") == "cuda":
            return Late.launch(torch.ops.aten.clone.default, (tensor,), {})
        return to(tensor, *args, **kwargs)

    def pageable(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        return empty(*args, **kwargs)

    def decode(data: bytes, out: Any) -> None:
        out[:] = data[0]

    LAUNCHED.clear()
    cpu = torch.device("cpu")
    monkeypatch.setattr(torch.Tensor, "to", copy)
    monkeypatch.setattr(torch, "empty", pageable)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
    monkeypatch.setattr(predict, "NetworkInput", lambda how, _: network_input(how, cpu))
    monkeypatch.setattr(predict, "decode_into", decode)
    for name, stub in (
        *(("is_available", lambda: True), ("device_count", lambda: 1), ("Event", Event)),
        *(("Stream", Stream), ("current_stream", Stream)),
        ("stream", lambda _: contextlib.nullcontext()),
    ):
        monkeypatch.setattr(torch.cuda, name, stub)


def wrong_pictures(room: int, size: int) -> int:
    """Counts the pictures with others' logits, in three passes over sets of pictures."""
    model = load_model("python:tiny_models:first")
    preprocessing = dataclasses.replace(model.preprocessing, mean=(0, 0, 0), std=(1, 1, 1))
    model = dataclasses.replace(model, module=Mean(), num_outputs=2, preprocessing=preprocessing)
    config = PredictConfig("cuda", batch_size=size)
    predictor = Predictor(model, config, PixelCache(room * SIDE * SIDE * 3))
    sets = [Numbers(f"set {i}", [(37 * i + n) % 251 for n in range(23)]) for i in range(6)]
    wrong = 0
    for _ in range(3):
        for batch, logits in predictor.logits(sets, SIDE):
            expected = [int(key) / 255 for key in batch.rows["key"].to_pylist()]
            wrong += sum(abs(logits[:, 0] - expected) > 1e-6)
    return wrong


@pytest.mark.parametrize(("room", "size"), [(0, 4), (0, 9), (1000, 4), (60, 4)])
@pytest.mark.usefixtures("pretended_gpu")
def test_no_batch_gets_the_logits_of_another(room: int, size: int) -> None:
    assert wrong_pictures(room, size) == 0


@pytest.mark.usefixtures("pretended_gpu")
def test_a_buffer_that_is_handed_back_early_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def early(loader: Loader[Any], waiting: Any) -> Any:
        batch = first(loader, waiting)
        loader.hand_back(batch)
        return batch

    first = Loader._first
    monkeypatch.setattr(Loader, "_first", early)
    assert wrong_pictures(0, 4) > 0
