"""Published versions of a dataset: which folders they are, and that nothing writes to them.

Without Beam: readers need this, too. What publishes is `pipeline.jobs.publish`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import posixpath
import re
from typing import Annotated, Any, Literal

import msgspec

from pipeline.dataset.manifest import MANIFEST
from pipeline.errors import UsageError
from pipeline.storage.files import parent
from pipeline.storage.state_files import parse_json, read_commit
from pipeline.storage.store import WORK_FOLDER, Store

LATEST = "latest.json"
PUBLISH_LOCK = f"{WORK_FOLDER}/lock-publish"
"""Held by who publishes, in the folder of the versions."""
VERSION = re.compile(r"v-[0-9a-f]{12}")
VersionName = Annotated[str, msgspec.Meta(pattern=rf"\A{VERSION.pattern}\Z")]
"""Folder of a version; nothing else is ever published to, or removed."""


@dataclasses.dataclass(frozen=True)
class Latest:
    """What `latest.json` says.

    Attributes:
      fingerprint: of the dataset that the newest version holds.
      versions: folders, the newest first.
    """

    fingerprint: str
    versions: Annotated[tuple[VersionName, ...], msgspec.Meta(min_length=1)]
    format: Literal["imagenet9-latest"] = "imagenet9-latest"

    def to_json(self) -> bytes:
        """The file's bytes."""
        content = {
            "format": self.format,
            "version": self.versions[0],
            "fingerprint": self.fingerprint,
            "manifest": f"{self.versions[0]}/{MANIFEST}",
            "versions": self.versions,
        }
        return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def read_latest(place: Store) -> Latest | None:
    """What `latest.json` of a folder says; None if it is not there, or no JSON.

    Raises:
      UsageError: it is of another kind.
    """
    return read_commit(place, LATEST, _parse)


def _parse(data: bytes) -> Latest:
    latest = parse_json(data, Latest)
    if parse_json(data, dict[str, Any]) != parse_json(latest.to_json(), dict[str, Any]):
        raise ValueError("its parts do not belong together")
    return latest


def finished_versions(place: Store) -> list[str]:
    """Folders of the versions that have a manifest, so are whole, the newest first.

    Those that `latest.json` does not list, since it was damaged or a job was killed before it wrote
    it, come behind the others, by the time of their manifest. One that is older than that file was
    taken off its list, and counts as removed.
    """
    latest = read_latest(place)
    info = place.files.info(place.path(LATEST)) if latest else None
    since = info.time if info else 0.0
    listed = latest.versions if latest else ()
    times = {
        name: info.time
        for name in place.files.folders(place.root)
        if VERSION.fullmatch(name)
        and (info := place.files.info(place.path(f"{name}/{MANIFEST}"))) is not None
    }
    found = [name for name in listed if name in times]
    others = [name for name in times.keys() - set(found) if times[name] >= since]
    return found + sorted(others, key=lambda name: (-times[name], name))


def reading_store(dataset: str) -> Store:
    """The dataset behind a folder that a user named, to read: of versions, the newest."""
    place = Store.at(dataset)
    latest = read_latest(place)
    if latest is not None:
        return place.below(latest.versions[0])
    # Damaged, if it is there.
    found = finished_versions(place) if place.exists(LATEST) else ()
    return place.below(found[0]) if found else place


def writing_store(flag: str, path: str) -> Store:
    """The folder that a flag names, to write into.

    Raises:
      UsageError: it holds published versions, or is one.
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
