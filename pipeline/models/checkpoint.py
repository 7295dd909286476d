"""What is stored of models; this module does not import torch until a checkpoint is saved.

Checkpoints describe themselves: they are safetensors files with training metadata in their header,
which `--models ARCH=FILE` loads like any other. The metadata holds the variant and the settings of
the training, the preprocessing, and the keys of all training images, so that a test on one of these
images is detected wherever the file is copied to.

A folder of weights has an index, for machines that cannot reach the hubs:

DIR/<sha256>.safetensors    the tensors of one model, named by their `state_hash`
DIR/index.json              name -> the attributes of `StoredModel`

And a cache of model identities: what each entry of `--models` was when it was last loaded. The
model's identity cannot change while the origin of its weights does not. So results that are up to
date are recognised without loading the model or importing torch. The cache lies in the dataset's
work folder and is not part of the dataset: after it is deleted, each model is loaded once more.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobError, UsageError, escaped_line
from pipeline.models.identity import ModelIdentity, Origin, Preprocessing
from pipeline.runtime.lock import locked
from pipeline.storage.files import files_of
from pipeline.storage.state_files import json_bytes, read_json
from pipeline.storage.store import WORK_FOLDER, FileDigest, Store
from transforms.hashing import fingerprint, text_bytes
from transforms.limits import load_json
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    import torch

PROBE, KNN = "probe:", "knn:"
"""Beginnings of entries of `--models` that wrap the entry of a frozen encoder."""


def encoder_of(entry: str) -> str:
    """Returns the entry of the encoder that a probe's or kNN's entry wraps; "" for any other."""
    prefix, colon, inner = entry.partition(":")
    return inner if prefix + colon in (PROBE, KNN) else ""


_FORMAT = {"format": "imagenet9 checkpoint", "format_version": 1}
SUFFIX = ".safetensors"
MODELS = "models"
"""Folder of a dataset that holds the checkpoints trained on it."""

_NOTE, _KEYS = "in9", "in9_keys"
_LENGTH_BYTES = 8
"""Size in bytes of the first field of a file, which holds the length of the header."""
_MAX_HEADER = 100_000_000
"""Largest header, in bytes, that safetensors allows."""
_MAX_KEYS = 32 << 20
"""Largest size in bytes of the unpacked keys. Those of ImageNet's 1.3 million training images take
21 MB. Without a limit, a header of 3 MB could fill 2 GB."""


@dataclasses.dataclass(frozen=True)
class TrainedOn:
    """Training metadata of a checkpoint.

    Attributes:
      architecture: timm's name of the architecture, as in `--models ARCH=FILE`; that of the encoder
        if the checkpoint is a head.
      variant: variant that the model was trained on, or `in9l`.
      classes: `digest_of_classes` of the taxonomy, which gives the outputs their meaning.
      keys: keys of the training images, sorted; a mixed picture counts by the key of its
        foreground.
      method: `train`, or for a head `probe` or `knn`.
      epochs: number of epochs, None for a head.
      holdout: share of the split that was held out, 0 if nothing was.
      pretrained: weights that the training started from, None for random weights; for a head the
        encoder's entry of `--models`.
      settings: further settings of the method, JSON-serialisable.
    """

    architecture: str
    variant: str
    dataset: str
    split: str
    classes: str
    preprocessing: Preprocessing
    keys: tuple[str, ...]
    method: str = "train"
    seed: int = 0
    epochs: int | None = None
    holdout: float = 0.0
    holdout_seed: int = 0
    pretrained: str | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def keys_digest(self) -> str:
        """Hexadecimal SHA-256 of the keys, joined by newlines."""
        return hashlib.sha256(text_bytes("\n".join(self.keys))).hexdigest()

    @property
    def fit(self) -> str:
        """Fingerprint of what decides a head: all but its dataset's other pictures."""
        settings = {name: value for name, value in self.settings.items() if name != "penalty"}
        return fingerprint(
            dataclasses.asdict(dataclasses.replace(self, dataset="", keys=(), settings=settings)),
            self.keys_digest,
        )


def digest_of_classes(taxonomy: Taxonomy) -> str:
    """Digests what outputs mean, superclasses and classes: 16 hexadecimal digits of a SHA-256."""
    content = [taxonomy.names, taxonomy.wnids, taxonomy.labels]
    return hashlib.sha256(text_bytes(json.dumps(content))).hexdigest()[:16]


def save_checkpoint(
    store: Store, path: str, state: Mapping[str, torch.Tensor], trained: TrainedOn
) -> FileDigest:
    """Writes a checkpoint atomically. The same arguments give the same bytes.

    The path ends with `SUFFIX`. Raises JobError if the keys are larger than `read_metadata`
    accepts.
    """
    # Imported here, because this module also reads metadata where torch is not loaded.
    import torch
    from safetensors.torch import save

    joined = text_bytes("\n".join(trained.keys))
    if len(joined) > _MAX_KEYS:
        raise JobError(
            f"the keys of {len(trained.keys)} training images take {len(joined)} bytes, and a "
            f"checkpoint holds at most {_MAX_KEYS}; train on fewer images"
        )
    # safetensors refuses tensors that share memory, so each is copied.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    note = {
        **_FORMAT,
        **dataclasses.asdict(trained),
        "images": len(trained.keys),
        "keys_sha256": trained.keys_digest,
        _KEYS: base64.b64encode(zlib.compress(joined, 9)).decode(),
    }
    del note["keys"]
    # A single JSON text, because safetensors does not keep the order of metadata entries.
    return store.write(path, save(tensors, {_NOTE: json.dumps(note, sort_keys=True)}))


