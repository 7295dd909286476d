"""The index of a folder of weights, for machines that cannot reach the hubs. Imports no torch.

DIR/<sha256>.safetensors    the tensors of one model, named by their `state_hash`
DIR/index.json              name -> the attributes of `StoredModel`
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from typing import Any

from pipeline.errors import JobError, UsageError
from pipeline.models.preprocessing import ModelIdentity, Preprocessing
from pipeline.runtime.lock import held
from pipeline.storage.files import absolute
from pipeline.storage.state_files import json_bytes
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.limits import load_json

INDEX = "index.json"
FORMAT = "imagenet9 weights"
FORMAT_VERSION = 1
VARIABLE = "IN9_WEIGHTS"
"""Environment variable that names the folder if `--weights` is not given."""
_SHA256 = re.compile("[0-9a-f]{64}")
_LOCK = f"{WORK_FOLDER}/lock-index"


def chosen_folder(flag: str | None) -> str | None:
    """Returns the folder that `--weights` or the environment variable names, if any."""
    folder = flag or os.environ.get(VARIABLE)
    return absolute(folder) if folder else None


@dataclasses.dataclass(frozen=True)
class StoredModel(ModelIdentity):
    """An entry of the index, with the attributes of `ModelIdentity` and these.

    Attributes:
      sha256: SHA-256 of the stored tensors. It equals `weights_sha256`, which results show, except
        for zero-shot classifiers, whose stored tensors include the computed head.
      recipe: recipe of the `LoadedModel`.
    """

    sha256: str
    recipe: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"{self.sha256!r} is not a SHA-256")

    @property
    def file(self) -> str:
        """Path, inside the folder, of the file that holds the tensors."""
        return f"{self.sha256}.safetensors"


@dataclasses.dataclass(frozen=True)
class WeightsFolder:
    """A folder of weights.

    Attributes:
      store: the folder.
    """

    store: Store

    @classmethod
    def from_path(cls, path: str) -> WeightsFolder:
        """Opens the folder of a `--weights` or `--to` flag."""
        return cls(Store.at(path))

    def models(self) -> dict[str, StoredModel]:
        """Returns the stored models by name.

        Raises:
          UsageError: the folder has no index, or the index cannot be read.
        """
        if not self.store.exists(INDEX):
            raise UsageError(
                f"{self.store.root} holds no weights; fetch some with: "
                f"in9 models fetch --models NAME --to {self.store.root}"
            )
        return self._read()

    def _read(self) -> dict[str, StoredModel]:
        if not self.store.exists(INDEX):
            return {}
        path = self.store.path(INDEX)
        try:
            content = load_json(self.store.read(INDEX))
            file_format, version = content["format"], content["format_version"]
            if (file_format, version) != (FORMAT, FORMAT_VERSION):
                raise UsageError(
                    f"{path} is {file_format!r} of version {version}, which is not supported; "
                    "fetch into an empty folder"
                )
            return {
                name: StoredModel(
                    **{
                        **entry,
                        "name": name,
                        "preprocessing": Preprocessing.from_settings(
                            entry["preprocessing"], num_outputs=entry["num_outputs"], where=path
                        ),
                    }
                )
                for name, entry in content["models"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, JobError) as error:
            raise UsageError(
                f"{path} is not an index of weights ({error}); fetch into an empty folder"
            ) from error

    def find(self, name: str) -> StoredModel | None:
        """Returns the stored model with this name, None if the folder does not have it.

        Raises:
          UsageError: for the reasons of `models`, or the file of tensors is missing.
        """
        stored = self.models().get(name)
        if stored is not None and not self.store.exists(stored.file):
            raise UsageError(
                f"{self.store.path(stored.file)}, the weights of {name}, is missing; fetch again"
            )
        return stored

    def note(self, stored: StoredModel) -> bool:
        """Adds a model to the index, or replaces the entry of the same name; returns whether the
        index changed."""
        with held(self.store, _LOCK, wait=60) as store:
            models = {**self._read(), stored.name: stored}
            content = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "models": {name: dataclasses.asdict(models[name]) for name in sorted(models)},
            }
            return store.update(INDEX, json_bytes(content))
