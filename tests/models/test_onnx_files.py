"""Tests ONNX graphs against the networks that they were exported from."""

import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from small_models import export, logits, network, normalised, pictures

from pipeline.errors import JobError, ModelError, UsageError
from pipeline.models.identity import IN9_MEAN, PredictConfig
from pipeline.models.predict import Predictor
from pipeline.models.registry import check_model, load_model


def test_onnx_agrees_with_torch_at_any_batch_and_size(tmp_path: Path) -> None:
    module = network(1000)
    spec = export(tmp_path / "net.onnx", module, 64, {0: "n", 2: "height", 3: "width"})
    model = load_model(spec)
    assert (model.num_outputs, model.preprocessing.fixed_size) == (1000, False)
    for number, side in ((1, 64), (7, 64), (3, 96)):
        batch = pictures(number, side)
        torch.testing.assert_close(
            logits(model, batch), module(normalised(batch)).detach(), atol=1e-4, rtol=1e-4
        )


def test_a_fixed_batch_and_size_of_onnx_are_kept(tmp_path: Path) -> None:
    module = network(9)
    model = load_model(export(tmp_path / "net.onnx", module, 64, {}))
    assert (model.preprocessing.input_size, model.preprocessing.fixed_size) == (64, True)
    assert model.preprocessing.mean == IN9_MEAN
    # Batches have four pictures, the last one is padded; pictures of 96 pixels are resized.
    batch = pictures(10, 64)
    expected = module(Predictor(model, PredictConfig()).prepare(batch)).detach()
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-4, rtol=1e-4)
    assert logits(model, pictures(2, 96)).shape == (2, 9)


def test_onnx_says_its_mean_in_a_file_or_in_the_graph(tmp_path: Path) -> None:
    spec = export(tmp_path / "net.onnx", network(9), 64, {0: "n"})
    graph = onnx.load(tmp_path / "net.onnx")
    for key, value in (("mean", "[0.1, 0.2, 0.3]"), ("crop_pct", "0.9"), ("author", "me")):
        graph.metadata_props.add(key=key, value=value)
    onnx.save(graph, tmp_path / "net.onnx")
    model = load_model(spec)
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)
    assert model.preprocessing.crop_pct == 0.9
    beside = tmp_path / "net.onnx.json"
    beside.write_text(json.dumps({"mean": [0, 0, 0], "std": [1, 1, 1]}))
    model = load_model(spec)
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0,) * 3, (1,) * 3)
    for text, message in (
        ('{"means": [0, 0, 0]}', "unknown 'means'"),
        ('{"std": [0, 1, 1]}', "std must be three positive numbers"),
        ('{"input_size": 99}', "takes 64 pixels, not input_size 99"),
        ("[", "cannot be read"),
    ):
        beside.write_text(text)
        with pytest.raises(JobError, match=message):
            load_model(spec)
    spec = export(tmp_path / "net.onnx", network(9), 64, {0: "n", 2: "h", 3: "w"})
    beside.write_text('{"input_size": 5000}')
    with pytest.raises(JobError, match="input_size must be a side in pixels, got 5000"):
        load_model(spec)


def test_probabilities_and_channels_last_of_onnx_are_understood(tmp_path: Path) -> None:
    class Exported(torch.nn.Module):
        """Network as Keras exports it, with channels last and probabilities."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = network(9)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.inner(pixels.permute(0, 3, 1, 2)).softmax(1)

    example = torch.zeros(1, 64, 64, 3)
    torch.onnx.export(Exported().eval(), (example,), tmp_path / "net.onnx", dynamo=False)
    model = load_model(f"onnx:{tmp_path / 'net.onnx'}")
    batch = pictures(3, 64)
    expected = network(9)(Predictor(model, PredictConfig()).prepare(batch)).log_softmax(1)
    torch.testing.assert_close(logits(model, batch), expected.detach(), atol=1e-4, rtol=1e-4)


def test_weights_beside_an_onnx_graph_are_part_of_it(tmp_path: Path) -> None:
    first = load_model(export(tmp_path / "one.onnx", network(9), 64, {0: "n"}))
    graph = onnx.load(tmp_path / "one.onnx")
    onnx.save(graph, tmp_path / "two.onnx", save_as_external_data=True, size_threshold=0)
    assert len(list(tmp_path.iterdir())) == 3
    second = load_model(f"onnx:{tmp_path / 'two.onnx'}")
    batch = pictures(2, 64)
    torch.testing.assert_close(logits(first, batch), logits(second, batch))
    other = load_model(export(tmp_path / "one.onnx", network(9, seed=1), 64, {0: "n"}))
    assert other.weights_sha256 != first.weights_sha256


def test_what_onnx_cannot_do_is_said(tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(JobError, match=r"junk\.onnx cannot be read as an ONNX graph"):
        load_model(f"onnx:{tmp_path / 'junk.onnx'}")
    with pytest.raises(UsageError, match="there is no file"):
        check_model(f"onnx:{tmp_path / 'none.onnx'}")
    model = load_model(export(tmp_path / "net.onnx", network(9), 64, {0: "n"}))
    with pytest.raises(JobError, match="no gradients"):
        Predictor(model, PredictConfig()).forward(pictures(1, 64).requires_grad_())
    with pytest.raises(JobError, match="leave --precision out"):
        Predictor(model, PredictConfig(precision="bf16")).forward(pictures(1, 64))
    odd = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4 * 64 * 64, 9)).eval()
    torch.onnx.export(odd, (torch.zeros(1, 4, 64, 64),), tmp_path / "rgba.onnx", dynamo=False)
    with pytest.raises(JobError, match="expected float pictures"):
        load_model(f"onnx:{tmp_path / 'rgba.onnx'}")


def test_a_gpu_that_onnxruntime_does_not_use_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, used = load_model(export(tmp_path / "net.onnx", network(9), 64, {0: "n"})), []

    class Session:
        """Falls back to the CPU as onnxruntime does, unless it is the first."""

        def __init__(
            self, _: object, __: object, providers: list[tuple[str, dict[str, str]]]
        ) -> None:
            ((self.name, settings),) = providers
            used.append(settings["device_id"])

        def get_providers(self) -> list[str]:
            return [self.name if len(used) == 1 else "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    assert model.module.session(torch.device("cuda", 0)).name == "CUDAExecutionProvider"
    with pytest.raises(ModelError, match="would run on CPUExecutionProvider"):
        model.module.session(torch.device("cuda", 1))
    assert used == ["0", "1"]
