"""The registry of model sources: resolves, checks and loads `--models` entries."""

from __future__ import annotations

import contextlib

from pipeline.errors import JobError, UsageError, in_short
from pipeline.models.hugging_face import HuggingFace
from pipeline.models.onnx_files import OnnxFiles
from pipeline.models.open_clip_models import OpenClip
from pipeline.models.python_functions import PythonFunctions
from pipeline.models.source import LoadedModel, Source, closest, offline_without_answer
from pipeline.models.stored import load_stored
from pipeline.models.stored_index import WeightsFolder
from pipeline.models.timm_names import Packaged, TimmNames
from pipeline.models.torchvision_names import TorchvisionNames
from pipeline.runtime.custom_functions import module_of
from transforms.scoring import labels_of_outputs
from transforms.taxonomy import Taxonomy, imagenet9

PACKAGED = Packaged()
TIMM = TimmNames(similar=PACKAGED.catalogue())

SOURCES: dict[str, Source] = {
    "torchvision": TorchvisionNames(),
    "hf": HuggingFace(),
    "onnx": OnnxFiles(),
    "open_clip": OpenClip(),
    "python": PythonFunctions(),
}
"""Maps the prefix of an entry, before the colon, to the entry's source."""


def source_of(spec: str) -> Source:
    """Returns the source of an entry.

    Raises:
      UsageError: the prefix is unknown.
    """
    if spec in PACKAGED.catalogue():
        return PACKAGED
    prefix, colon, rest = spec.partition(":")
    # In ARCH=FILE, the colon may be part of the path.
    if not colon or "=" in prefix:
        return TIMM
    if prefix not in SOURCES:
        custom = f"; for a function of your own: python:{module_of(prefix)}:{rest}"
        hint = closest(prefix, SOURCES) or custom
        raise UsageError(
            f"--models {spec}: there is no source {prefix!r}{hint}; see: in9 models list"
        )
    return SOURCES[prefix]


def full_name(spec: str) -> str:
    """Returns the name of an entry's model in results; the entry itself if it is unknown."""
    try:
        return source_of(spec).full_name(spec)
    except UsageError:
        return spec


def check_model(spec: str, weights: str | None = None) -> None:
    """Checks a `--models` entry without loading weights.

    Args:
      spec: the entry.
      weights: folder of `in9 models fetch`, if any. A model in this folder needs no other source.

    Raises:
      UsageError: the name is unknown (the message suggests similar ones), the file does not
        exist, a library is missing, or the folder lacks weights that only a hub has.
    """
    source = source_of(spec)
    source.check_installed(spec)
    folder = WeightsFolder.from_path(weights) if weights else None
    if folder is not None and folder.find(full_name(spec)):
        return
    source.check(spec)
    if folder is not None and source.needs_hub(spec):
        raise UsageError(
            f"--models {spec}: {weights} does not have its weights. On a machine that can reach "
            f"the hub: in9 models fetch --models {spec} --to {weights}"
        )


def check_fit(spec: str, taxonomy: Taxonomy, weights: str | None = None) -> None:
    """Checks that the number of a model's outputs fits the taxonomy. An entry passes if its number
    of outputs is only known from the weights.

    Args:
      spec: the entry, which `check_model` has accepted.
      taxonomy: classes that the outputs must fit.
      weights: folder of `in9 models fetch`, if any.

    Raises:
      UsageError: the number does not fit; the message says which numbers would.
    """
    source = source_of(spec)
    stored = WeightsFolder.from_path(weights).find(full_name(spec)) if weights else None
    try:
        outputs = stored.num_outputs if stored else source.outputs(spec, taxonomy)
        if outputs is not None:
            labels_of_outputs(outputs, taxonomy)
    except ValueError as error:
        raise UsageError(f"--models {spec}: {error}") from error


def load_model(
    spec: str, weights: str | None = None, taxonomy: Taxonomy | None = None
) -> LoadedModel:
    """Loads the model of a `--models` entry, in evaluation mode on the CPU.

    Args:
      spec: the entry.
      weights: folder of `in9 models fetch`, if any. A model in this folder is loaded from there.
      taxonomy: classes that the outputs must fit, None for ImageNet-9's.

    Raises:
      UsageError: for the reasons of `check_model`.
      JobError: the weights cannot be fetched or read, or do not fit the architecture.
    """
    check_model(spec, weights)
    source = source_of(spec)
    try:
        if weights:
            folder = WeightsFolder.from_path(weights)
            stored = folder.find(full_name(spec))
            if stored is not None:
                return load_stored(source, folder, stored)
        needs_hub = source.needs_hub(spec)
        with offline_without_answer() if needs_hub else contextlib.nullcontext():
            return source.load(spec, taxonomy or imagenet9())
    except (UsageError, JobError):
        raise
    except Exception as error:  # Each of the many libraries raises its own exceptions.
        raise JobError(
            f"{spec} could not be loaded ({type(error).__name__}: {in_short(error)})"
        ) from error
