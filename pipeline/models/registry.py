"""The registry of model sources, which resolves, checks and loads `--models` entries.

It also stores models in a folder of weights, and loads them from it.

`probe:ENTRY` and `knn:ENTRY` classify the features of a frozen encoder by a head that was fitted on
them (`pipeline.models.heads`). What is loaded, stored and hashed is the encoder alone, so both
forms of an entry have the same weights.
"""

import contextlib
import dataclasses
import functools

import torch
from safetensors.torch import load, save

from pipeline.errors import JobError, UsageError, one_line
from pipeline.models.answers import has_network, refuse_answers
from pipeline.models.checkpoint import (
    KNN,
    PROBE,
    StoredModel,
    WeightsFolder,
    encoder_of,
    encoder_of_head,
    stored_name,
)
from pipeline.models.hugging_face import HuggingFace
from pipeline.models.library_names import Packaged, TimmNames, TorchvisionNames
from pipeline.models.open_clip_models import OpenClip
from pipeline.models.own_models import AnswerFiles, OnnxFiles, PythonFunctions
from pipeline.models.source import (
    LoadedModel,
    Source,
    closest,
    loaded_model,
    module_with,
    offline_without_answer,
    state_hash,
)
from pipeline.runtime.custom_functions import call_own, module_of
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.scoring import labels_of_outputs
from transforms.taxonomy import Taxonomy, imagenet9


def store_model(folder: WeightsFolder, model: LoadedModel) -> bool:
    """Stores a model; returns whether the folder changed.

    Raises JobError if the model's state holds values that are not tensors.
    """
    state, store = model.module.state_dict(), folder.store
    identity = vars(model.identity) | {"name": stored_name(model.name)}
    stored = StoredModel(**identity, sha256=state_hash(state), recipe=model.recipe)
    # safetensors refuses tensors that share memory, so each is copied.
    layout = torch.contiguous_format
    tensors = {key: value.clone(memory_format=layout) for key, value in state.items()}
    changed = store.update(stored.file, save(tensors))
    changed |= folder.note(stored)
    store.prune(WORK_FOLDER)
    return changed


def load_stored(source: Source, folder: Store, stored: StoredModel) -> LoadedModel:
    """Loads a model from a folder of weights.

    Raises JobError if the tensors cannot be read, have changed since they were fetched, or do not
    fit.
    """
    try:
        state = load(folder.read(stored.file, None))
    except Exception as error:  # Broken bytes can raise anything.
        raise JobError(
            f"{folder.path(stored.file)}, the weights of {stored.name}, cannot be read "
            f"({type(error).__name__}); fetch them again"
        ) from error
    digest = state_hash(state)
    if digest != stored.sha256:
        raise JobError(
            f"{folder.path(stored.file)}, the weights of {stored.name}, has changed: its "
            f"tensors have sha256 {digest}, but the index says {stored.sha256}; fetch them again"
        )
    make = functools.partial(source.build, encoder_of(stored.name) or stored.name, stored.recipe)
    return loaded_model(
        name=stored.name,
        architecture=stored.architecture,
        weights=stored.weights,
        module=module_with(stored.name, make, state),
        preprocessing=stored.preprocessing,
        num_outputs=stored.num_outputs,
        recipe=stored.recipe,
        weights_sha256=stored.weights_sha256,
        features=stored.features,
    )


PACKAGED = Packaged()
TIMM = TimmNames()


SOURCES: dict[str, Source] = {
    "torchvision": TorchvisionNames(),
    "hf": HuggingFace(),
    "onnx": OnnxFiles(),
    "open_clip": OpenClip(),
    "python": PythonFunctions(),
    "answers": AnswerFiles(),
}
"""Maps the prefix of an entry, before the colon, to the entry's source."""


