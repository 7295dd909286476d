"""Tests entries of frozen encoders against what their libraries compute."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from small_models import checkpoint, export, lite0, network

from pipeline.models.registry import check_fit, check_model, load_model, source_of
from transforms.taxonomy import imagenet9

Encode = Callable[[torch.Tensor], torch.Tensor]
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
CONVOLUTIONS = {"hidden_sizes": [8, 16], "depths": [1, 1]}
TEXT = {**SMALL, "vocab_size": 20, "max_position_embeddings": 8}


def hugging_face(folder: Path, kind: str, model: str = "Model", **config: Any) -> tuple[str, Any]:
    """Saves a random model of a kind; returns its entry and the encoder, with all weights."""
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}{model}")(getattr(transformers, f"{kind}Config")(**config))
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    made.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=side, image_mean=[0.4] * 3).save_pretrained(folder)
    return f"hf:{folder}", made.eval()


def pooled(tmp_path: Path, kind: str, config: dict[str, Any]) -> tuple[str, Encode]:
    entry, model = hugging_face(tmp_path / "hf", kind, **config)
    tower = getattr(model, "vision_model", model)
    return entry, lambda batch: tower(batch).pooler_output.flatten(1)


def of_class_token(tmp_path: Path, *_: object) -> tuple[str, Encode]:
    entry, model = hugging_face(tmp_path / "hf", "ViT", "ForImageClassification", **SMALL)
    return entry, lambda batch: model.vit(batch).last_hidden_state[:, 0]


def of_mean(tmp_path: Path, kind: str, config: dict[str, Any]) -> tuple[str, Encode]:
    entry, model = hugging_face(tmp_path / "hf", kind, **config)
    tower = getattr(model, "vision_model", model)
    return entry, lambda batch: tower(batch).last_hidden_state.mean(dim=1)


def of_autoencoder(tmp_path: Path, *_: object) -> tuple[str, Encode]:
    decoder = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2}
    decoder |= {"decoder_num_hidden_layers": 1, "decoder_intermediate_size": 16}
    entry, model = hugging_face(tmp_path / "hf", "ViTMAE", "ForPreTraining", **SMALL, **decoder)
    unmasked = copy.deepcopy(model.vit)
    unmasked.config.mask_ratio = 0.0
    return entry, lambda batch: unmasked(batch).last_hidden_state[:, 0]


def of_timm(tmp_path: Path, outputs: int, *_: object) -> tuple[str, Encode]:
    entry = checkpoint(tmp_path / "net.pth", "test_vit", outputs)
    state = torch.load(tmp_path / "net.pth")
    encoder = timm.create_model("test_vit", num_classes=0).eval()
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})
    return entry, encoder


def of_torchvision(tmp_path: Path, *_: object) -> tuple[str, Encode]:
    net = torchvision.models.resnet18().eval()
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(net.state_dict(), folder / Path(url).name)
    layers = [*net.children()][:-1]
    return "torchvision:resnet18", torch.nn.Sequential(*layers, torch.nn.Flatten())


def of_clip(tmp_path: Path, _: object, folder: Path) -> tuple[str, Encode]:
    import open_clip

    shutil.copytree(folder, tmp_path / "clip")
    (tmp_path / "clip" / "tokenizer.json").write_text("no tokenizer is loaded")
    return f"open_clip:{tmp_path / 'clip'}", open_clip.create_model(
        f"local-dir:{tmp_path / 'clip'}"
    ).eval().encode_image


def of_graph(tmp_path: Path, *_: object) -> tuple[str, Encode]:
    net = torch.nn.Sequential(network(9), torch.nn.Softmax(dim=1))
    return export(tmp_path / "net.onnx", net, 64, {0: "n"}), net


def of_function(*_: object) -> tuple[str, Encode]:
    net = load_model("python:my_models:plain").module
    return "python:my_models:plain", net


def of_package(*_: object) -> tuple[str, Encode]:
    net = lite0()
    return "efficientnet_lite0", lambda batch: net.forward_head(
        net.forward_features(batch), pre_logits=True
    )


HEADLESS, LAST = "output with num_classes=0", "input of the last linear layer"
CASES = {
    "package": (of_package, None, HEADLESS),
    "timm": (of_timm, 9, HEADLESS),
    "timm without a head": (of_timm, 0, HEADLESS),
    "torchvision": (of_torchvision, None, LAST),
    "ViT": (pooled, SMALL, "pooler_output"),
    "Dinov2": (pooled, SMALL, "pooler_output"),
    "CLIP": (pooled, {"vision_config": SMALL, "text_config": TEXT}, "pooler_output"),
    "Siglip": (pooled, {"vision_config": SMALL, "text_config": TEXT}, "pooler_output"),
    "ConvNext": (pooled, CONVOLUTIONS, "pooler_output"),
    "ResNet": (pooled, {**CONVOLUTIONS, "embedding_size": 8}, "pooler_output"),
    "class token": (of_class_token, None, "normalised class token"),
    "autoencoder": (of_autoencoder, None, "normalised class token"),
    "IJepa": (of_mean, SMALL, "mean of patch tokens"),
    "SiglipVision": (of_mean, {**SMALL, "vision_use_head": False}, "mean of patch tokens"),
    "clip": (of_clip, None, "encode_image"),
    "onnx": (of_graph, None, "its output"),
    "python": (of_function, None, "its output"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("no_figures", "my_models")
def test_features_are_those_of_the_library_also_when_fetched(
    case: str, tmp_path: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    make, config, features = CASES[case]
    entry, encode = (
        make(tmp_path, case if config else None, config)
        if make
        in (
            pooled,
            of_mean,
        )
        else make(tmp_path, config, clip_folder)
    )
    batch = torch.rand(2, 3, 64, 64)
    check_model(f"probe:{entry}", needs_network=True)
    check_fit(f"probe:{entry}", imagenet9())
    models = [load_model(f"{head}:{entry}") for head in ("probe", "knn", "probe")]
    side = models[0].preprocessing.input_size
    batch = torch.rand(2, 3, side, side)
    with torch.inference_mode():
        expected = encode(batch)
        for model in models:
            torch.testing.assert_close(model.module(batch), expected, atol=1e-5, rtol=1e-5)
    assert {model.features for model in models} == {features}
    assert {model.num_outputs for model in models} == {expected.shape[1]}
    assert len({model.weights_sha256 for model in models}) == 1
    names = [f"{head}:{source_of(entry).full_name(entry)}" for head in ("probe", "knn")]
    assert [model.name for model in models[:2]] == names
