"""torchvision's classifiers with its published weights: `torchvision:resnet50:IMAGENET1K_V1`."""

from __future__ import annotations

import os
from typing import Any

import torch

from pipeline.errors import JobError, UsageError
from pipeline.models.known import Origin
from pipeline.models.source import (
    LoadedModel,
    Recipe,
    Source,
    closest,
    downloaded,
    measured_model,
    refuse_without_answer,
)
from transforms.taxonomy import Taxonomy

_PREFIX = "torchvision:"


class TorchvisionNames(Source):
    """`torchvision:NAME`, with the default weights, or `torchvision:NAME:WEIGHTS`."""

    form = "torchvision:NAME or torchvision:NAME:WEIGHTS"
    text = "torchvision's classifiers"

    def check(self, spec: str) -> None:
        _weights(spec)

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int | None:
        return len(_weights(spec).meta["categories"])

    def load(self, spec: str, taxonomy: Taxonomy) -> LoadedModel:
        from torchvision import models

        weights = _weights(spec)
        name = self.full_name(spec)
        architecture = name.split(":")[1]
        try:
            refuse_without_answer(weights.url)
            # `get_model` alone would unpickle the file without `weights_only`.
            weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
            module = models.get_model(architecture, weights=weights, progress=False)
        except Exception as error:  # Network, a missing file, broken bytes.
            raise JobError(
                f"the weights of {name} could not be fetched ({type(error).__name__}). On a "
                "machine that cannot reach the hub, bring them along: in9 models fetch"
            ) from error
        preset = weights.transforms()
        settings = {
            "input_size": preset.crop_size[0],
            "mean": preset.mean,
            "std": preset.std,
            "interpolation": preset.interpolation.value,
            "crop_pct": preset.crop_size[0] / preset.resize_size[0],
        }
        return measured_model(
            settings,
            where=name,
            taxonomy=taxonomy,
            name=name,
            architecture=f"{_PREFIX}{architecture}",
            weights=os.path.basename(weights.url),
            module=module,
        )

    def origin(self, spec: str, model: LoadedModel) -> Origin:
        return downloaded(model.weights)

    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        """Builds the same module that torchvision builds to load these weights."""
        from torchvision import models

        weights = _weights(name)
        architecture = name.split(":")[1]
        arguments: dict[str, Any] = {}
        if architecture == "googlenet":
            arguments = {"transform_input": True, "aux_logits": False, "init_weights": False}
        elif architecture == "inception_v3":
            arguments = {"transform_input": True, "init_weights": False}
        elif architecture.startswith("vit_"):
            arguments = {"image_size": weights.meta["min_size"][0]}
        module: torch.nn.Module = models.get_model(architecture, weights=None, **arguments)
        return module

    def full_name(self, spec: str) -> str:
        try:
            return f"{_PREFIX}{spec.split(':')[1]}:{_weights(spec).name}"
        except UsageError:
            return spec

    def needs_hub(self, spec: str) -> bool:
        return True

    def catalogue(self) -> list[str]:
        from torchvision import models

        return [
            f"{_PREFIX}{name}:{weights.name}"
            for name in models.list_models(module=models)
            for weights in models.get_model_weights(name)
        ]


def _weights(spec: str) -> Any:
    """Returns the member of torchvision's weights enum that an entry names. Raises UsageError if
    the model or the weights do not exist."""
    from torchvision import models

    name, colon, tag = spec.removeprefix(_PREFIX).partition(":")
    known = models.list_models(module=models)
    if name not in known:
        raise UsageError(
            f"--models {spec}: torchvision has no model {name!r}{closest(name, known)}"
        )
    enum = models.get_model_weights(name)
    if not colon:
        return enum.DEFAULT
    if tag not in enum.__members__:
        raise UsageError(
            f"--models {spec}: no such weights; torchvision has "
            f"{', '.join(weights.name for weights in enum)}"
        )
    return enum[tag]