def read_metadata(path: str) -> TrainedOn | None:
    """Reads the training metadata of a safetensors file, without its tensors; None if it has none.

    Raises JobError if the metadata is broken, or its format or version is not supported.
    """
    header = read_header(path)
    try:
        text = header.get("__metadata__", {}).get(_NOTE)
        if text is None:
            return None
        note = load_json(text)
        found = {name: note[name] for name in _FORMAT}
        if found != _FORMAT:
            raise JobError(
                f"{path} is {found['format']!r} of version {found['format_version']}, which is not "
                "supported"
            )
        unpacked = zlib.decompressobj().decompress(base64.b64decode(note.pop(_KEYS)), _MAX_KEYS + 1)
        if len(unpacked) > _MAX_KEYS:
            raise JobError(f"{path}: the keys of its training images exceed {_MAX_KEYS} bytes")
        keys = unpacked.decode("utf-8", "surrogatepass")
        names = {field.name for field in dataclasses.fields(TrainedOn)} & note.keys()
        fields = {name: note[name] for name in names} | {
            "keys": tuple(keys.split("\n")) if keys else (),
            "preprocessing": Preprocessing.from_settings(
                note["preprocessing"], num_outputs=0, where=path
            ),
        }
        trained = TrainedOn(**fields)
        if trained.keys_digest != note["keys_sha256"]:
            raise JobError(f"{path}: its training images do not match their digest")
    # Values of other types raise all kinds of errors.
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
        raise JobError(f"{path} has broken training metadata ({error})") from error
    return trained


def is_trained_here(path: str) -> bool:
    """Returns whether a file is a checkpoint trained here, even if its metadata is broken."""
    try:
        return read_metadata(path) is not None
    except JobError:  # The file has our metadata.
        return True


def metadata_of_entry(entry: str) -> TrainedOn | None:
    """Reads the training metadata of an entry of `--models`, `ARCH=FILE` or `probe:FILE`.

    Returns None for other entries, or if the file is missing or has no metadata. Raises the errors
    of `read_metadata`.
    """
    architecture, equals, path = entry.partition("=")
    path = path if equals and ":" not in architecture else encoder_of(entry)
    return read_metadata(path) if path.endswith(SUFFIX) and files_of(path).info(path) else None


def encoder_of_head(entry: str) -> str:
    """Returns the entry of the encoder whose head is in a file, `probe:FILE`; "" for other entries.

    Raises the errors of `read_metadata`.
    """
    trained = metadata_of_entry(entry) if encoder_of(entry) else None
    return trained.pretrained or "" if trained and trained.method != "train" else ""


def stored_name(model: str) -> str:
    """Returns the name of a model in a folder of weights: of a head in a file, it is the encoder's.

    Raises the errors of `read_metadata`.
    """
    encoder = encoder_of_head(model)
    return f"{model.partition(':')[0]}:{encoder}" if encoder else model


def safe_name(model: str) -> str:
    """Returns a file name for a model, valid on every system, that no other model's name gives."""
    model = escaped_line(model)
    safe = re.sub(r"[^A-Za-z0-9._=-]", "_", model).lstrip(".") or "_"
    if safe == model and len(safe) <= 200:  # Systems allow 255 bytes, and settings may follow.
        return safe
    return f"{safe[:100]}-{hashlib.sha256(text_bytes(model)).hexdigest()[:8]}"


def head_file(model: str, split: str, holdout: float, variant: str = "original") -> str:
    """Returns the path, in a dataset's folder, of a head that was fitted on a part of a split.

    `model` is the entry of the encoder, with `probe:` or `knn:` before it.
    """
    parts = [safe_name(model.replace(":", "-", 1)), split]
    parts += [f"holdout{holdout:g}"] if holdout else []
    return f"{MODELS}/{'-'.join(parts)}-seed0/{variant}{SUFFIX}"


def refuse_compressed(path: str) -> None:
    """Refuses a PyTorch file with compressed members, before torch unpacks them.

    `torch.save` compresses nothing, and a few MB of such members could fill the memory.
    """
    with files_of(path).open(path) as file:
        if file.read(4) != b"PK\3\4":  # Another format, which compresses nothing.
            return
        try:
            members = zipfile.ZipFile(file).infolist()
        except zipfile.BadZipFile as error:
            raise JobError(f"{path} is not a whole PyTorch file") from error
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise JobError(f"{path} has compressed members; save it with torch.save, as it is")


