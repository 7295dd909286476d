"""Versions: with `--versioned`, every change of a dataset is a folder of its own.

OUTPUT/latest.json        which version is the newest; written last
OUTPUT/v-<fingerprint>/   a version: a whole dataset with its results, for reading
OUTPUT/.in9/dataset/      the dataset that jobs work on

Jobs know nothing of versions but for their last step, `publish`, which copies what is new. The
store copies without reading (on one machine by hard links), so what has not changed costs a
version nothing to make.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from pipeline.changes import CHANGES, CHANGES_TEXT
from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import (
    LATEST,
    WORKING,
    Latest,
    VersionName,
    Versions,
    is_versioned,
)
from pipeline.dataset.manifest import MANIFEST, PREVIOUS_MANIFEST, read_manifest
from pipeline.errors import UsageError
from pipeline.report import REPORT
from pipeline.storage.files import FileInfo, relative
from pipeline.storage.lock import held
from pipeline.storage.state_files import read_json
from pipeline.storage.store import WORK_FOLDER, Store

PUBLISH_LOCK = f"{WORK_FOLDER}/lock-publish"
_UNFINISHED = f"{WORK_FOLDER}/publishing.json"
"""Names the version that is being copied, so that one that a killed job left is removed."""
_LOCK_SECONDS = 600.0


def results_store(dataset: str) -> tuple[Store, Versions | None]:
    """The dataset behind a folder that a user named, to add results to, and the versions that
    are to be published then, if it has any.

    Raises:
      UsageError: it has versions, but what jobs work on has gone.
    """
    output = Store.at(dataset)
    if not is_versioned(output):
        return output, None
    versions = Versions(output)
    if read_manifest(versions.working) is None:
        raise UsageError(
            f"{output.root} has versions, but no finished dataset in {WORKING}; "
            "in9 run --versioned with the flags that made it brings that back"
        )
    return versions.working, versions


def check_versioned(output: Store, versioned: bool, keep: int | None) -> Versions | None:
    """Checks `--versioned` and `--keep` against what is in the output folder.

    Returns:
      The versions, None without `--versioned`.

    Raises:
      UsageError: a dataset would get versions that has none, or lose them.
    """
    if keep is not None and keep < 0:
        raise UsageError(f"--keep must be at least 0: got {keep}")
    if not versioned:
        if keep is not None:
            raise UsageError("--keep is for outputs with --versioned")
        if is_versioned(output):
            raise UsageError(f"--output {output.root} holds versions; add --versioned")
        return None
    if any(output.exists(path) for path in (MANIFEST, PREVIOUS_MANIFEST)):
        raise UsageError(
            f"--output {output.root} holds a dataset without versions; leave --versioned out, "
            "or choose another folder"
        )
    return Versions(output, keep)


def output_store(output: str, versioned: bool, keep: int | None) -> tuple[Store, Versions | None]:
    """The dataset that a job makes in the output folder that a user named, and its versions, if
    any; checks and errors as `check_versioned`."""
    store = Store.at(output)
    versions = check_versioned(store, versioned, keep)
    return (store if versions is None else versions.working), versions


def page_folder(store: Store, versions: Versions | None) -> Store:
    """The folder whose page people look at: of the newest version, if there are any."""
    newest = None if versions is None else versions.newest()
    return newest or store


def describe_versions(versions: Versions) -> str:
    """A closing line: which version is the newest now."""
    latest = versions.latest()
    if latest is None:
        return "version: none yet"
    older = len(latest.versions) - 1
    return f"version: {versions.output.path(latest.folder)} (older ones: {older})"


def version_name(fingerprint: str) -> str:
    """Folder of the version with this fingerprint."""
    return f"v-{fingerprint[:12]}"


def seed(versions: Versions) -> bool:
    """Copies the newest version to where jobs work, if nothing is there; returns whether it
    did. The manifest is last: what is copied in part is copied again."""
    working, newest = versions.working, versions.newest()
    missing = not any(working.exists(path) for path in (MANIFEST, PREVIOUS_MANIFEST))
    if newest is None or not missing:
        return False
    paths = [path for path in _files(newest, "") if path != MANIFEST]
    newest.copy_into(working, [(path, path) for path in paths])
    newest.copy_into(working, [(MANIFEST, MANIFEST)])
    return True


class Published(NamedTuple):
    """What was published: the version's folder, how many files were copied into it, and whether
    there was anything to do."""

    folder: str
    files: int
    is_new: bool


def publish(versions: Versions) -> Published:
    """Makes the present dataset and its results the newest version. Repeatable.

    Raises:
      UsageError: there is no finished dataset.
    """
    dataset = Dataset.open(versions.working)
    fingerprint = dataset.manifest.fingerprint
    name = version_name(fingerprint)
    with held(versions.output, PUBLISH_LOCK, wait=_LOCK_SECONDS):
        latest = versions.latest()
        older = () if latest is None else tuple(v for v in latest.versions if v != name)
        _begin(versions, name, older)
        copied, changed = _copy_version(dataset, versions.output.below(name))
        kept = older if versions.keep is None else older[: versions.keep]
        now = Latest(fingerprint, (name, *kept))
        changed |= versions.output.update(LATEST, now.to_json(), durable=True)
        for folder in older[len(kept) :]:
            _remove(versions.output, folder)
        versions.output.delete(_UNFINISHED)
    return Published(name, copied, changed)


def _begin(versions: Versions, name: str, older: tuple[str, ...]) -> None:
    """Notes which version is being made, and removes one that a killed job left half-made."""
    output = versions.output
    left = read_json(output, _UNFINISHED, VersionName)
    if left is not None and left not in (name, *older):
        _remove(output, left)
    if name not in (latest.versions if (latest := versions.latest()) else ()):
        output.update(_UNFINISHED, json.dumps(name).encode(), durable=True)


def _remove(output: Store, folder: str) -> None:
    """Removes a version, first its manifest: it is whole as long as that is there."""
    output.delete(f"{folder}/{MANIFEST}")
    output.delete_tree(folder)


def _copy_version(dataset: Dataset, version: Store) -> tuple[int, bool]:
    """Copies what a version lacks of a dataset, the manifest last, and removes what it has
    beyond it; returns how many files were copied, and whether there was anything to do."""
    store = dataset.store
    there = _files(version, "")
    old = read_manifest(version)
    known = {} if old is None else {file.path: file for file in old.files}
    wanted = {file.path: file for file in dataset.manifest.files}
    copies = [
        path
        for path, file in wanted.items()
        if path not in there or there[path].size != file.bytes or known.get(path, file) != file
    ]
    results = _files(store, "results")
    for path in (REPORT, CHANGES, CHANGES_TEXT):
        info = store.files.info(store.path(path))
        if info is not None:
            results[path] = info
    copies += [
        path
        for path, info in results.items()
        if path not in there or not _same(store, version, path, info, there[path])
    ]
    is_new = old is None or version.read(MANIFEST) != store.read(MANIFEST)
    if is_new:
        version.delete(MANIFEST)
    store.copy_into(version, [(path, path) for path in copies])
    obsolete = there.keys() - wanted.keys() - results.keys() - {MANIFEST}
    version.delete_all(sorted(obsolete))
    version.prune("results")
    if is_new:
        store.copy_into(version, [(MANIFEST, MANIFEST)])
    return len(copies), bool(copies or obsolete or is_new)


def _files(store: Store, folder: str) -> dict[str, FileInfo]:
    """Files below a folder by relative path, the work folder left out."""
    found = store.files.walk(store.path(folder))
    files = {relative(info.path, store.root): info for info in found}
    return {path: info for path, info in files.items() if not path.startswith(f"{WORK_FOLDER}/")}


def _same(store: Store, version: Store, path: str, ours: FileInfo, theirs: FileInfo) -> bool:
    """Whether a result and its copy hold the same; they are read only where the storage cannot
    tell, and the copy is no hard link."""
    if ours.size != theirs.size:
        return False
    if ours.identity == theirs.identity or (ours.md5 and ours.md5 == theirs.md5):
        return True
    return store.digest(path) == version.digest(path)
