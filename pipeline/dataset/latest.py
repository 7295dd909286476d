"""Which folder of a versioned output is the newest, and which one jobs work on.

Without Beam: readers need this, too. What makes versions is in `pipeline.command_line.versions`.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, Literal

import msgspec

from pipeline.dataset.manifest import MANIFEST, PREVIOUS_MANIFEST, Manifest, read_manifest
from pipeline.storage.state_files import parse_json, read_commit
from pipeline.storage.store import WORK_FOLDER, Store

LATEST = "latest.json"
WORKING = f"{WORK_FOLDER}/dataset"
"""Folder of the dataset that jobs work on."""
VersionName = Annotated[str, msgspec.Meta(pattern=r"\Av-[0-9a-f]{12}\Z")]
"""Folder of a version; nothing else is ever published to, or removed."""


@dataclasses.dataclass(frozen=True)
class Latest:
    """What `latest.json` says.

    Attributes:
      fingerprint: of the newest version.
      versions: folders, the newest first.
    """

    fingerprint: str
    versions: Annotated[tuple[VersionName, ...], msgspec.Meta(min_length=1)]
    format: Literal["imagenet9-latest"] = "imagenet9-latest"

    @property
    def folder(self) -> str:
        """Of the newest version."""
        return self.versions[0]

    def to_json(self) -> bytes:
        """The file's bytes."""
        content = {
            "format": self.format,
            "version": self.folder,
            "fingerprint": self.fingerprint,
            "manifest": f"{self.folder}/{MANIFEST}",
            "versions": self.versions,
        }
        return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


@dataclasses.dataclass(frozen=True)
class Versions:
    """A versioned output.

    Attributes:
      output: its folder.
      keep: how many versions stay beside the newest, None for all.
    """

    output: Store
    keep: int | None = None

    @property
    def working(self) -> Store:
        """The dataset that jobs work on."""
        return self.output.below(WORKING)

    def latest(self) -> Latest | None:
        """The newest version; None if there is none yet, or `latest.json` is no JSON.

        Raises:
          UsageError: `latest.json` is of another kind.
        """
        return read_commit(self.output, LATEST, lambda data: parse_json(data, Latest))

    def newest(self) -> Store | None:
        """The folder of the newest version, None if there is none yet."""
        latest = self.latest()
        return None if latest is None else self.output.below(latest.folder)

    def manifest(self) -> Manifest | None:
        """Of the dataset that jobs work on, or of the newest version if that has gone."""
        there = read_manifest(self.working) or read_manifest(self.working, PREVIOUS_MANIFEST)
        newest = self.newest()
        return there or (None if newest is None else read_manifest(newest))


def is_versioned(output: Store) -> bool:
    """Whether a folder is a versioned output."""
    return output.exists(LATEST) or output.has_folder(WORKING)


def reading_store(dataset: str) -> Store:
    """The dataset behind a folder that a user named, to read: of versions, the newest."""
    output = Store.at(dataset)
    newest = Versions(output).newest() if is_versioned(output) else None
    return newest or output
