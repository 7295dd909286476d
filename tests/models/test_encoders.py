"""Tests entries of frozen encoders against what the encoders' libraries compute."""

import dataclasses
import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from runs import run_here
from safetensors.torch import load_file, save_file
from small_models import checkpoint, export, lite0, network

from pipeline.errors import JobError, UsageError
from pipeline.models.checkpoint import KnownModels, TrainedOn, WeightsFolder, save_checkpoint
from pipeline.models.expand import expand_models, split_labels
from pipeline.models.identity import IN9_MEAN
from pipeline.models.registry import check_fit, full_name, load_model, source_of
from pipeline.models.source import LoadedModel
from pipeline.storage.store import Store
from transforms.taxonomy import imagenet9

pytestmark = pytest.mark.usefixtures("no_figures", "my_models")

Encoder = tuple[str, Callable[[torch.Tensor], torch.Tensor]]
"""An entry, and its features as its library computes them, from normalised pictures."""
VIT = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}
TOWERS = {
    "vision_config": VIT,
    "text_config": {**VIT, "vocab_size": 20, "max_position_embeddings": 8},
}
CONVOLUTIONS = {"hidden_sizes": [4, 8, 8, 16], "depths": [1] * 4}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_attention_heads": 2,
    "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 16,
}


def saved(folder: Path, name: str, config: dict[str, Any], model: str = "Model") -> tuple[str, Any]:
    """Saves a random model of transformers; returns its entry, and the model."""
    torch.manual_seed(0)
    kind = getattr(transformers, f"{name}{model}")
    made = kind(getattr(transformers, f"{name}Config")(**config)).eval()
    for weight in made.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    made.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    transformers.ViTImageProcessor(size=size, image_mean=[0.4] * 3).save_pretrained(folder)
    return f"hf:{folder}", made


def pooled(name: str, config: dict[str, Any], folder: Path, _: Path) -> Encoder:
    entry, model = saved(folder, name, config)
    tower = getattr(model, "vision_model", model)
    return entry, lambda batch: tower(batch).pooler_output.flatten(1)


def mean(name: str, config: dict[str, Any], folder: Path, _: Path) -> Encoder:
    entry, model = saved(folder, name, config)
    return entry, lambda batch: model(batch).last_hidden_state.mean(dim=1)


def without_pooler(folder: Path, _: Path) -> Encoder:
    entry, model = saved(folder, "ViT", VIT, "ForImageClassification")
    return entry, lambda batch: model.vit(batch).last_hidden_state[:, 0]


def autoencoder(folder: Path, _: Path) -> Encoder:
    entry, model = saved(folder, "ViTMAE", VIT | DECODER, "ForPreTraining")
    model.config.mask_ratio = 0.0
    return entry, lambda batch: model.vit(batch).last_hidden_state[:, 0]


def of_timm(outputs: int, folder: Path, _: Path) -> Encoder:
    entry = checkpoint(folder / "net.pth", "test_vit", outputs)
    state = torch.load(folder / "net.pth")
    net = timm.create_model("test_vit", num_classes=0).eval()
    net.load_state_dict({name: state[name] for name in net.state_dict()})
    return entry, net


def of_torchvision(folder: Path, _: Path) -> Encoder:
    net = torchvision.models.mobilenet_v3_small().eval()
    url = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT.url
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(net.state_dict(), folder / "hub" / "checkpoints" / Path(url).name)
    return "torchvision:mobilenet_v3_small", torch.nn.Sequential(
        net.features, net.avgpool, torch.nn.Flatten(), *net.classifier[:-1]
    )


def of_open_clip(folder: Path, clip: Path) -> Encoder:
    import open_clip

    copied = shutil.copytree(clip, folder / "clip")
    (copied / "tokenizer.json").write_text("An encoder needs none.")
    model = open_clip.create_model(f"local-dir:{copied}").eval()
    return f"open_clip:{copied}", model.encode_image


def graph(folder: Path, _: Path) -> Encoder:
    net = torch.nn.Sequential(network(9), torch.nn.Softmax(dim=1)).eval()
    return export(folder / "net.onnx", net, 64, {0: "n"}), net


def function(_: Path, __: Path) -> Encoder:
    return "python:my_models:plain", load_model("python:my_models:plain").module


