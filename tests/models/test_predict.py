"""Tests of the precision that models run in, and of compiled models."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from runs import refusal
from small_models import network, pictures
from torch.nn import functional

from pipeline.errors import ModelError
from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Predictor
from pipeline.models.registry import load_model
from pipeline.models.source import LoadedModel


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


def test_what_is_no_network_of_torch_is_not_compiled() -> None:
    with pytest.raises(ModelError, match="leave --compile out"):
        Predictor(model(module=torch.nn.Flatten()), PredictConfig("cpu", compile=True))


def test_compiling_without_a_compiler_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    said = refusal(capsys, "evaluate", "--dataset", "none", "--compile")
    assert "--compile needs a C++ compiler, and there is no no-such-compiler" in said
