"""Tests zero-shot models against open_clip itself."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from small_models import logits, pictures

from pipeline.errors import JobError
from pipeline.models.open_clip_models import class_prompts
from pipeline.models.registry import load_model
from pipeline.models.source import check_head
from transforms.taxonomy import Taxonomy, imagenet9


def test_zero_shot_agrees_with_open_clip(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip

    model = load_model(f"open_clip:{clip_folder}")
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)
    assert (model.preprocessing.input_size, model.preprocessing.fixed_size) == (64, True)
    assert model.num_outputs == 1000
    check_head(model, imagenet9())

    reference, _, transform = open_clip.create_model_and_transforms(f"local-dir:{clip_folder}")
    reference.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{clip_folder}")
    head = open_clip.build_zero_shot_classifier(
        reference, tokenizer, open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    )
    batch = pictures(2, 64)
    arrays = (batch * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    with torch.inference_mode():
        features = reference.encode_image(
            torch.stack([transform(Image.fromarray(array)) for array in arrays]), normalize=True
        )
        expected = reference.logit_scale.exp() * features @ head
    torch.testing.assert_close(logits(model, batch), expected, atol=1e-4, rtol=1e-4)
    # The head is kept, and is part of the identity: other prompts give other weights.
    monkeypatch.setattr(open_clip, "build_zero_shot_classifier", None)
    assert torch.equal(load_model(f"open_clip:{clip_folder}").module.head, model.module.head)
    monkeypatch.setattr(open_clip, "IMAGENET_CLASSNAMES", open_clip.IMAGENET_CLASSNAMES[::-1])
    with pytest.raises(JobError, match="'NoneType' object is not callable"):
        load_model(f"open_clip:{clip_folder}")


def test_a_head_is_that_of_its_network_and_needs_no_folder_to_be_kept_in(
    clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = Taxonomy(("a", "b"), ("one", "two"), (0, 1), ("cat", "dog"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = load_model(f"open_clip:{clip_folder}", taxonomy=classes)
    quick = Path(shutil.copytree(clip_folder, tmp_path / "quick"))
    config = json.loads((quick / "open_clip_config.json").read_text())
    config["model_cfg"]["quick_gelu"] = True
    (quick / "open_clip_config.json").write_text(json.dumps(config))
    other = load_model(f"open_clip:{quick}", taxonomy=classes)
    assert other.identity.weights_sha256 != model.identity.weights_sha256
    assert not torch.equal(other.module.head, model.module.head)
    kept = [*tmp_path.glob("hub/in9/*.safetensors")]
    assert len(kept) == 2
    for file in kept:
        file.write_bytes(b"broken")
    again = load_model(f"open_clip:{clip_folder}", taxonomy=classes)
    assert torch.equal(again.module.head, model.module.head)
    monkeypatch.setenv("TORCH_HOME", str(kept[0] / "below a file"))
    again = load_model(f"open_clip:{clip_folder}", taxonomy=classes)
    assert torch.equal(again.module.head, model.module.head)


def test_every_class_has_a_name_of_its_own() -> None:
    import open_clip

    names, templates = class_prompts(imagenet9())
    assert len(set(names)) == 998  # open_clip has two names twice.
    assert templates == open_clip.OPENAI_IMAGENET_TEMPLATES
    classes = imagenet9()
    own = dataclasses.replace(classes, wnids=tuple(f"own {wnid}" for wnid in classes.wnids))
    names, templates = class_prompts(own)
    assert (len(set(names)), len(templates)) == (1000, 7)
    assert (names[0], names[134], names[517]) == ("tench", "crane bird", "crane")
    assert (names[639], templates[1](names[0])) == (
        "maillot tank suit",
        "a bad photo of the tench.",
    )
    taxonomy = Taxonomy(("x", "y"), ("0", "1"), (0, 1), ("cup, mug", "fork"), (1, 0))
    names, templates = class_prompts(taxonomy)
    assert [templates[0](name) for name in names] == ["itap of a fork.", "itap of a cup."]
    labels = tuple(0 if label == 0 else -1 for label in classes.labels)
    dogs = dataclasses.replace(classes, names=("dog",), labels=labels)
    assert class_prompts(dogs) == class_prompts(classes)
