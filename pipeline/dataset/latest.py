"""Published versions of a dataset: finding them, and refusing to write to them.

This module does not import Beam, because readers use it, too. `pipeline.jobs.publish` makes the
versions.
"""

from __future__ import annotations

import dataclasses
import os
import posixpath
import re
from typing import Annotated, Any, Literal

import msgspec

from pipeline.dataset.manifest import MANIFEST
from pipeline.errors import UsageError
from pipeline.storage.files import parent
from pipeline.storage.state_files import json_bytes, parse_json, read_commit
from pipeline.storage.store import WORK_FOLDER, Store

LATEST = "latest.json"
PUBLISH_LOCK = f"{WORK_FOLDER}/lock-publish"
"""Lock in the folder of the versions, held by the job that publishes."""
VERSION = re.compile(r"v-[0-9a-f]{12}")
VersionName = Annotated[str, msgspec.Meta(pattern=rf"\A{VERSION.pattern}\Z")]
"""Folder of a version. No other folder is ever published to, or removed."""


@dataclasses.dataclass(frozen=True)
class Latest:
    """The content of `latest.json`.

    Attributes:
      fingerprint: fingerprint of the dataset in the newest version.
      versions: names of the versions' folders, the newest first.
    """

    fingerprint: str
    versions: Annotated[tuple[VersionName, ...], msgspec.Meta(min_length=1)]
    format: Literal["imagenet9-latest"] = "imagenet9-latest"

    def to_json(self) -> bytes:
        """Returns the file's bytes."""
        content = {
            "format": self.format,
            "version": self.versions[0],
            "fingerprint": self.fingerprint,
            "manifest": f"{self.versions[0]}/{MANIFEST}",
            "versions": self.versions,
        }
        return json_bytes(content)


def read_latest(folder: Store) -> Latest | None:
    """Reads `latest.json` of a folder; returns None if it is missing or not JSON.

    Raises:
      UsageError: its content has another structure.
    """
    return read_commit(folder, LATEST, _parse)


def _parse(data: bytes) -> Latest:
    latest = parse_json(data, Latest)
    if parse_json(data, dict[str, Any]) != parse_json(latest.to_json(), dict[str, Any]):
        raise ValueError("its parts do not belong together")
    return latest


def finished_versions(folder: Store) -> list[str]:
    """Lists the folders of complete versions, which have a manifest, the newest first.

    `latest.json` may lack versions, because it was damaged, or because a job was killed before
    writing it. Such versions follow the listed ones, by the time of their manifests. But an
    unlisted version that is older than `latest.json` was taken off the list, and counts as removed.
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
    """Returns the dataset to read for a folder that a user named: the folder itself, or the newest
    version in a folder of published versions."""
    folder = Store.at(dataset)
    latest = read_latest(folder)
    if latest is not None:
        return folder.below(latest.versions[0])
    # If `latest.json` exists here, it is damaged.
    versions = finished_versions(folder) if folder.exists(LATEST) else ()
    return folder.below(versions[0]) if versions else folder


def writing_store(flag: str, path: str) -> Store:
    """Returns the folder that a flag names, for writing.

    Raises:
      UsageError: the folder holds published versions, or is a published version.
    """
    store = Store.at(path)
    if store.exists(LATEST):
        raise UsageError(
            f"--{flag} {store.root} holds published versions; name the dataset that they are "
            "published from"
        )
    root = store.root if store.is_remote else os.path.realpath(store.root)
    if VERSION.fullmatch(posixpath.basename(root)) and Store(parent(root)).exists(LATEST):
        raise UsageError(
            f"--{flag} {store.root} is a published version, which stays as it is; name the "
            "dataset that it was published from"
        )
    return store
