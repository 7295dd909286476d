"""The manifest: a dataset is valid as long as it is there."""

from __future__ import annotations

import dataclasses
import json
from importlib import metadata
from typing import Annotated, Any

import msgspec

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.fingerprints import COMPOSE_VERSION, IMPORT_VERSION, SEGMENT_VERSION
from pipeline.dataset.shards import ShardCounts, check_data_paths
from pipeline.storage.state_files import parse_json, read_commit
from pipeline.storage.store import WORK_FOLDER, FileDigest, Store
from transforms.taxonomy import Taxonomy

MANIFEST = "manifest.json"
PREVIOUS_MANIFEST = f"{WORK_FOLDER}/manifest.previous.json"
"""Where the manifest waits while Commit puts files in place: if it is killed, the next run
still knows the numbers of shards and the configuration."""
FORMAT = "imagenet9-dataset"
FORMAT_VERSION = 1

_COUNTED = {
    *("listed", "outside_taxonomy", "other_files", "accepted", "rejected", "selected"),
}
"""Numbers of images that every manifest has of a split."""

_LIBRARIES = ("numba", "numpy", "opencv-python-headless", "pillow", "pyarrow")
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
        count; and `of_sample`, if pictures of the embedded sample are among those selected.
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

    @property
    def is_sample(self) -> bool:
        """Whether all of its images are the embedded sample's."""
        selected, of_sample = (
            sum(images.get(name, 0) for images in self.images.values())
            for name in ("selected", "of_sample")
        )
        return 0 < selected == of_sample

    @property
    def counted(self) -> str:
        """What `accepted`, `rejected` and `selected` count: images, or objects that images show."""
        return "objects" if self.config.segment.objects == "each" else "images"

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
        """The inverse of `to_json`.

        Raises:
          NotJsonError: it is no JSON.
          ValueError: it is no manifest of this release; the message says why.
        """
        content = parse_json(data, dict[str, Any])
        about = msgspec.convert(content, _FormatSchema)
        if (about.format, about.format_version) != (FORMAT, FORMAT_VERSION):
            raise ValueError(
                f"format {about.format!r} version {about.format_version}, where this release "
                f"reads {FORMAT!r} version {FORMAT_VERSION}; use the release that made it, or "
                "another folder"
            )
        stored = msgspec.convert(content, _ManifestSchema)
        config = DatasetConfig.from_flags(stored.config)
        _check(stored, config)
        return cls(
            config=config,
            fingerprint=stored.fingerprint,
            libraries=stored.libraries,
            shards=stored.shards,
            images=stored.images,
            rejections=stored.rejections,
            samples=stored.samples,
            files=stored.files,
            stages=stored.stages,
            taxonomy=stored.taxonomy,
            backgrounds=stored.backgrounds,
        )


@dataclasses.dataclass(frozen=True)
class _FormatSchema:
    format: str
    format_version: int


@dataclasses.dataclass(frozen=True)
class _ManifestSchema:
    """The manifest file's types."""

    config: dict[str, Any]
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    libraries: dict[str, str]
    shards: dict[str, ShardCounts]
    images: dict[str, dict[str, int]]
    rejections: dict[str, dict[str, int]]
    samples: dict[str, dict[str, dict[str, int]]]
    files: tuple[FileDigest, ...]
    stages: dict[str, int | str]
    taxonomy: Taxonomy | None = None
    backgrounds: dict[str, int] = dataclasses.field(default_factory=dict)


def _check(stored: _ManifestSchema, config: DatasetConfig) -> None:
    """Makes sure that a manifest's parts belong together. Raises ValueError."""
    check_data_paths(stored.files)
    splits = set(config.split)
    for name in ("shards", "images", "rejections", "samples"):
        if set(getattr(stored, name)) != splits:
            raise ValueError(f"{name} must have the splits {', '.join(config.split)}")
    for split in config.split:
        if lacking := _COUNTED - set(stored.images[split]):
            raise ValueError(f"images of {split} lack {', '.join(sorted(lacking))}")
        if set(stored.samples[split]) != set(config.compose.composed):
            raise ValueError(f"samples of {split} must have the variants of its configuration")


def _segmenter(config: DatasetConfig) -> dict[str, Any]:
    """What made the masks, if there are any; of an imported dataset nobody here knows."""
    if config.is_imported or config.segment.is_whole:
        return {}
    found = config.segment.describe_segmenter()
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
    """The manifest of a dataset folder; None if there is none, or it is no JSON.

    Args:
      store: the dataset folder.
      path: `MANIFEST`, or `PREVIOUS_MANIFEST`.

    Raises:
      UsageError: there is a file of that name that is no manifest of this release.
    """
    return read_commit(store, path, Manifest.from_json)
