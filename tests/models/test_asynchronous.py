"""Tests the path of a GPU on a CPU: however late it runs, a batch's logits are of its pictures.

Operations on a tensor of the pretended device do not run where they are called, but where an event
after them is waited for: as late as CUDA may run them. So a copy reads its source that late, too.
Each stream has a queue of its own, and runs ahead of another only as far as it must.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from numpy.typing import NDArray
from test_loader import Numbers
from torch.utils._pytree import tree_leaves, tree_map_only

from pipeline.analyses.attack.arrays import Cutouts, GridModel, stop_early
from pipeline.analyses.saliency.gradients import Explained
from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import write_table
from pipeline.errors import ModelError
from pipeline.evaluate.planned import Evaluation
from pipeline.evaluate.predict_shards import PredictShards
from pipeline.evaluate.predictions import EvalImages, read_predictions
from pipeline.models import predict
from pipeline.models.identity import PredictConfig
from pipeline.models.loader import Loader, PixelCache
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model
from pipeline.runtime.progress import Progress
from pipeline.storage.store import Store
from transforms.adversarial import Grid
from transforms.codec import decode_into

SIDE = 4


class Stream:
    """A stream of the pretended device: what was launched in it and has not run, in order."""

    def __init__(self, *_: object) -> None:
        self.launched = deque[Callable[[], object]]()

    def wait_stream(self, other: Stream) -> None:
        """Lets what is launched here later run after what the other stream has now."""
        reached = Event()
        reached.record(other)
        self.launched.append(reached.synchronize)


class Device:
    """The pretended device: its streams, the one that is used, and its memory on the host."""

    def __init__(self) -> None:
        self.compute = self.current = Stream()
        self.pinned: list[torch.Tensor] = []

    def pin(self, tensor: torch.Tensor) -> torch.Tensor:
        self.pinned.append(tensor)
        return tensor

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Returns whether a tensor lies in memory that was pinned."""
        return any(
            0 <= tensor.data_ptr() - whole.data_ptr() < whole.nbytes for whole in self.pinned
        )

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


class Late(torch.Tensor):
    """A tensor of the pretended device. It has a value once what was launched has run."""

    value: torch.Tensor
    gpu: ClassVar[Device]
    streams: list[Stream]
    device = property(lambda _: torch.device("cuda", 0))  # type: ignore[assignment]

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        self.streams.append(stream)

    @classmethod
    def of_shape(cls, meta: torch.Tensor) -> Late:
        made: Late = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, meta.shape, strides=meta.stride(), dtype=meta.dtype
        )
        made.streams = [cls.gpu.current]
        return made

    @classmethod
    def launch(cls, operation: Any, args: Any, kwargs: Any) -> Any:
        def shape(tensor: torch.Tensor) -> torch.Tensor:
            size, stride = tensor.shape, tensor.stride()
            return torch.empty_strided(size, stride, dtype=tensor.dtype, device="meta")

        def check(tensor: Late) -> None:
            # Otherwise its memory may be used for something else meanwhile.
            assert cls.gpu.current in tensor.streams, "a tensor is used in a stream unrecorded"

        tree_map_only(cls, check, args)
        meta = operation(*tree_map_only(torch.Tensor, shape, args), **kwargs)
        made = tree_map_only(torch.Tensor, cls.of_shape, meta)

        def run() -> None:
            values = operation(*tree_map_only(cls, lambda each: each.value, args), **kwargs)
            for one, value in zip(tree_leaves(made), tree_leaves(values), strict=True):
                one.value = value

        cls.gpu.current.launched.append(run)
        return made

    @classmethod
    def copy_from(cls, host: torch.Tensor, non_blocking: bool) -> Any:
        """Copies a tensor of the host, as late as CUDA may."""
        assert cls.gpu.is_pinned(host), "a copy from memory that is not pinned waits"
        assert non_blocking, "a copy waits"
        return cls.launch(torch.ops.aten.clone.default, (host,), {})

    @classmethod
    def __torch_dispatch__(cls, operation: Any, _: Any, args: Any, kwargs: Any = None) -> Any:
        if operation is torch.ops.aten.copy_.default and not isinstance(args[0], cls):
            assert cls.gpu.is_pinned(args[0]), "a copy to memory that is not pinned waits"
        made = cls.launch(operation, args, kwargs or {})
        # An operation in place returns what it changes.
        return args[0] if operation._schema.is_mutable else made


