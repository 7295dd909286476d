"""Tests torchvision's models, and that no checkpoint runs code."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import logits, normalised, pictures

from pipeline.errors import JobError, UsageError
from pipeline.models.registry import SOURCES, check_model, load_model


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

    build = SOURCES["torchvision"].build
    with torch.device("meta"):
        vit = build("torchvision:vit_b_16:IMAGENET1K_SWAG_E2E_V1", {})
        assert vit.image_size == 384  # type: ignore[comparison-overlap]
        assert build("torchvision:googlenet:IMAGENET1K_V1", {}).aux1 is None
        assert build("torchvision:inception_v3:IMAGENET1K_V1", {}).transform_input
