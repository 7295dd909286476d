"""A model in memory, wherever it came from: what evaluation, attack and saliency work with."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from pipeline.errors import JobError, in_short
from transforms.scoring import labels_of_outputs
from transforms.taxonomy import IN9_NAMES, Taxonomy, imagenet9

IN9_MEAN = (0.4717, 0.4499, 0.3837)
IN9_STD = (0.2600, 0.2516, 0.2575)
"""Normalisation of models with one output a superclass of ImageNet-9 (protocol of the authors'
evaluation)."""

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "squash", "border")


def is_nine_way(num_outputs: int, taxonomy: Taxonomy) -> bool:
    """Whether a head has one output for each superclass of ImageNet-9."""
    return num_outputs == len(IN9_NAMES) and taxonomy.names == IN9_NAMES


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """A model's resolved data configuration.

    Attributes:
      input_size: side in pixels that the weights were trained for.
      fixed_size: whether the architecture takes no other size.
      mean, std: of RGB values in [0, 1].
      interpolation, crop_pct, crop_mode: of the model's own preprocessing.
    """

    input_size: int
    fixed_size: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float
    crop_mode: str

    @classmethod
    def of(
        cls,
        given: Mapping[str, Any],
        *,
        num_outputs: int,
        where: str,
        taxonomy: Taxonomy | None = None,
    ) -> Preprocessing:
        """Preprocessing as someone wrote it down, the rest as ImageNet models mostly have it.

        Args:
          given: some of the attributes, by name.
          num_outputs: one output a superclass of ImageNet-9 means `IN9_MEAN` and `IN9_STD`.
          where: what to call it in an error.
          taxonomy: of the superclasses, None for ImageNet-9's.

        Raises:
          JobError: an unknown name, or a value out of range.
        """
        nine_way = is_nine_way(num_outputs, taxonomy or imagenet9())
        values: dict[str, Any] = {
            "input_size": 224,
            "fixed_size": False,
            "mean": IN9_MEAN if nine_way else IMAGENET_DEFAULT_MEAN,
            "std": IN9_STD if nine_way else IMAGENET_DEFAULT_STD,
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "crop_mode": "center",
        }
        unknown = sorted(set(given) - set(values))
        if unknown:
            raise JobError(f"{where}: unknown {unknown[0]!r}; known are {', '.join(values)}")
        values.update(given)
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
        except (TypeError, ValueError) as error:
            raise JobError(f"{where}: {error}") from error
        for name, is_right, expected in (
            ("input_size", 1 <= result.input_size <= 4096, "a side in pixels"),
            ("mean", _are_channels(result.mean), "three numbers, of RGB values in [0, 1]"),
            ("std", _are_channels(result.std) and min(result.std) > 0, "three positive numbers"),
            ("interpolation", result.interpolation in _INTERPOLATIONS, ", ".join(_INTERPOLATIONS)),
            ("crop_pct", 0 < result.crop_pct <= 1, "a share of the picture"),
            ("crop_mode", result.crop_mode in _CROP_MODES, ", ".join(_CROP_MODES)),
        ):
            if not is_right:
                raise JobError(f"{where}: {name} must be {expected}, got {values[name]!r}")
        return result


def _are_channels(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(map(math.isfinite, values))


@dataclasses.dataclass(eq=False)
class LoadedModel:
    """A model in memory.

    Attributes:
      name: as results call it: the entry of `--models`, with the tag of the weights.
      architecture: what the module is, by the name its source has for it.
      weights: where they came from.
      weights_sha256: of all parameters and buffers by name, whatever file held them.
      module: takes (n, 3, S, S) float32, normalised, and gives (n, outputs) logits; in
        evaluation mode, on the CPU, float32.
      preprocessing: its data configuration.
      num_outputs: size of the head.
      recipe: what, beside the name, its source builds the module from before it has weights;
        fit for JSON.
    """

    name: str
    architecture: str
    weights: str
    weights_sha256: str
    module: torch.nn.Module
    preprocessing: Preprocessing
    num_outputs: int
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def loaded_model(
    *,
    name: str,
    architecture: str,
    weights: str,
    module: torch.nn.Module,
    preprocessing: Preprocessing,
    num_outputs: int,
    recipe: Mapping[str, Any] | None = None,
    weights_sha256: str | None = None,
) -> LoadedModel:
    """A `LoadedModel` of a module that has its weights, made ready for evaluation.

    Arguments are the attributes. Without `weights_sha256` it is `weights_hash` of the module.
    """
    module.eval().requires_grad_(False)
    return LoadedModel(
        name=name,
        architecture=architecture,
        weights=weights,
        weights_sha256=weights_sha256 or weights_hash(module),
        module=module,
        preprocessing=preprocessing,
        num_outputs=num_outputs,
        recipe=recipe or {},
    )


def weights_hash(module: torch.nn.Module) -> str:
    """Hexadecimal SHA-256 of all parameters and buffers: names, types, shapes and values.

    Raises:
      JobError: the module keeps state that is no tensor.
    """
    return state_hash(module.state_dict())


def state_hash(state: Mapping[str, Any]) -> str:
    """`weights_hash` of a state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        if not isinstance(value, torch.Tensor):
            raise JobError(f"its state {name!r} is no tensor ({type(value).__name__})")
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\0".encode())
        digest.update(array.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def load_state(name: str, module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Gives a module its weights. Raises JobError if they do not fit."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        # Weights of another architecture name hundreds of tensors.
        lines = [textwrap.shorten(line, 150) for line in str(error).splitlines()[:3]]
        raise JobError(f"{name}: {' '.join(lines)}") from error


@torch.inference_mode()
def count_outputs(name: str, module: torch.nn.Module, side: int) -> int:
    """Size of a model's head, by a trial.

    Args:
      name: for the error.
      module: the model, in evaluation mode.
      side: of the picture in pixels.

    Raises:
      JobError: the module does not turn a picture into a row of logits.
    """
    try:
        outputs = module(torch.zeros(1, 3, side, side))
    except JobError:
        raise
    except Exception as error:  # Whatever stands in someone's forward().
        raise JobError(
            f"{name} fails on a picture of {side} x {side} "
            f"({type(error).__name__}: {in_short(error)})"
        ) from error
    if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2 or len(outputs) != 1:
        shown = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else type(outputs)
        raise JobError(f"{name} must give logits of shape (pictures, outputs), not {shown}")
    return int(outputs.shape[1])


@torch.inference_mode()
def takes_other_sizes(module: torch.nn.Module, side: int) -> bool:
    """Whether a model takes pictures of another size than its own, by a trial."""
    other = side // 2 // 32 * 32 or 2 * side
    try:
        module(torch.zeros(1, 3, other, other))
    except Exception:  # Architectures refuse in their own ways.
        return False
    return True


def check_head(model: LoadedModel, taxonomy: Taxonomy) -> None:
    """Raises JobError for a head that fits neither the classes nor the superclasses."""
    try:
        labels_of_outputs(model.num_outputs, taxonomy)
    except ValueError as error:
        raise JobError(f"{model.name}: {error}") from error
