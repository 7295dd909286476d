"""The manifest, whose presence makes a dataset valid, and published versions of a dataset.

It does not import Beam, because readers use it, too.
"""

import dataclasses
import os
import re
from importlib import metadata
from typing import Annotated, Any, Literal, Self

import msgspec

from pipeline.dataset.config import COMPOSE_VERSION, IMPORT_VERSION, SEGMENT_VERSION, DatasetConfig
from pipeline.dataset.records import ShardCounts, check_data_paths
from pipeline.errors import UsageError
from pipeline.storage.files import parent
from pipeline.storage.state_files import convert, json_bytes, parse_json, read_commit
from pipeline.storage.store import WORK_FOLDER, FileDigest, Store
from transforms.hashing import fingerprint
from transforms.limits import MAX_STATED
from transforms.taxonomy import Taxonomy
from transforms.variants import VariantName, outside_variant

MANIFEST = "manifest.json"
PREVIOUS_MANIFEST = f"{WORK_FOLDER}/manifest.previous.json"
"""The manifest's place while Commit moves files: if Commit is killed, the next run still knows the
numbers of shards and the configuration."""
FORMAT = "imagenet9-dataset"
FORMAT_VERSION = 1

_REQUIRED_COUNTS = {
    *("listed", "outside_taxonomy", "other_files", "accepted", "rejected", "selected"),
}
"""Names of the counts that a manifest must have for each split."""

_LIBRARIES = ("numba", "numpy", "opencv-python-headless", "pillow", "pyarrow", "simplejpeg")
"""Libraries whose versions can change the files' bytes."""


_Stated = Annotated[str, msgspec.Meta(max_length=MAX_STATED)]


@dataclasses.dataclass(frozen=True)
class About:
    """What only its maker knows of a dataset. Field names are those of flags; "" is not stated.

    `contact` is the address of who maintains it. `terms` are those of its pictures and masks, but
    what stands behind `masks:` is said of the masks alone.
    """

    creator: _Stated = ""
    contact: _Stated = ""
    terms: _Stated = ""


NOTHING_STATED = About()


class StatedFlags(msgspec.Struct, frozen=True):
    """The flags that state `About`; None leaves what was stated before."""

    creator: str | None
    contact: str | None
    terms: str | None


