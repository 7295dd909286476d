"""Tests models of Hugging Face against the library's own processors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_models import logits, pictures, vit

from pipeline.errors import JobError
from pipeline.models.registry import load_model
from transforms.taxonomy import imagenet9


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


def test_a_folder_that_hugging_face_cannot_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(JobError, match=r"could not be loaded .* in9 models fetch"):
        load_model(f"hf:{tmp_path}")
