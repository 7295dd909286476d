"""Stores models in a folder of weights, and loads them from it.

DIR/<sha256>.safetensors    the tensors of one model, named by their `state_hash`
DIR/index.json              name -> the attributes of `StoredModel`
"""

from __future__ import annotations

import functools

import torch
from safetensors.torch import load, save

from pipeline.errors import JobError
from pipeline.models.source import LoadedModel, Source, loaded_model, module_with, state_hash
from pipeline.models.stored_index import StoredModel, WeightsFolder
from pipeline.storage.store import WORK_FOLDER


def store_model(folder: WeightsFolder, model: LoadedModel) -> bool:
    """Stores a model; returns whether the folder changed.

    Raises:
      JobError: the model's state holds values that are not tensors.
    """
    state, store = model.module.state_dict(), folder.store
    stored = StoredModel(**vars(model.identity), sha256=state_hash(state), recipe=model.recipe)
    changed = False
    if not _is_intact(folder, stored):
        # safetensors refuses tensors that share memory, so each is copied.
        layout = torch.contiguous_format
        tensors = {key: value.clone(memory_format=layout) for key, value in state.items()}
        store.write(stored.file, save(tensors))
        changed = True
    changed |= folder.note(stored)
    store.remove_temporary()
    store.prune(WORK_FOLDER)
    return changed


def _is_intact(folder: WeightsFolder, stored: StoredModel) -> bool:
    if not folder.store.exists(stored.file):
        return False
    try:
        return state_hash(_state(folder, stored)) == stored.sha256
    except JobError:
        return False


def _state(folder: WeightsFolder, stored: StoredModel) -> dict[str, torch.Tensor]:
    """Reads the tensors of a model, without checking their hash. Raises JobError if the file
    cannot be read."""
    try:
        return load(folder.store.read(stored.file, None))
    except Exception as error:  # Broken bytes can raise anything.
        raise JobError(
            f"{folder.store.path(stored.file)}, the weights of {stored.name}, cannot be read "
            f"({type(error).__name__}); fetch them again"
        ) from error


def load_stored(source: Source, folder: WeightsFolder, stored: StoredModel) -> LoadedModel:
    """Loads a model from a folder of weights.

    Raises:
      JobError: the tensors have changed since they were fetched, or do not fit the architecture.
    """
    state = _state(folder, stored)
    digest = state_hash(state)
    if digest != stored.sha256:
        raise JobError(
            f"{folder.store.path(stored.file)}, the weights of {stored.name}, has changed: its "
            f"tensors have sha256 {digest}, but the index says {stored.sha256}; fetch them again"
        )
    make = functools.partial(source.build, stored.name, stored.recipe)
    module = module_with(stored.name, make, state)
    return loaded_model(
        name=stored.name,
        architecture=stored.architecture,
        weights=stored.weights,
        module=module,
        preprocessing=stored.preprocessing,
        num_outputs=stored.num_outputs,
        recipe=stored.recipe,
        weights_sha256=stored.weights_sha256,
    )