def read_header(path: str) -> dict[str, Any]:
    """Reads the header of a safetensors file; empty if the file is not in this format.

    It holds each tensor's dtype, shape and offsets, by name, and metadata under `__metadata__`.
    """
    files = files_of(path)
    info = files.info(path)
    if info is None:
        raise FileNotFoundError(f"there is no file {path}")
    if info.size < _LENGTH_BYTES:
        return {}
    (prefix,) = files.read_ranges(path, [(0, _LENGTH_BYTES)])
    length = int.from_bytes(prefix, "little")
    if not 2 <= length <= min(_MAX_HEADER, info.size - _LENGTH_BYTES):
        return {}
    (data,) = files.read_ranges(path, [(_LENGTH_BYTES, length)])
    try:
        header = load_json(data)
    except ValueError:
        return {}
    return header if isinstance(header, dict) else {}


INDEX = "index.json"
_INDEX_FORMAT = {"format": "imagenet9 weights", "format_version": 1}
_LIBRARIES = (
    *("torch", "timm", "torchvision", "transformers", "open_clip_torch", "onnxruntime"),
    "numpy",
)
"""Distributions whose versions can change the model that an entry loads."""


@dataclasses.dataclass(frozen=True)
class StoredModel(ModelIdentity):
    """An entry of the index, with the attributes of `ModelIdentity` and these.

    Attributes:
      sha256: SHA-256 of the stored tensors. It equals `weights_sha256`, which results show, except
        for zero-shot classifiers, whose stored tensors include the computed head.
    """

    sha256: str
    recipe: Mapping[str, Any]

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"{self.sha256!r} is not a SHA-256")

    @property
    def file(self) -> str:
        """Path, inside the folder, of the file that holds the tensors."""
        return f"{self.sha256}.safetensors"


@dataclasses.dataclass(frozen=True)
class WeightsFolder:
    """A folder of weights."""

    store: Store

    def models(self) -> dict[str, StoredModel]:
        """Returns the stored models by name; raises UsageError without a readable index."""
        if not self.store.exists(INDEX):
            raise UsageError(
                f"{self.store.root} holds no weights; fetch some with: "
                f"in9 models fetch --models NAME --to {self.store.root}"
            )
        path = self.store.path(INDEX)
        try:
            content = load_json(self.store.read(INDEX))
            found = {name: content[name] for name in _INDEX_FORMAT}
            if found != _INDEX_FORMAT:
                raise UsageError(
                    f"{path} is {found['format']!r} of version {found['format_version']}, which is "
                    "not supported; fetch into an empty folder"
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

        Raises UsageError for the reasons of `models`, or if the file of tensors is missing.
        """
        stored = self.models().get(stored_name(name))
        if stored is not None and not self.store.exists(stored.file):
            raise UsageError(
                f"{self.store.path(stored.file)}, the weights of {name}, is missing; fetch again"
            )
        return stored

    def note(self, stored: StoredModel) -> bool:
        """Adds or replaces a model in the index, by its name; returns whether the index changed."""
        with locked(self.store, f"{WORK_FOLDER}/lock-index", wait=60) as store:
            models = self.models() if self.store.exists(INDEX) else {}
            models[stored.name] = stored
            content = {
                **_INDEX_FORMAT,
                "models": {name: dataclasses.asdict(models[name]) for name in sorted(models)},
            }
            return store.update(INDEX, json_bytes(content))


@dataclasses.dataclass(frozen=True)
class _RememberedModel:
    entry: str
    stamp: str
    origin: Origin
    identity: ModelIdentity


@dataclasses.dataclass(frozen=True)
class KnownModels:
    """The cached identities in a dataset folder.

    Attributes:
      weights: folder of `in9 models fetch` that weights are loaded from, if any.
    """

    store: Store
    weights: str | None
    taxonomy: Taxonomy

    def load(self, entry: str) -> ModelIdentity | None:
        """Returns the identity of an entry; None if the model must be loaded to know it."""
        known = read_json(self.store, self._path(entry), _RememberedModel)
        if known is None or known.entry != entry:
            return None
        return known.identity if known.stamp == self._stamp(known.origin, known.identity) else None

    def store_identity(self, entry: str, identity: ModelIdentity, origin: Origin | None) -> None:
        """Stores the identity of an entry, unless the origin of its weights is None."""
        if origin and (stamp := self._stamp(origin, identity)):
            known = _RememberedModel(entry, stamp, origin, identity)
            self.store.update(self._path(entry), json_bytes(dataclasses.asdict(known)))

    def _path(self, entry: str) -> str:
        return f"{WORK_FOLDER}/models/{fingerprint(entry)}.json"

    def _stamp(self, origin: Origin, identity: ModelIdentity) -> str | None:
        """Returns a stamp that changes with all that an identity depends on; None if unknown."""
        if self.weights:
            folder = WeightsFolder(Store.at(self.weights))
            if stored := folder.find(identity.name):
                origin = Origin("file", folder.store.path(stored.file))
        weights = origin.stamp()
        if weights is None:
            return None
        libraries = [Origin("package", name).stamp() for name in _LIBRARIES]
        return fingerprint(weights, libraries, self.taxonomy.description)