class Event:
    def record(self, stream: Stream) -> None:
        self._stream, self._has_occurred = stream, False
        stream.launched.append(self._occur)

    def _occur(self) -> None:
        self._has_occurred = True

    def synchronize(self) -> None:
        """Runs what was launched before the event, and nothing else."""
        with torch.inference_mode():
            while not self._has_occurred:
                self._stream.launched.popleft()()


class Mean(torch.nn.Module):
    """A network whose two outputs are a picture's mean, and minus it."""

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        mean = pictures.mean((1, 2, 3))
        return torch.stack([mean, -mean], dim=1)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Device:
    to, empty, network_input = torch.Tensor.to, torch.empty, predict.NetworkInput
    Late.gpu = device = Device()

    def copy(tensor: torch.Tensor, *args: Any, non_blocking: bool = False, **kwargs: Any) -> Any:
        if args and getattr(args[0], "type", "") == "cuda":
            return Late.copy_from(tensor, non_blocking)
        return to(tensor, *args, **kwargs)

    def allocate(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        made = empty(*args, **kwargs)
        return device.pin(made) if pin_memory else made

    def decode(data: bytes, out: Any) -> None:
        out[:] = data[0]

    monkeypatch.setattr(torch.Tensor, "to", copy)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda each: device.is_pinned(each))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda each: device.pin(each.clone()))
    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, *_, **__: module)
    cpu = torch.device("cpu")
    monkeypatch.setattr(predict, "NetworkInput", lambda how, _: network_input(how, cpu))
    monkeypatch.setattr(predict, "decode_into", decode)
    for name, stub in (
        *(("is_available", lambda: True), ("device_count", lambda: 1), ("Event", Event)),
        *(("Stream", Stream), ("current_stream", lambda _: device.current)),
        ("stream", device.stream),
    ):
        monkeypatch.setattr(torch.cuda, name, stub)
    return device


def predictor_of(size: int, device: str = "cuda", room: int = 0) -> Predictor:
    model = load_model("python:tiny_models:first")
    preprocessing = dataclasses.replace(model.preprocessing, mean=(0, 0, 0), std=(1, 1, 1))
    model = dataclasses.replace(model, module=Mean(), num_outputs=2, preprocessing=preprocessing)
    cache = PixelCache(room * SIDE * SIDE * 3, pinned=True)
    return Predictor(model, PredictConfig(device, batch_size=size), cache)


def wrong_pictures(room: int, size: int) -> int:
    """Counts the pictures with others' logits, in three passes over sets of pictures."""
    predictor = predictor_of(size, room=room)
    sets = [Numbers(f"set {i}", [(37 * i + n) % 251 for n in range(23)]) for i in range(6)]
    wrong = 0
    for _ in range(3):
        for batch, logits in predictor.logits(sets, SIDE):
            expected = [int(key) / 255 for key in batch.rows["key"].to_pylist()]
            wrong += sum(abs(logits[:, 0] - expected) > 1e-6)
    return wrong


@pytest.mark.parametrize(("room", "size"), [(0, 4), (0, 9), (1000, 4), (60, 4)])
@pytest.mark.usefixtures("gpu")
def test_no_batch_gets_the_logits_of_another(room: int, size: int) -> None:
    assert wrong_pictures(room, size) == 0


