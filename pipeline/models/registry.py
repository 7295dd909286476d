"""The sources of models by prefix, and what a `--models` entry means."""

from __future__ import annotations

from pipeline.errors import JobError, UsageError, in_short
from pipeline.models.hugging_face import HuggingFace
from pipeline.models.loaded import LoadedModel
from pipeline.models.onnx_files import OnnxFiles
from pipeline.models.open_clip_models import OpenClip
from pipeline.models.packaged import Packaged
from pipeline.models.python_functions import PythonFunctions
from pipeline.models.source import Source, closest
from pipeline.models.stored import load_stored
from pipeline.models.stored_index import WeightsFolder
from pipeline.models.timm_names import TimmNames
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
"""By the prefix of their entries."""


def source_of(spec: str) -> Source:
    """The source of an entry.

    Raises:
      UsageError: an unknown prefix.
    """
    if spec in PACKAGED.catalogue():
        return PACKAGED
    prefix, colon, rest = spec.partition(":")
    # The file of ARCH=FILE may have a colon in its name.
    if not colon or "=" in prefix:
        return TIMM
    if prefix not in SOURCES:
        function = f"; a function of yours is python:{module_of(prefix)}:{rest}"
        hint = closest(prefix, SOURCES) or function
        raise UsageError(
            f"--models {spec}: there is no source {prefix!r}{hint}; see: in9 models list"
        )
    return SOURCES[prefix]


def full_name(spec: str) -> str:
    """The name that results will have for an entry; the entry itself if it means nothing."""
    try:
        return source_of(spec).full_name(spec)
    except UsageError:
        return spec


def check_model(spec: str, weights: str | None = None) -> None:
    """Checks a `--models` entry without loading weights.

    Args:
      spec: the entry.
      weights: folder of `in9 models fetch`. What it has comes from there.

    Raises:
      UsageError: nothing of that name, with the closest ones; no such file; a library that is
        not installed; or weights that the folder lacks and only a hub has.
    """
    source = source_of(spec)
    source.check_installed(spec)
    folder = WeightsFolder.from_path(weights) if weights else None
    if folder is not None and folder.find(full_name(spec)):
        return
    source.check(spec)
    if folder is not None and source.needs_hub(spec):
        raise UsageError(
            f"--models {spec}: {weights} has no weights of it. On a machine with a way to the "
            f"hub: in9 models fetch --models {spec} --to {weights}"
        )


def check_fit(spec: str, taxonomy: Taxonomy, weights: str | None = None) -> None:
    """Checks that the head of a checked entry fits the classes, where its size can be told without
    weights. Arguments as `load_model`.

    Raises:
      UsageError: it does not, with what would fit.
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
    """Loads a model as a `--models` entry says, in evaluation mode on the CPU.

    Args:
      spec: the entry.
      weights: folder of `in9 models fetch`. What it has comes from there.
      taxonomy: classes that its outputs are to fit, None for ImageNet-9's.

    Raises:
      UsageError: as `check_model`.
      JobError: the weights cannot be fetched, read, or do not fit the architecture.
    """
    check_model(spec, weights)
    source = source_of(spec)
    try:
        if weights:
            folder = WeightsFolder.from_path(weights)
            stored = folder.find(full_name(spec))
            if stored is not None:
                return load_stored(source, folder, stored)
        return source.load(spec, taxonomy or imagenet9())
    except (UsageError, JobError):
        raise
    except Exception as error:  # Many libraries, each with its own ways to fail.
        raise JobError(
            f"{spec} could not be loaded ({type(error).__name__}: {in_short(error)})"
        ) from error
