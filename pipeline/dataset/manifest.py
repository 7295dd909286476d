"""The manifest: a dataset is valid as long as it is there."""

from __future__ import annotations

import dataclasses
import json
from importlib import metadata
from typing import Any

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.fingerprints import COMPOSE_VERSION, IMPORT_VERSION, SEGMENT_VERSION
from pipeline.dataset.shards import ShardCounts
from pipeline.errors import UsageError
from pipeline.storage.store import WORK_FOLDER, FileDigest, Store
from transforms.taxonomy import Taxonomy

MANIFEST = "manifest.json"
PREVIOUS_MANIFEST = f"{WORK_FOLDER}/manifest.previous.json"
"""Where the manifest waits while Commit puts files in place: if it is killed, the next run
still knows the numbers of shards and the configuration."""
FORMAT = "imagenet9-dataset"
FORMAT_VERSION = 1

_LIBRARIES = ("numpy", "opencv-python-headless", "pillow", "pyarrow")
"""Libraries whose version can change bytes."""


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a dataset is, and every file of it.

    Attributes:
      config: the configuration.
      fingerprint: of inputs, configuration and stage versions.
      libraries: versions of the libraries that made the files.
      shards: by split, the numbers of shards.
      images: by split: `listed`, `outside_taxonomy`, `other_files`, `accepted`,
        `rejected`, `selected`; with `--objects each`, `objects` as well, which the last three
        count.
      rejections: by split, number of images, or objects, by reason.
      samples: by split, variant and class name, number of samples.
      files: all files of the dataset but the manifest, in order of their path.
      taxonomy: its classes and superclasses, None for ImageNet-9's.
      backgrounds: number of pictures of scenes by status, empty without any.
      stages: of `stage_versions`, when it was made; no part of what datasets are compared by.
    """

    config: DatasetConfig
    fingerprint: str
    libraries: dict[str, str]
    shards: dict[str, ShardCounts]
    images: dict[str, dict[str, int]]
    rejections: dict[str, dict[str, int]]
    samples: dict[str, dict[str, dict[str, int]]]
    files: tuple[FileDigest, ...]
    stages: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False)
    taxonomy: Taxonomy | None = None
    backgrounds: dict[str, int] = dataclasses.field(default_factory=dict)

    def to_json(self) -> bytes:
        """The manifest file's bytes: the same for equal manifests."""
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": self.config.flags(),
            "fingerprint": self.fingerprint,
            "stages": self.stages,
            **_segmenter(self.config),
            "libraries": self.libraries,
            "shards": {split: dataclasses.asdict(c) for split, c in self.shards.items()},
            "images": self.images,
            "rejections": self.rejections,
            "samples": self.samples,
            **({"backgrounds": self.backgrounds} if self.backgrounds else {}),
            **({"taxonomy": self.taxonomy.to_json()} if self.taxonomy else {}),
            "files": [dataclasses.asdict(file) for file in self.files],
        }
        return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """The inverse of `to_json`. Raises ValueError for anything else."""
        try:
            content: dict[str, Any] = json.loads(data)
            if content["format"] != FORMAT or content["format_version"] != FORMAT_VERSION:
                raise ValueError(
                    f"format {content['format']!r} version {content['format_version']}, "
                    f"where this release reads {FORMAT!r} version {FORMAT_VERSION}; use the "
                    "release that made it, or another folder"
                )
            return cls(
                config=DatasetConfig.from_flags(content["config"]),
                fingerprint=content["fingerprint"],
                libraries=content["libraries"],
                shards={s: ShardCounts(**counts) for s, counts in content["shards"].items()},
                images=content["images"],
                rejections=content["rejections"],
                samples=content["samples"],
                files=tuple(FileDigest(**file) for file in content["files"]),
                stages=content["stages"],
                backgrounds=content.get("backgrounds", {}),
                taxonomy=Taxonomy.from_json(content["taxonomy"]) if "taxonomy" in content else None,
            )
        except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"not a manifest: {type(error).__name__} {error}. If it is damaged, remove it, "
                "and run the command that made the dataset again"
            ) from error


def _segmenter(config: DatasetConfig) -> dict[str, Any]:
    """What made the masks, if there are any; of an imported dataset nobody here knows."""
    if config.is_imported or config.segment.is_whole:
        return {}
    found = config.segment.find_segmenter()
    about = {"method": found.method, "version": found.version, "parameters": found.parameters}
    return {"segmenter": about}


def stage_versions(config: DatasetConfig) -> dict[str, Any]:
    """What says whether the code would make the same files again: versions of the stages, and
    the fingerprint of how layers are made."""
    if config.is_imported:
        return {"import": IMPORT_VERSION}
    return {
        "segment": SEGMENT_VERSION,
        "segment_fingerprint": config.segment.fingerprint(),
        "compose": COMPOSE_VERSION,
    }


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that decide bytes."""
    return {name: metadata.version(name) for name in _LIBRARIES}


def read_manifest(store: Store, path: str = MANIFEST) -> Manifest | None:
    """The manifest of a dataset folder, None if there is none.

    Args:
      store: the dataset folder.
      path: `MANIFEST`, or `PREVIOUS_MANIFEST`.

    Raises:
      UsageError: there is a file of that name that is no manifest of this release.
    """
    if not store.exists(path):
        return None
    try:
        return Manifest.from_json(store.read(path))
    except ValueError as error:
        raise UsageError(f"{store.path(path)} cannot be used: {error}") from error