@pytest.fixture
def predicted(
    gpu: Device, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[pa.Table, int]]:
    """Predicts on a device what is not stored yet; returns all rows and the number of new ones."""
    monkeypatch.setattr(predict, "decode_into", decode_into)
    output = shutil.copytree(small_run, tmp_path / "out")

    def predicted_on(device: str) -> tuple[pa.Table, int]:
        store, new = Store(str(output)), []
        dataset, model = Dataset.open(store), load_model("python:tiny_models:first")
        settings = PredictConfig(device, batch_size=4)
        evaluation = Evaluation(store, (model.name,), "val", settings, Progress.for_store(store))
        run = evaluation.describe(dataset, model)
        work, shards = PredictShards(dataset, run), dataset.shards("val")
        predictor = Predictor(model, settings, PixelCache(0, pinned=device == "cuda"))
        rows = []
        for chunk in work.run(predictor, shards, shards, lambda _, some, __: new.append(some)):
            # In a slow run, there are parts of a chunk before it.
            rows += [chunk.table] if chunk.is_complete else []
            write_table(store, work.path(chunk.chunk), chunk.table, work.fingerprint(chunk.chunk))
        stored = read_predictions(dataset, EvalImages.read(dataset, "val"), run)
        assert not stored.missing
        return pa.concat_tables(rows), sum(new)

    return predicted_on


def test_scores_of_a_gpu_are_those_of_the_host(
    predicted: Callable[[str], tuple[pa.Table, int]], tmp_path: Path
) -> None:
    on_gpu, new = predicted("cuda")
    assert new == len(on_gpu) / 2
    again, new = predicted("cpu")
    assert (again.equals(on_gpu), new) == (True, 0)
    shutil.rmtree(tmp_path / "out" / "results")
    on_host, _ = predicted("cpu")
    exact = ("label_rule", "variant", "fg_key", "prediction", "output", "correct")
    assert on_gpu.select(exact).equals(on_host.select(exact))
    for name in ("top1_score", "true_score"):
        np.testing.assert_allclose(on_gpu[name], on_host[name], rtol=0, atol=1e-6)
    # Only where logits are kept is all computed on the host.
    is_kept = pc.equal(on_host["variant"].cast(pa.string()), "only_bg_t")
    same_of = pc.equal(*(rows["of"].cast(pa.string()) for rows in (on_gpu, on_host)))
    assert same_of.equals(is_kept)
    assert on_gpu.filter(is_kept)["logits"].equals(on_host.filter(is_kept)["logits"])


def arrays(seed: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (3, SIDE, SIDE, 3), np.uint8), random.random(
        (3, SIDE, SIDE)
    ) < 0.5


@pytest.mark.usefixtures("gpu")
def test_gradients_are_reduced_late_and_of_their_pictures() -> None:
    late, now = (
        [Explained(predictor_of(3, device), *arrays(seed), 3) for seed in range(4)]
        for device in ("cuda", "cpu")
    )
    for one, other in zip(late, now, strict=True):
        assert one.outputs() == other.outputs()
        assert one.masses() == pytest.approx(other.masses())


@pytest.mark.usefixtures("gpu")
@torch.inference_mode()
def test_an_early_stop_waits_for_no_copy() -> None:
    labels, order = np.array([0, 1, 0]), np.arange(3)

    def grid(device: str) -> Grid:
        predictor = predictor_of(4, device)
        pixels, masks = arrays(0)
        backgrounds = torch.from_numpy(arrays(1)[0])
        cutouts = Cutouts.from_arrays(pixels, masks, torch.device("cpu"))
        model = GridModel(predictor, np.arange(2), backgrounds)
        return stop_early(model, cutouts, labels, order, 4, lambda _: None)

    np.testing.assert_array_equal(grid("cuda"), grid("cpu"))


@pytest.mark.parametrize(
    "fault", ["waits for no copy", "does not record", "other stream", "hands back"]
)
def test_a_planted_fault_is_noticed(
    fault: str, gpu: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, first = Event.record, Loader._first

    def early(loader: Loader[Any], waiting: Any) -> Any:
        batch = first(loader, waiting)
        loader.hand_back(batch)
        return batch

    target, name, faulty = {
        "waits for no copy": (Stream, "wait_stream", lambda *_: None),
        "does not record": (Late, "record_stream", lambda *_: None),
        "other stream": (Event, "record", lambda event, _: record(event, Stream())),
        "hands back": (Loader, "_first", early),
    }[fault]
    monkeypatch.setattr(target, name, faulty)
    with pytest.raises((AssertionError, AttributeError, ModelError)):
        assert wrong_pictures(0, 4) == 0