@dataclasses.dataclass(frozen=True)
class Outside:
    """A variant that others have made: fingerprints of what it needs, and of what it is.

    Attributes:
      images: the selected images that it was imported for, and their shards.
      pictures: its pictures' bytes and backgrounds, by split and key.
    """

    images: str
    pictures: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A description of a dataset that lists all of its files.

    Attributes:
      fingerprint: covers inputs, configuration, stage versions, and pictures from outside.
      images: by split, the numbers `listed`, `outside_taxonomy`, `other_files`, `accepted`,
        `rejected` and `selected`. With `--objects each` the last three count objects, and there is
        also `objects`, the number of accepted and rejected objects. `of_sample`, the number of
        selected images that belong to the embedded sample, appears only if it is not 0.
      rejections: by split and reason, the number of images or objects.
      samples: by split, variant and class name, the number of samples.
      files: all files of the dataset except the manifest, in order of path.
      stages: `stage_versions` when the dataset was made; ignored when manifests are compared.
      taxonomy: its classes and superclasses, None for ImageNet-9's.
      backgrounds: number of scenes by status; empty if none are used.
      unmatched: by split, a line on classes that only the input has, or only the taxonomy.
      about: what its maker states; no part of the fingerprint.
      outside: the variants that others have made, by name; the configuration does not name them.
      made: the fingerprint that it would have without these; "" if it has none.
    """

    config: DatasetConfig
    fingerprint: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    libraries: dict[str, str]
    shards: dict[str, ShardCounts]
    images: dict[str, dict[str, int]]
    rejections: dict[str, dict[str, int]]
    samples: dict[str, dict[str, dict[str, int]]]
    files: tuple[FileDigest, ...]
    stages: dict[str, int | str] = dataclasses.field(compare=False)
    taxonomy: Taxonomy | None = None
    backgrounds: dict[str, int] = dataclasses.field(default_factory=dict)
    unmatched: dict[str, _Stated] = dataclasses.field(default_factory=dict)
    about: About = NOTHING_STATED
    outside: dict[str, Outside] = dataclasses.field(default_factory=dict)
    made: str = ""

    def __hash__(self) -> int:
        """Hashes the fingerprint, so that what is planned for a dataset can be cached."""
        return hash(self.fingerprint)

    @property
    def is_sample(self) -> bool:
        """Whether all of its images are the sample images that ship with the package."""
        selected, of_sample = (
            sum(images.get(name, 0) for images in self.images.values())
            for name in ("selected", "of_sample")
        )
        return 0 < selected == of_sample

    @property
    def variants(self) -> tuple[VariantName, ...]:
        """Its variants: those composed, in the paper's order, then those from outside by name."""
        return (
            *self.config.compose.composed,
            *(outside_variant(n, self.config.compose.variants) for n in sorted(self.outside)),
        )

    def files_of(self, *variants: str) -> list[FileDigest]:
        """Returns the files with samples of some variants."""
        return [file for file in self.files if parent(file.path).partition("/")[2] in variants]

    def with_outside(self, outside: dict[str, Outside], *files: FileDigest) -> Self:
        """Returns the manifest with these variants from outside, and their files, for its own."""
        made, every = self.made or self.fingerprint, [*map(str, self.config.compose.composed)]
        return dataclasses.replace(
            self,
            fingerprint=fingerprint(made, {n: one.pictures for n, one in outside.items()})
            if outside
            else made,
            samples={
                split: dict.fromkeys([*every, *outside], numbers[every[0]])
                for split, numbers in self.samples.items()
            },
            files=tuple(
                sorted(
                    {*self.files}.difference(self.files_of(*self.outside)).union(files),
                    key=lambda file: file.path,
                )
            ),
            outside=outside,
            made=made if outside else "",
        )

    @property
    def counted_noun(self) -> str:
        """The noun for what `accepted`, `rejected` and `selected` count: images or objects."""
        return "objects" if self.config.segment.objects == "each" else "images"

    def to_json(self) -> bytes:
        """Returns the manifest file's bytes, the same for equal manifests with equal `stages`."""
        has_segmenter = not (self.config.is_imported or self.config.segment.keeps_image_whole)
        segmenter = self.config.segment.describe_segmenter()
        described = {
            "method": segmenter.method,
            "version": segmenter.version,
            "parameters": segmenter.parameters,
        }
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "config": self.config.flags(),
            "fingerprint": self.fingerprint,
            "stages": self.stages,
            # Without masks there is none, and the origin of imported masks is unknown.
            **({"segmenter": described} if has_segmenter else {}),
            "libraries": self.libraries,
            "shards": {split: dataclasses.asdict(c) for split, c in self.shards.items()},
            "images": self.images,
            "rejections": self.rejections,
            "samples": self.samples,
            **({"backgrounds": self.backgrounds} if self.backgrounds else {}),
            **({"unmatched": self.unmatched} if self.unmatched else {}),
            **({"taxonomy": self.taxonomy.to_json()} if self.taxonomy else {}),
            **({"about": dataclasses.asdict(self.about)} if self.about != NOTHING_STATED else {}),
            **(
                {
                    "made": self.made,
                    "outside": {n: dataclasses.asdict(one) for n, one in self.outside.items()},
                }
                if self.outside
                else {}
            ),
            "files": [dataclasses.asdict(file) for file in self.files],
        }
        return json_bytes(content)

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parses a manifest file's bytes.

        Raises NotJsonError if they are not JSON; ValueError, which says why, if they are not a
        manifest of this release.
        """
        content = parse_json(data, dict[str, Any])
        header = convert(content, _FormatSchema)
        if (header.format, header.format_version) != (FORMAT, FORMAT_VERSION):
            raise ValueError(
                f"it has format {header.format!r} version {header.format_version}, but this "
                f"release reads {FORMAT!r} version {FORMAT_VERSION}; use the release that made it, "
                "or another folder"
            )
        # Finished, because the file has the configuration as flat flags.
        match content:
            case {"config": dict(flags)}:
                content |= {"config": DatasetConfig.from_flags(flags)}
        manifest = convert(content, cls)
        _check(manifest)
        return manifest


@dataclasses.dataclass(frozen=True)
class _FormatSchema:
    format: str
    format_version: int


def _check(stored: Manifest) -> None:
    """Checks that a manifest's parts are consistent with each other. Raises ValueError if not."""
    config = stored.config
    check_data_paths(stored.files)
    for name in ("shards", "images", "rejections", "samples"):
        if set(getattr(stored, name)) != set(config.split):
            raise ValueError(f"{name} must have the splits {', '.join(config.split)}")
    for split in config.split:
        if missing := _REQUIRED_COUNTS - set(stored.images[split]):
            raise ValueError(f"images of {split} lack {', '.join(sorted(missing))}")
        if set(stored.samples[split]) != set(map(str, stored.variants)):
            raise ValueError(f"samples of {split} must have the variants of the dataset")


def stage_versions(config: DatasetConfig) -> dict[str, int | str]:
    """Returns the versions of stages and the fingerprint of the layers' configuration.

    From them, a later release can tell whether it would produce the same files.
    """
    if config.is_imported:
        return {"import": IMPORT_VERSION}
    return {
        "segment": SEGMENT_VERSION,
        "segment_fingerprint": config.segment.fingerprint(),
        "compose": COMPOSE_VERSION,
    }


