"""A model without its weights: its identity, its preprocessing of pictures, and the settings of
inference, on which scores depend besides the model and the pixels. This module does not import
torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from pipeline.errors import JobError
from transforms.taxonomy import IN9_NAMES, Taxonomy, imagenet9

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and standard deviation by which most ImageNet models normalise RGB values in [0, 1]."""
IN9_MEAN = (0.4717, 0.4499, 0.3837)
IN9_STD = (0.2600, 0.2516, 0.2575)
"""The same for models with one output per superclass of ImageNet-9. Source: protocol of the
authors' evaluation."""

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "squash", "border")


def is_nine_way(num_outputs: int, taxonomy: Taxonomy) -> bool:
    """Returns whether a head has one output per superclass of ImageNet-9."""
    return num_outputs == len(IN9_NAMES) and taxonomy.names == IN9_NAMES


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """A model's preprocessing, with a value for every setting. The terms are timm's.

    Attributes:
      input_size: side in pixels of the pictures that the weights were trained on.
      fixed_size: whether the architecture takes pictures of no other size.
      mean, std: mean and standard deviation that normalise RGB values in [0, 1].
      interpolation: filter of the model's own resize.
      crop_pct: `input_size` as a share of the resized picture, in (0, 1].
      crop_mode: `center` crops the resized picture, `squash` ignores its aspect ratio, `border`
        pads it to a square.
    """

    input_size: int
    fixed_size: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    @classmethod
    def from_settings(
        cls,
        settings: Mapping[str, Any],
        *,
        num_outputs: int,
        where: str,
        taxonomy: Taxonomy | None = None,
    ) -> Preprocessing:
        """Parses settings. A missing setting gets the value that is usual for ImageNet models.

        Args:
          settings: some of the attributes, by name.
          num_outputs: number of the model's outputs; a model with one output per superclass of
            ImageNet-9 gets `IN9_MEAN` and `IN9_STD`.
          where: the source of the settings, for the error message.
          taxonomy: taxonomy of the outputs, None for ImageNet-9's.

        Raises:
          JobError: a setting's name is unknown, or its value is out of range.
        """
        nine_way = is_nine_way(num_outputs, taxonomy or imagenet9())
        values: dict[str, Any] = {
            "input_size": 224,
            "fixed_size": False,
            "mean": IN9_MEAN if nine_way else IMAGENET_MEAN,
            "std": IN9_STD if nine_way else IMAGENET_STD,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
        }
        unknown = sorted(set(settings) - set(values))
        if unknown:
            raise JobError(f"{where}: unknown {unknown[0]!r}; known are {', '.join(values)}")
        values.update(settings)
        try:
            result = cls(
                input_size=int(values["input_size"]),
                fixed_size=bool(values["fixed_size"]),
                mean=tuple(float(value) for value in values["mean"]),
                std=tuple(float(value) for value in values["std"]),
                interpolation=str(values["interpolation"]),
                crop_pct=float(values["crop_pct"]),
                crop_mode=str(values["crop_mode"]),
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise JobError(f"{where}: {error}") from error
        for name, is_valid, expected in (
            ("input_size", 1 <= result.input_size <= 4096, "a side in pixels"),
            ("mean", _are_channels(result.mean), "three numbers, of RGB values in [0, 1]"),
            ("std", _are_channels(result.std) and min(result.std) > 0, "three positive numbers"),
            ("interpolation", result.interpolation in _INTERPOLATIONS, ", ".join(_INTERPOLATIONS)),
            ("crop_pct", 0 < result.crop_pct <= 1, "a share of the picture"),
            ("crop_mode", result.crop_mode in _CROP_MODES, ", ".join(_CROP_MODES)),
        ):
            if not is_valid:
                raise JobError(f"{where}: {name} must be {expected}, got {values[name]!r}")
        return result


def _are_channels(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(map(math.isfinite, values))


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """A model's name, architecture, weights and preprocessing.

    Attributes:
      name: name of the model in results: the entry of `--models`, with the tag of the weights.
      architecture: name by which the model's source knows the architecture.
      weights: description of where the weights came from, such as a file name or a repository.
      weights_sha256: SHA-256 of all named parameters and buffers. It does not depend on the file
        format.
      preprocessing: size, crop and normalisation of the input.
      num_outputs: number of the model's outputs.
    """

    name: str
    architecture: str
    weights: str
    weights_sha256: str
    preprocessing: Preprocessing
    num_outputs: int


CPU_BATCH = 32
GPU_BATCH = 256


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Settings of inference. Each field has the name of its flag.

    Attributes:
      device: `cpu`, `cuda`, or `auto`: CUDA if the machine that runs the model has it.
      precision: `fp32` (TF32 off), `tf32` or `bf16` (autocast).
      batch_size: number of pictures in a batch, None for the device's default.
      eval_input: `stored` feeds the stored pixels unchanged; `native` applies the model's own
        resize and crop to them.
    """

    device: str = "auto"
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    batch_size: int | None = None
    eval_input: Literal["stored", "native"] = "stored"

    @property
    def identity(self) -> dict[str, str]:
        """Settings that are part of a prediction's fingerprint. The device and the batch size
        change only the last bits of a score, so they are left out, and predictions are reused
        across devices."""
        return {"precision": self.precision, "eval_input": self.eval_input}

    def on_this_machine(self) -> PredictConfig:
        """Resolves `auto` and the default batch size on this machine."""
        device = self.device
        if device == "auto":
            import torch  # Imported only where models run.

            device = "cuda" if torch.cuda.is_available() else "cpu"
        batch = self.batch_size or (GPU_BATCH if device == "cuda" else CPU_BATCH)
        return dataclasses.replace(self, device=device, batch_size=batch)
