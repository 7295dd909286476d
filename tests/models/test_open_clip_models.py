"""Tests zero-shot models against open_clip itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from small_models import logits, pictures

from pipeline.errors import UsageError
from pipeline.models.open_clip_models import class_prompts
from pipeline.models.registry import check_model, load_model
from pipeline.models.source import check_head
from transforms.taxonomy import imagenet9


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
