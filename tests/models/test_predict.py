"""Tests of the precision that models run in, and of compiled models."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from runs import refusal
from small_models import network, pictures
from torch.nn import functional

from pipeline.analyses.attack.arrays import Cutouts, GridModel
from pipeline.analyses.saliency.gradients import winning_logit_gradients
from pipeline.errors import ModelError
from pipeline.models.identity import PredictConfig, Preprocessing
from pipeline.models.loader import PixelCache
from pipeline.models.open_clip_models import ZeroShot
from pipeline.models.predict import Predictor, to_floats
from pipeline.models.registry import load_model
from pipeline.models.source import LoadedModel
from transforms.codec import encode_png


def model(**attributes: object) -> LoadedModel:
    loaded = load_model("python:tiny_models:first")
    attributes = {"module": network(9), "num_outputs": 9, **attributes}
    return dataclasses.replace(loaded, **attributes)


@pytest.mark.parametrize("is_shared", [False, True])
def test_bf16_leaves_norms_and_head_in_fp32(is_shared: bool) -> None:
    batch = pictures(16, 64)
    loaded = model(is_shared=is_shared)
    convolution, norm, *_, head = loaded.module.children()
    exact = Predictor(model(), PredictConfig("cpu")).forward(batch)
    features = []
    head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    predictor = Predictor(loaded, PredictConfig("cpu", "bf16"))
    # Other code may hold a shared module, and would find its weights changed.
    assert convolution.weight.dtype == (torch.float32 if is_shared else torch.bfloat16)
    assert norm.weight.dtype == head.weight.dtype == torch.float32
    logits = predictor.forward(batch)
    assert features[0].dtype == torch.bfloat16
    expected = functional.linear(features[0].float(), head.weight, head.bias)
    assert torch.equal(logits, expected)
    assert not torch.equal(logits, exact)
    torch.testing.assert_close(logits, exact, atol=0.02, rtol=0.02)
    predictor.close()
    assert "forward" not in vars(head)


class TwoHeads(torch.nn.Module):
    """A network with a convolution as a head, and a linear head with an output before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(3, 8, 5, stride=8)
        self.wide, self.linear = torch.nn.Conv2d(8, 9, 1), torch.nn.Linear(8, 10)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        features = self.body(pictures)
        return self.wide(features).mean((2, 3)) + self.linear(features.mean((2, 3)))[:, 1:]


def test_heads_of_all_kinds_are_in_fp32() -> None:
    network, dtypes = TwoHeads().eval(), []
    for layer in (network.body, network.wide, network.linear):
        layer.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
    Predictor(model(module=network), PredictConfig("cpu", "bf16")).forward(pictures(2, 64))
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]
    clip = ZeroShot(TwoHeads(), torch.eye(9))
    logits = Predictor(model(module=clip), PredictConfig("cpu", "bf16")).forward(pictures(2, 64))
    assert not torch.equal(logits, logits.bfloat16().float())


def test_what_is_no_network_of_torch_is_not_compiled() -> None:
    with pytest.raises(ModelError, match="leave --compile out"):
        Predictor(model(module=torch.nn.Flatten()), PredictConfig("cpu", compile=True))


class Compiler:
    """A backend of `torch.compile` that notes the operations of each graph, and runs it eagerly."""

    def __init__(self) -> None:
        self.graphs: list[list[str]] = []

    def __call__(self, graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        calls = [node for node in graph.graph.nodes if node.op.startswith("call")]
        self.graphs.append([str(node.target) for node in calls])
        return graph


def test_each_model_is_one_graph_for_batches_of_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, compile_as_is = Compiler(), torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda call, **how: compile_as_is(call, backend=backend, fullgraph=True, **how),
    )
    pixels = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    holes, order = 255 * (pixels > 99).to(torch.uint8), torch.arange(8)
    cutouts = Cutouts(pixels & ~holes, holes)
    for seed in range(10):
        eager, compiled = (
            Predictor(
                model(module=network(9, seed)), PredictConfig("cpu", compile=compile, batch_size=8)
            )
            for compile in (False, True)
        )
        with torch.inference_mode():
            for count in (5, 8, 1):
                few = pixels[:count]
                torch.testing.assert_close(compiled.forward_once(few), eager.forward_once(few))
            labels, predicted = (
                GridModel(predictor, np.arange(9), pixels.flip(0)).predict(cutouts, order, order)
                for predictor in (eager, compiled)
            )
        assert torch.equal(predicted, labels)
        assert len(backend.graphs) == seed + 1
    assert len(backend.graphs) > torch._dynamo.config.recompile_limit
    assert all(any("conv2d" in call for call in graph) for graph in backend.graphs)
    for count in (2, 1):
        expected, gradients = (
            winning_logit_gradients(predictor, to_floats(pixels[:count]), 2)
            for predictor in (eager, compiled)
        )
        torch.testing.assert_close(gradients, expected)
    assert len(backend.graphs) == 11


def test_compiled_code_gives_the_same_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    batch = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        logits, expected = (
            predictor.forward_once(batch)
            for predictor in (
                Predictor(model(), PredictConfig("cpu", compile=compile))
                for compile in (True, False)
            )
        )
    torch.testing.assert_close(logits, expected)
    assert [*tmp_path.rglob("*.so")]


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = refusal("evaluate", "--dataset", "none", "--compile")
    assert "--compile needs the C++ compiler no-such-compiler: install it" in said


class Pictures:
    """A picture of this size in the cache's format."""

    name, count = "noise", 1

    def __init__(self, *size: int) -> None:
        self.size = size

    def tables(self, columns: tuple[str, ...]) -> Iterator[pa.Table]:
        noise = np.random.default_rng(0).integers(0, 256, (*self.size, 3), np.uint8)
        yield pa.table({"key": ["a"], "image": [encode_png(noise)]}).select(["key", *columns])


@pytest.mark.parametrize(
    "other",
    [
        {"input_size": 40},
        {"interpolation": "nearest"},
        {"crop_pct": 0.5},
        {"crop_mode": "border"},
        {"mean": (0.1, 0.1, 0.1)},
        {"std": (0.1, 0.1, 0.1)},
        None,
    ],
    ids=str,
)
def test_models_share_decoded_pictures_only_if_they_want_the_same(
    other: dict[str, object] | None,
) -> None:
    """None stands for the pictures as they are stored."""
    first = dataclasses.replace(model().preprocessing, input_size=32)
    second = dataclasses.replace(first, **other or {})

    def logits(preprocessing: Preprocessing, cache: PixelCache, native: bool = True) -> object:
        config = PredictConfig("cpu", eval_input="native" if native else "stored")
        predictor = Predictor(model(preprocessing=preprocessing), config, cache)
        sets = [Pictures(48, 64) if native else Pictures(32, 32)]
        return [outputs.tolist() for _, outputs in predictor.logits(sets, 32)]

    shared = PixelCache(1 << 20)
    before = logits(first, shared)
    after = logits(second, shared, other is not None)
    assert after == logits(second, PixelCache(0), other is not None) != before