def library_versions() -> dict[str, str]:
    """Returns the installed versions of the libraries that can change the files' bytes."""
    return {name: metadata.version(name) for name in _LIBRARIES}


def read_manifest(store: Store, path: str = MANIFEST) -> Manifest | None:
    """Reads a folder's manifest, or `PREVIOUS_MANIFEST`; returns None if it is missing or not JSON.

    Raises UsageError if the file is not a manifest of this release.
    """
    return read_commit(store, path, Manifest.from_json)


def stated(flags: StatedFlags, manifest: Manifest | None) -> About:
    """Returns what a manifest states, with the values of those flags that were given."""
    about = manifest.about if manifest else NOTHING_STATED
    given = msgspec.structs.asdict(flags).items()
    return dataclasses.replace(about, **{name: v for name, v in given if v is not None})


def last_manifest(store: Store) -> Manifest | None:
    """Reads the manifest in place, or else the one that a commit has moved aside."""
    return read_manifest(store) or read_manifest(store, PREVIOUS_MANIFEST)


LATEST = "latest.json"
PUBLISH_LOCK = f"{WORK_FOLDER}/lock-publish"
"""Lock in the folder of the versions, held by the job that publishes."""
VERSION = re.compile(r"v-[0-9a-f]{12}")
VersionName = Annotated[str, msgspec.Meta(pattern=rf"\A{VERSION.pattern}\Z")]
"""Folder of a version. No other folder is ever published to, or removed."""


@dataclasses.dataclass(frozen=True)
class Latest:
    """The content of `latest.json`: the newest fingerprint, and version folders, newest first."""

    fingerprint: str
    versions: Annotated[tuple[VersionName, ...], msgspec.Meta(min_length=1)]
    format: Literal["imagenet9-latest"] = "imagenet9-latest"

    def to_json(self) -> bytes:
        content = {
            "format": self.format,
            "version": self.versions[0],
            "fingerprint": self.fingerprint,
            "manifest": f"{self.versions[0]}/{MANIFEST}",
            "versions": self.versions,
        }
        return json_bytes(content)


def read_latest(folder: Store) -> Latest | None:
    """Reads `latest.json`; None if missing or not JSON, UsageError if of another structure."""
    return read_commit(folder, LATEST, _parse)


def _parse(data: bytes) -> Latest:
    latest = parse_json(data, Latest)
    if parse_json(data, dict[str, Any]) != parse_json(latest.to_json(), dict[str, Any]):
        raise ValueError("its parts do not belong together")
    return latest


def finished_versions(folder: Store) -> list[str]:
    """Lists the folders of complete versions, which have a manifest, the newest first.

    Versions that `latest.json` lacks, because it was damaged or a job was killed before writing it,
    follow the listed ones, by the time of their manifests. But an unlisted version that is older
    than `latest.json` was taken off the list, and counts as removed.
    """
    latest = read_latest(folder)
    info = folder.files.info(folder.path(LATEST)) if latest else None
    since = info.time if info else 0.0
    times = {
        name: info.time
        for name in folder.files.folder_names(folder.root)
        if VERSION.fullmatch(name)
        and (info := folder.files.info(folder.path(f"{name}/{MANIFEST}"))) is not None
    }
    listed = [name for name in (latest.versions if latest else ()) if name in times]
    others = [name for name in times.keys() - set(listed) if times[name] >= since]
    return listed + sorted(others, key=lambda name: (-times[name], name))


def reading_store(dataset: str) -> Store:
    """Returns the dataset to read: a folder, or the newest version in one of published versions."""
    folder = Store.at(dataset)
    latest = read_latest(folder)
    if latest is not None:
        return folder.below(latest.versions[0])
    # If `latest.json` exists here, it is damaged.
    versions = finished_versions(folder) if folder.exists(LATEST) else ()
    return folder.below(versions[0]) if versions else folder


def writing_store(flag: str, path: str) -> Store:
    """Returns the folder that a flag names, for writing.

    Raises UsageError if the folder holds published versions, or is a published version.
    """
    store = Store.at(path)
    if store.exists(LATEST):
        raise UsageError(
            f"--{flag} {store.root} holds published versions; name the dataset that they are "
            "published from"
        )
    root = store.root if store.is_remote else os.path.realpath(store.root)
    if VERSION.fullmatch(root.rpartition("/")[2]) and Store(parent(root)).exists(LATEST):
        raise UsageError(
            f"--{flag} {store.root} is a published version, which stays as it is; name the "
            "dataset that it was published from"
        )
    return store
