"""Weights in a folder, by their SHA-256, for machines without a way to the hubs.

DIR/<sha256>.safetensors    the tensors of one model; the name is `state_hash` of them
DIR/index.json              name -> sha256, architecture, source, preprocessing
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load, save

from pipeline.errors import JobError, UsageError
from pipeline.models.loaded import (
    LoadedModel,
    Preprocessing,
    load_state,
    loaded_model,
    state_hash,
)
from pipeline.models.source import Source
from pipeline.runtime.lock import held
from pipeline.storage.files import absolute
from pipeline.storage.store import WORK_FOLDER, Store

INDEX = "index.json"
FORMAT = "imagenet9 weights"
FORMAT_VERSION = 1
VARIABLE = "IN9_WEIGHTS"
"""Environment variable that stands for `--weights`."""
_SHA256 = re.compile("[0-9a-f]{64}")
_LOCK = f"{WORK_FOLDER}/lock-index"


def chosen_folder(flag: str | None) -> str | None:
    """The folder of `--weights`, else of the environment; None if neither names one."""
    folder = flag or os.environ.get(VARIABLE)
    return absolute(folder) if folder else None


@dataclasses.dataclass(frozen=True)
class StoredModel:
    """A line of the index: a `LoadedModel` without its module.

    Attributes:
      sha256: of the stored tensors. It differs from `weights_sha256`, which results show, where
        what is stored was computed from the weights: the head of a zero-shot classifier.
    """

    name: str
    sha256: str
    weights_sha256: str
    architecture: str
    weights: str
    num_outputs: int
    preprocessing: Preprocessing
    recipe: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"{self.sha256!r} is no SHA-256")

    @property
    def file(self) -> str:
        """Path of the tensors in the folder."""
        return f"{self.sha256}.safetensors"


@dataclasses.dataclass(frozen=True)
class WeightsFolder:
    """A folder of weights.

    Attributes:
      store: where it is.
    """

    store: Store

    @classmethod
    def of(cls, path: str) -> WeightsFolder:
        """The folder of a `--weights` or `--to` flag."""
        return cls(Store.at(path))

    def models(self) -> dict[str, StoredModel]:
        """What is there, by name.

        Raises:
          UsageError: the folder has no index, or one that is not ours.
        """
        if not self.store.exists(INDEX):
            raise UsageError(
                f"{self.store.root} holds no weights; make it with: "
                f"in9 models fetch --models NAME --to {self.store.root}"
            )
        return self._read()

    def _read(self) -> dict[str, StoredModel]:
        if not self.store.exists(INDEX):
            return {}
        path = self.store.path(INDEX)
        try:
            content = json.loads(self.store.read(INDEX))
            found = (content["format"], content["format_version"])
            if found != (FORMAT, FORMAT_VERSION):
                raise UsageError(f"{path} is of {found[0]!r}, version {found[1]}, not ours")
            return {
                name: StoredModel(
                    **{
                        **entry,
                        "name": name,
                        "preprocessing": Preprocessing.of(
                            entry["preprocessing"], num_outputs=entry["num_outputs"], where=path
                        ),
                    }
                )
                for name, entry in content["models"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, JobError) as error:
            raise UsageError(
                f"{path} is no index of weights ({error}); fetch into an empty folder"
            ) from error

    def find(self, name: str) -> StoredModel | None:
        """The model of a name, None if the folder has none.

        Raises:
          UsageError: as `models`, or its tensors are missing.
        """
        stored = self.models().get(name)
        if stored is not None and not self.store.exists(stored.file):
            raise UsageError(
                f"{self.store.path(stored.file)}, the weights of {name}, is missing; fetch again"
            )
        return stored

    def put(self, model: LoadedModel) -> bool:
        """Stores a model, and says whether anything changed.

        Raises:
          JobError: its state is not of tensors alone.
        """
        state = model.module.state_dict()
        stored = StoredModel(
            name=model.name,
            sha256=state_hash(state),
            weights_sha256=model.weights_sha256,
            architecture=model.architecture,
            weights=model.weights,
            num_outputs=model.num_outputs,
            preprocessing=model.preprocessing,
            recipe=model.recipe,
        )
        changed = False
        if not self._is_whole(stored):
            # Tensors that share memory are stored one by one.
            kind = torch.contiguous_format
            tensors = {key: value.clone(memory_format=kind) for key, value in state.items()}
            self.store.write(stored.file, save(tensors))
            changed = True
        with held(self.store, _LOCK, wait=60):
            models = {**self._read(), model.name: stored}
            content = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "models": {name: dataclasses.asdict(models[name]) for name in sorted(models)},
            }
            text = json.dumps(content, indent=1, sort_keys=True) + "\n"
            changed |= self.store.update(INDEX, text.encode())
        self.store.remove_temporary()
        self.store.prune(WORK_FOLDER)
        return changed

    def _is_whole(self, stored: StoredModel) -> bool:
        if not self.store.exists(stored.file):
            return False
        try:
            return state_hash(self.state(stored)) == stored.sha256
        except JobError:
            return False

    def state(self, stored: StoredModel) -> dict[str, torch.Tensor]:
        """The tensors of a model, unchecked. Raises JobError if they cannot be read."""
        try:
            return load(self.store.read(stored.file))
        except Exception as error:  # Whatever the bytes provoke.
            raise JobError(
                f"{self.store.path(stored.file)}, the weights of {stored.name}, cannot be read "
                f"({type(error).__name__}); fetch them again"
            ) from error


def load_stored(source: Source, folder: WeightsFolder, stored: StoredModel) -> LoadedModel:
    """Loads a model from a folder of weights.

    Raises:
      JobError: the tensors are not those that were fetched, or do not fit.
    """
    state = folder.state(stored)
    found = state_hash(state)
    if found != stored.sha256:
        raise JobError(
            f"{folder.store.path(stored.file)}, the weights of {stored.name}, has changed: its "
            f"tensors have sha256 {found}, and the index says {stored.sha256}; fetch them again"
        )
    module = source.build(stored.name, stored.recipe)
    load_state(stored.name, module, state)
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