def source_of(spec: str) -> tuple[Source, str]:
    """Returns the source of an entry, and what it knows the entry as: a head's as its encoder.

    Raises UsageError if the prefix is unknown, or the entry cannot be an encoder's.
    """
    entry = spec
    if spec.startswith((PROBE, KNN)):
        entry = encoder_of_head(spec) or encoder_of(spec)
        if not entry or entry.startswith((PROBE, KNN)) or not has_network(entry):
            raise UsageError(
                f"--models {spec}: behind probe: or knn: comes the entry of one encoder that can "
                "be run, such as probe:resnet50 or knn:hf:facebook/dinov2-small"
            )
    if entry in PACKAGED.catalogue():
        return PACKAGED, entry
    prefix, colon, rest = entry.partition(":")
    # In ARCH=FILE, the colon may be part of the path.
    if not colon or "=" in prefix:
        return TIMM, entry
    if not has_network(entry) and prefix not in SOURCES:
        raise UsageError(f"--models {entry} was evaluated by in9.evaluate_model; call it again")
    if prefix not in SOURCES:
        custom = f"; for a function of your own: python:{module_of(prefix)}:{rest}"
        hint = closest(prefix, [*SOURCES, "probe", "knn"]) or custom
        raise UsageError(
            f"--models {entry}: there is no source {prefix!r}{hint}; see: in9 models list"
        )
    return SOURCES[prefix], entry


def full_name(spec: str) -> str:
    """Returns the name of an entry's model in results; the entry itself if it is unknown."""
    try:
        source, entry = source_of(spec)
        return _named(spec, entry, source.full_name(entry))
    except UsageError:
        return spec


def _named(spec: str, entry: str, name: str) -> str:
    """Returns a model's name, by that of what `source_of` knows; a head in a file keeps its own."""
    return spec.removesuffix(entry) + name if spec.endswith(entry) else spec


def check_model(
    spec: str, weights: str | None = None, *, needs_network: bool = False
) -> StoredModel | None:
    """Checks a `--models` entry without loading weights.

    `needs_network` refuses a file of answers, because a network must be run. Returns what folder
    `weights` has of the model, which then needs no source.

    Raises:
      UsageError: the name is unknown (the message suggests similar ones), the file does not exist,
        a library is missing, or the folder lacks weights that only a hub has.
    """
    if needs_network:
        refuse_answers(spec)
    source, entry = source_of(spec)
    source.check_installed(entry)
    if weights and (stored := WeightsFolder(Store.at(weights)).find(full_name(spec))):
        return stored
    source.check(entry)
    if weights and source.needs_hub(entry):
        raise UsageError(
            f"--models {spec}: {weights} does not have its weights. On a machine that can reach "
            f"the hub: in9 models fetch --models {spec} --to {weights}"
        )
    return None


def check_fit(spec: str, taxonomy: Taxonomy, weights: str | None = None) -> None:
    """Raises UsageError if the number of a model's outputs does not fit the taxonomy.

    The message says which would. An entry passes if only the weights tell its number.
    """
    source, entry = source_of(spec)
    if entry != spec:  # The head of an encoder is fitted to the taxonomy.
        return
    stored = WeightsFolder(Store.at(weights)).find(full_name(spec)) if weights else None
    try:
        outputs = stored.num_outputs if stored else source.outputs(spec, taxonomy)
        if outputs is not None:
            labels_of_outputs(outputs, taxonomy)
    except ValueError as error:
        raise UsageError(f"--models {spec}: {error}") from error


def load_model(
    spec: str,
    weights: str | None = None,
    taxonomy: Taxonomy | None = None,
    *,
    needs_network: bool = False,
) -> LoadedModel:
    """Loads the model of a `--models` entry, in evaluation mode on the CPU.

    Args:
      weights: folder of `in9 models fetch`, if any. A model in this folder is loaded from there.
      taxonomy: classes that the outputs must fit, None for ImageNet-9's.
      needs_network: see `check_model`.

    Raises:
      UsageError: for the reasons of `check_model`.
      JobError: the weights cannot be fetched or read, or do not fit the architecture.
    """
    stored = check_model(spec, weights, needs_network=needs_network)
    source, entry = source_of(spec)
    try:
        if stored and weights:
            model = load_stored(source, Store.at(weights), stored)
            return dataclasses.replace(model, name=full_name(spec))
        with offline_without_answer() if source.needs_hub(entry) else contextlib.nullcontext():
            load_entry = functools.partial(source.load, encoder=entry != spec)
            model = call_own(load_entry, entry, taxonomy or imagenet9())
        return dataclasses.replace(model, name=_named(spec, entry, model.name))
    except (UsageError, JobError):
        raise
    except Exception as error:  # Each of the many libraries raises its own exceptions.
        raise JobError(
            f"{spec} could not be loaded ({type(error).__name__}: {one_line(error)})"
        ) from error
