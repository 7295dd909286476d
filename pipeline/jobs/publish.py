"""Publishing: copies a dataset with its results to a version that never changes again.

DIR/v-<name>/     a version: dataset, results, report.html, changes.md; its manifest is written last
DIR/latest.json   names of the versions, the newest first; written after the version

The store copies without reading if it can (by hard links within a file system), so files that two
versions share take up space only once.
"""

from __future__ import annotations

import dataclasses
import posixpath

from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import (
    LATEST,
    MANIFEST,
    PREVIOUS_MANIFEST,
    PUBLISH_LOCK,
    VERSION,
    Latest,
    finished_versions,
    read_manifest,
)
from pipeline.dataset.records import DATA_FOLDERS
from pipeline.errors import JobError, UsageError, shown_bytes
from pipeline.jobs.changes import describe_changes, summary_of, to_markdown
from pipeline.report.write import REPORT
from pipeline.runtime.lock import locked, remove_leftovers
from pipeline.storage.files import is_below
from pipeline.storage.interface import in_parallel
from pipeline.storage.state_files import read_intact
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.hashing import fingerprint

CHANGES = "changes.md"
_LOCK_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class PublishPlan:
    """Where a dataset is published, and how many versions to keep besides the newest; None: all."""

    store: Store
    target: Store
    keep: int | None = None


def check_publishing(store: Store, directory: str | None, keep: int | None) -> PublishPlan | None:
    """Checks `--publish` and `--keep` for a dataset folder, which need not exist yet."""
    if directory is None:
        if keep is not None:
            raise UsageError("--keep N needs --publish DIR, whose versions it counts")
        return None
    if keep is not None and keep < 0:
        raise UsageError(f"--keep must be at least 0: got {keep}")
    target = Store.at(directory).for_job(store.job)
    if is_below(target.root, store.root) or is_below(store.root, target.root):
        raise UsageError(
            f"--publish {target.root} and the dataset {store.root} must lie beside each other, not "
            "one inside the other"
        )
    target.refuse_file("--publish")
    if any(map(target.exists, (MANIFEST, PREVIOUS_MANIFEST))) or any(
        map(target.has_folder, DATA_FOLDERS)
    ):
        raise UsageError(f"--publish {target.root} holds a dataset; choose another folder")
    # Refuses a wrong latest.json now, not at the end of the job.
    if not finished_versions(target) and (names := _foreign_names(target)):
        raise UsageError(
            f"--publish {target.root} holds {names[0]} and no published version; choose another "
            "folder"
        )
    return PublishPlan(store, target, keep)


def _foreign_names(target: Store) -> list[str]:
    """Lists what a folder holds besides versions, finished or not, and the work folder."""
    paths = target.files.file_paths(target.root)
    names = [*map(posixpath.basename, paths), *target.files.folder_names(target.root)]
    return sorted(n for n in names if n != WORK_FOLDER and not VERSION.fullmatch(n))


def publish(publishing: PublishPlan) -> bool:
    """Publishes the dataset with its results as the newest version; returns whether it is new.

    A runner may repeat this, because a second call changes nothing. Raises JobError if another job
    is changing the dataset, or publishing.
    """
    with locked(publishing.target, PUBLISH_LOCK, wait=_LOCK_SECONDS) as target:
        remove_leftovers(target)
        name = _version_name(publishing.store)
        versions = finished_versions(target)
        for version in dict.fromkeys((*versions[:1], name)):
            # Only the newest version, and the one to write, must be complete; others are not read.
            if version in versions and read_manifest(target.below(version)) is None:
                versions.remove(version)
        for folder in target.files.folder_names(target.root):
            # A killed job left this version unfinished, or could not remove it any more.
            if VERSION.fullmatch(folder) and folder not in (name, *versions):
                _remove(target, folder)
        if name not in versions:
            _copy(publishing.store, target, name, versions[0] if versions else None)
        newest = Dataset.open(target.below(name)).manifest.fingerprint
        older = [version for version in versions if version != name]
        kept = older[: publishing.keep]
        target.update(LATEST, Latest(newest, (name, *kept)).to_json(), durable=True)
        for version in older[len(kept) :]:
            _remove(target, version)
    return name not in versions


def _remove(target: Store, version: str) -> None:
    # A version counts as complete as long as its manifest exists, so the manifest goes first.
    target.delete(f"{version}/{MANIFEST}")
    target.delete_tree(version)


def _version_name(store: Store) -> str:
    """Returns a version's folder name, a hash of the manifest and all JSON files of results.

    All other files (predictions, tables, figures) follow from those that are hashed.
    """
    paths = [MANIFEST, *(path for path in store.walk("results") if path.endswith(".json"))]
    return f"v-{fingerprint(paths, in_parallel(store.digest, paths))[:12]}"


def _copy(store: Store, target: Store, name: str, before: str | None) -> None:
    """Copies the files that a version lacks, and describes its changes since another version."""
    dataset, manifest = Dataset.open(store), store.read(MANIFEST)
    existing = target.sizes(name)
    files = {file.path: file.bytes for file in dataset.manifest.files}
    paths = [
        *(path for path, size in files.items() if existing.get(f"{name}/{path}") != size),
        *store.walk("results"),
        *([REPORT] if store.exists(REPORT) else []),
    ]
    target.delete_all(sorted(existing.keys() - {f"{name}/{path}" for path in (*files, *paths)}))
    # Objects are not read, because their storage copies them. Damage must not be copied: once it is
    # mended, a file of the same size would stay.
    for file in () if store.is_remote else dataset.manifest.files:
        dataset.verify(file)
    store.copy_into(target, [(path, f"{name}/{path}") for path in paths])
    if before is not None:
        old = target.below(before)
        # A damaged old version must not keep the new one from being published.
        text = read_intact(
            old, "", lambda: to_markdown(describe_changes(Dataset.open(old), dataset))
        )
        if text is not None:
            target.write(f"{name}/{CHANGES}", shown_bytes(text))
    if _version_name(store) != name:
        raise JobError(
            f"{store.root} has changed while it was published; run the command again, or: "
            f"in9 report --dataset {store.root} --publish {target.root}"
        )
    target.write(f"{name}/{MANIFEST}", manifest, durable=True)


def describe_published(target: Store, is_new: bool) -> str:
    """Describes the newest version in closing lines and, if it is new, what it has changed."""
    newest, *older = finished_versions(target)
    lines = [
        f"published{'' if is_new else ' already'}: {target.path(newest)} (older ones: {len(older)})"
    ]
    changes = f"{newest}/{CHANGES}"
    if is_new and target.exists(changes):
        words = summary_of(target.read(changes).decode())
        lines.append(f"changed since the last version: {words}; see {target.path(changes)}")
    return "\n".join(lines)