def package(_: Path, __: Path) -> Encoder:
    net = lite0()
    return "efficientnet_lite0", lambda batch: net.global_pool(net.forward_features(batch))


POOLED, MEAN = "pooler_output", "mean of last_hidden_state"
TOKEN = "class token of last_hidden_state"
WITHOUT_HEAD, OUTPUT = "output with num_classes=0", "its output"
ENCODERS: dict[str, tuple[Callable[[Path, Path], Encoder], str]] = {
    "package": (package, WITHOUT_HEAD),
    "timm with a head": (functools.partial(of_timm, 9), WITHOUT_HEAD),
    "timm without a head": (functools.partial(of_timm, 0), WITHOUT_HEAD),
    "torchvision": (of_torchvision, "input of the last linear layer"),
    "open_clip": (of_open_clip, "encode_image"),
    "graph that ends in a softmax": (graph, OUTPUT),
    "function": (function, OUTPUT),
    "ViT": (functools.partial(pooled, "ViT", VIT), POOLED),
    "DINOv2": (functools.partial(pooled, "Dinov2", VIT), POOLED),
    "CLIP": (functools.partial(pooled, "CLIP", TOWERS), POOLED),
    "SigLIP": (functools.partial(pooled, "Siglip", TOWERS), POOLED),
    "ConvNext": (functools.partial(pooled, "ConvNext", CONVOLUTIONS), POOLED),
    "ResNet": (functools.partial(pooled, "ResNet", CONVOLUTIONS), POOLED),
    "ViT without a pooler": (without_pooler, TOKEN),
    "masked autoencoder": (autoencoder, TOKEN),
    "I-JEPA": (functools.partial(mean, "IJepa", VIT), MEAN),
    "SigLIP without a pooler": (
        functools.partial(mean, "SiglipVision", VIT | {"vision_use_head": False}),
        MEAN,
    ),
}


def head_in_file(encoder: LoadedModel, folder: Path) -> str:
    """Stores a head, of no tensors, that names its encoder; returns its entry."""
    method, _, name = encoder.name.partition(":")
    of = ("net", "original", "0" * 64, "train", "0" * 16, encoder.preprocessing, ("a",), method)
    trained = TrainedOn(*of, pretrained=name)
    save_checkpoint(Store(str(folder)), f"{method}.safetensors", {}, trained)
    return f"{method}:{folder / method}.safetensors"


