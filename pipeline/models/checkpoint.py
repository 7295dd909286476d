"""Checkpoints that say what they are: a safetensors file, with a note in its header.

`--models ARCH=FILE` takes it as any other. The note says which variant it was trained on and
how, what to normalise with, and every image it has seen, so that a test on one of these is
noticed, wherever the file is copied to.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobError
from pipeline.models.preprocessing import Preprocessing
from pipeline.storage.files import files_of
from pipeline.storage.store import FileDigest, Store
from transforms.taxonomy import Taxonomy

if TYPE_CHECKING:
    import torch

FORMAT = "imagenet9 checkpoint"
FORMAT_VERSION = 1
SUFFIX = ".safetensors"

_NOTE, _KEYS = "in9", "in9_keys"
_LENGTH = 8
_LONGEST = 100_000_000
"""Bytes of a header; safetensors allows no more."""


@dataclasses.dataclass(frozen=True)
class TrainedOn:
    """What a checkpoint says of itself.

    Attributes:
      architecture: timm's name, as in `--models ARCH=FILE`.
      variant: of the dataset, or `in9l`.
      dataset: fingerprint of the dataset.
      split: its split.
      classes: `digest_of_classes` of its taxonomy: what the outputs mean.
      preprocessing: what pictures are normalised with.
      keys: of the images it was trained on, sorted; of mixed pictures, the foregrounds.
      method: `train` or `probe`.
      seed: of training.
      epochs: how many, None for a probe.
      holdout: share of the split that was held out, 0 for none.
      holdout_seed: of that choice.
      pretrained: the weights it began with, None for none.
      settings: other settings of the method, fit for JSON.
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

    def __post_init__(self) -> None:
        if list(self.keys) != sorted(set(self.keys)):
            raise ValueError("keys must be sorted, and none of them twice")

    @property
    def keys_digest(self) -> str:
        """Hexadecimal SHA-256 of the keys, one a line."""
        return hashlib.sha256(_joined(self.keys)).hexdigest()

    def note(self) -> dict[str, Any]:
        """Everything but the keys, for which their number and digest stand; fit for JSON."""
        fields = dataclasses.asdict(self)
        del fields["keys"]
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **fields,
            "images": len(self.keys),
            "keys_sha256": self.keys_digest,
        }


def digest_of_classes(taxonomy: Taxonomy) -> str:
    """Tells what nine, or other, outputs mean: the superclasses' names and their classes."""
    content = [taxonomy.names, taxonomy.wnids, taxonomy.labels]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def save_checkpoint(
    store: Store, path: str, state: Mapping[str, torch.Tensor], trained: TrainedOn
) -> FileDigest:
    """Writes a checkpoint: whole, or not at all. The same arguments give the same bytes.

    Args:
      store: a folder.
      path: of the file in it, which ends with `SUFFIX`.
      state: of the module.
      trained: what to note.
    """
    # Only who writes one waits for them.
    import torch
    from safetensors.torch import save

    if not path.endswith(SUFFIX):
        raise ValueError(f"a checkpoint's name ends with {SUFFIX}: got {path!r}")
    keys = base64.b64encode(zlib.compress(_joined(trained.keys), 9)).decode()
    # Tensors that share memory are stored one by one.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }
    # One text: entries of the header have no fixed order.
    note = json.dumps({**trained.note(), _KEYS: keys}, sort_keys=True)
    return store.write(path, save(tensors, {_NOTE: note}))


def read_metadata(path: str) -> TrainedOn | None:
    """What a checkpoint says of itself; reads no tensors.

    Args:
      path: of a file, here or in object storage.

    Returns:
      None for a file that is none of ours.

    Raises:
      OSError: it cannot be read.
      JobError: it is one of ours, and broken.
    """
    header = read_header(path)
    text = header.get("__metadata__", {}).get(_NOTE) if header else None
    if text is None:
        return None
    try:
        note = json.loads(text)
        found = (note["format"], note["format_version"])
        if found != (FORMAT, FORMAT_VERSION):
            raise JobError(f"{path} is {found[0]!r} of version {found[1]}, which is not read here")
        keys = zlib.decompress(base64.b64decode(note.pop(_KEYS))).decode("utf-8", "surrogatepass")
        names = {field.name for field in dataclasses.fields(TrainedOn)} & note.keys()
        fields = {name: note[name] for name in names} | {
            "keys": tuple(keys.split("\n")) if keys else (),
            "preprocessing": Preprocessing.from_settings(
                note["preprocessing"], num_outputs=0, where=path
            ),
        }
        trained = TrainedOn(**fields)
        if trained.keys_digest != note["keys_sha256"]:
            raise JobError(f"{path}: its images are not those that it was written with")
    except (KeyError, TypeError, ValueError, AttributeError, zlib.error) as error:
        raise JobError(f"{path} has a broken note of its training ({error})") from error
    return trained


def metadata_of_entry(entry: str) -> TrainedOn | None:
    """`read_metadata` of the file of an `ARCH=FILE` entry of `--models`; None for all others."""
    architecture, equals, path = entry.partition("=")
    if not equals or ":" in architecture or not path.endswith(SUFFIX):
        return None
    if files_of(path).info(path) is None:
        return None
    return read_metadata(path)


def _joined(keys: Iterable[str]) -> bytes:
    return "\n".join(keys).encode("utf-8", "surrogatepass")


def read_header(path: str) -> dict[str, Any] | None:
    """The header of a safetensors file: dtype and shape of its tensors by name; None for a file
    that is none. Raises OSError if it cannot be read."""
    files = files_of(path)
    info = files.info(path)
    if info is None:
        raise FileNotFoundError(f"there is no file {path}")
    if info.size < _LENGTH:
        return None
    (first,) = files.read_ranges(path, [(0, _LENGTH)])
    length = int.from_bytes(first, "little")
    if not 2 <= length <= min(_LONGEST, info.size - _LENGTH):
        return None
    (data,) = files.read_ranges(path, [(_LENGTH, length)])
    try:
        header = json.loads(data)
    except ValueError:
        return None
    return header if isinstance(header, dict) else None
