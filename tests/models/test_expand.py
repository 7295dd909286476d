"""Tests lists, wildcards and files of `--models`."""

import re
from pathlib import Path

import pytest
import timm

from pipeline.errors import UsageError
from pipeline.models.expand import expand_models, split_labels
from pipeline.models.registry import check_model


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


def test_labels_are_taken_off_their_entries(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("My net.1:=resnet50=a.pth\nefficientnet_lite0\n")
    entries, labels = split_labels([f"@{names}", "CLIP:=open_clip:ViT-B-32:a"])
    assert entries == ["resnet50=a.pth", "efficientnet_lite0", "open_clip:ViT-B-32:a"]
    assert labels == {"resnet50=a.pth": "My net.1", "open_clip:ViT-B-32:a": "CLIP"}


@pytest.mark.parametrize("entry", [
    *("a:=resnet18", "b:=resnet50", ":=resnet18", "a/b:=resnet18", "a,b:=resnet18"),
    *("a=b:=resnet18", "a:b:=resnet18", "c:=", "a\nb:=resnet18", "a\x1bb:=resnet18"),
])  # fmt: skip
def test_labels_that_are_no_names_or_given_twice_are_refused(entry: str) -> None:
    with pytest.raises(UsageError) as refused:
        split_labels(["a:=resnet50", entry])
    assert f"{entry}: a label is a name of its own without = : /" in str(refused.value)


@pytest.mark.parametrize("entry", ["all:=resnet*", "all:=@names.txt"])
def test_a_label_names_one_model(entry: str) -> None:
    with pytest.raises(UsageError, match=f"{re.escape(entry)}: a label names one model, not seve"):
        split_labels([entry])