@pytest.mark.parametrize("kind", ENCODERS)
def test_features_are_those_of_the_library_also_once_fetched(
    kind: str, tmp_path: Path, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, weights = tmp_path / "source", tmp_path / "weights"
    source.mkdir()
    monkeypatch.setenv("TORCH_HOME", str(source))
    make, features = ENCODERS[kind]
    entry, encode = make(source, clip_folder)
    both = [f"probe:{entry}", f"knn:{entry}"]
    models = [load_model(one, needs_network=True) for one in both]
    side = models[0].preprocessing.input_size
    batch = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected, found = encode(batch), models[0].module(batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    heads = [head_in_file(one, tmp_path) for one in models]
    run_here("models", "fetch", "--models", ",".join([*both, *heads]), "--to", weights)
    assert len([*weights.glob("*.safetensors")]) == 1
    assert [*WeightsFolder(Store(str(weights))).models()] == sorted(one.name for one in models)
    shutil.rmtree(source)
    for name, original, head in zip(both, models, heads, strict=True):
        check_fit(name, imagenet9(), str(weights))
        model = load_model(name, str(weights))
        assert model.identity == original.identity
        assert model.name == f"{name.partition(':')[0]}:{full_name(entry)}"
        assert (model.features, model.num_outputs) == (features, expected.shape[1])
        assert model.weights_sha256 == models[0].weights_sha256
        with torch.inference_mode():
            assert torch.equal(model.module(batch), found)
        in_file = load_model(head, str(weights))
        assert in_file.identity == dataclasses.replace(original.identity, name=head)
        known = KnownModels(Store(str(tmp_path)), str(weights), imagenet9())
        of, inner = source_of(head)
        origin = of.origin(inner, in_file)
        known.store_identity(head, in_file.identity, origin)
        assert known.load(head) == (in_file.identity if origin else None)


def lacking(tensor: str, folder: Path, name: str, config: dict[str, Any]) -> str:
    """Saves a model whose checkpoint lacks a tensor; returns its entry."""
    entry, _ = saved(folder, name, config)
    state = load_file(folder / "model.safetensors")
    del state[tensor]
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return entry


def test_features_of_new_weights_and_other_shapes_are_refused(
    tmp_path: Path, torchvision_cache: torch.nn.Module
) -> None:
    layer = lacking("encoder.layer.1.intermediate.dense.bias", tmp_path / "layer", "ViT", VIT)
    inside = "vision_model.encoder.layers.0.mlp.fc1.bias"
    tower = lacking(inside, tmp_path / "tower", "CLIP", TOWERS)
    norm = "embedder.embedder.normalization.running_mean"
    statistic = lacking(norm, tmp_path / "norm", "ResNet", CONVOLUTIONS)
    text = lacking("text_projection.weight", tmp_path / "text", "CLIP", TOWERS)
    assert load_model(f"probe:{text}").features == POOLED
    maps = export(tmp_path / "maps.onnx", torch.nn.Conv2d(3, 9, 3), 64, {0: "n"})
    for entry, says in {
        layer: r"no weights for 1 of the tensors .*layers\.1\.mlp\.fc1\.bias.*not trained",
        tower: inside,
        statistic: norm,
        maps: r"real features of shape .*, not torch.FloatTensor of shape \(1, 9, 62, 62\)",
        "python:my_models:features": r"real features .* of shape \(1, 9, 222, 222\)",
        "torchvision:squeezenet1_1": "does not end in a linear layer",
        f"resnet18={tmp_path / 'layer' / 'model.safetensors'}": "resnet18=",
    }.items():
        with pytest.raises(JobError, match=says) as refused:
            load_model(f"probe:{entry}")
        assert "\n" not in str(refused.value)


def test_an_encoder_gets_pictures_like_its_classifier(tmp_path: Path) -> None:
    entry = checkpoint(tmp_path / "nine.pth")
    found = load_model(f"knn:{entry}").preprocessing
    assert found == load_model(entry).preprocessing
    assert found.mean == IN9_MEAN
    # Nine features are not nine superclasses.
    plain = load_model("probe:python:my_models:plain")
    assert (plain.num_outputs, plain.preprocessing.mean == IN9_MEAN) == (9, False)


def test_wildcards_and_seeds_stand_inside(tmp_path: Path) -> None:
    for pattern in ("resnet1*", "torchvision:resnet*", "efficientnet_lite?", "resnet18.*"):
        inside = expand_models([pattern])
        assert set(expand_models([f"probe:{pattern}"])) >= {f"probe:{one}" for one in inside}
    assert "knn:vit_small_patch16_224.dino" in expand_models(["knn:vit_*.dino"])
    with pytest.raises(UsageError, match="no name with weights matches"):
        expand_models(["probe:resnut*"])
    with pytest.raises(UsageError, match="names a model twice"):
        expand_models(["probe:resnet18", "probe:resnet18.a1_in1k"])
    assert expand_models(["probe:resnet18=/a/b[1]*.pth"]) == ("probe:resnet18=/a/b[1]*.pth",)
    for kind, ending in (("vit_small_patch16_224=", "pth"), ("onnx:", "onnx")):
        paths = [tmp_path / f"{seed}.{ending}" for seed in (2, 10)]
        for path in paths:
            path.touch()
        entries, labels = split_labels([f"dino#*:=probe:{kind}{tmp_path}/*.{ending}"])
        assert entries == [f"probe:{kind}{path}" for path in paths]
        assert [*labels.values()] == ["dino#2", "dino#10"]


def test_an_encoder_is_known_until_its_file_changes(tmp_path: Path) -> None:
    known = KnownModels(Store(str(tmp_path / "dataset")), None, imagenet9())
    entries = [f"{head}:{checkpoint(tmp_path / 'a.pth')}" for head in ("probe", "knn")]
    for entry in entries:
        model = load_model(entry)
        source, inner = source_of(entry)
        known.store_identity(entry, model.identity, source.origin(inner, model))
        assert known.load(entry) == model.identity
    checkpoint(tmp_path / "a.pth", seed=1)
    assert list(map(known.load, entries)) == [None, None]
    assert load_model(entries[0]).weights_sha256 != model.weights_sha256
