"""Publishing: a copy of a dataset with its results, which nothing changes any more.

DIR/v-<name>/     a version: dataset, results, report.html, changes.md; its manifest is last
DIR/latest.json   which versions there are, the newest first; written after that

The store copies without reading (on one file system by hard links), so what two versions share
takes its place there once.
"""

from __future__ import annotations

import dataclasses

from pipeline.dataset.fingerprints import fingerprint
from pipeline.dataset.folder import Dataset
from pipeline.dataset.latest import (
    LATEST,
    PUBLISH_LOCK,
    VERSION,
    Latest,
    finished_versions,
)
from pipeline.dataset.manifest import MANIFEST, PREVIOUS_MANIFEST, read_manifest
from pipeline.dataset.shards import DATA_FOLDERS
from pipeline.errors import JobError, UsageError
from pipeline.jobs.changes.describe import describe_changes, summary_of, to_markdown
from pipeline.jobs.changes.images import State
from pipeline.report import REPORT
from pipeline.runtime.leftovers import remove_leftovers
from pipeline.runtime.lock import held
from pipeline.storage.files import is_below
from pipeline.storage.parallel import in_parallel
from pipeline.storage.state_files import read_intact
from pipeline.storage.store import Store

CHANGES = "changes.md"
_LOCK_SECONDS = 600.0


@dataclasses.dataclass(frozen=True)
class PublishPlan:
    """Where a dataset is published.

    Attributes:
      store: the dataset folder.
      place: the folder of its versions.
      keep: how many versions stay beside the newest, None for all.
    """

    store: Store
    place: Store
    keep: int | None = None


def check_publishing(store: Store, directory: str | None, keep: int | None) -> PublishPlan | None:
    """Checks `--publish` and `--keep`.

    Args:
      store: the dataset folder, which need not be there yet.
      directory: where it is published, None if it is not.
      keep: as for `PublishPlan`.

    Raises:
      UsageError: one of them cannot be.
    """
    if directory is None:
        if keep is not None:
            raise UsageError("--keep is for what --publish DIR publishes")
        return None
    if keep is not None and keep < 0:
        raise UsageError(f"--keep must be at least 0: got {keep}")
    place = Store.at(directory).for_job(store.job)
    if is_below(place.root, store.root) or is_below(store.root, place.root):
        raise UsageError(
            f"--publish {place.root} and the dataset {store.root} must lie beside each other, not "
            "one in the other"
        )
    if place.exists(""):
        raise UsageError(f"--publish {place.root} is not a folder")
    if any(map(place.exists, (MANIFEST, PREVIOUS_MANIFEST))) or any(
        map(place.has_folder, DATA_FOLDERS)
    ):
        raise UsageError(f"--publish {place.root} holds a dataset; choose another folder")
    finished_versions(place)  # What latest.json says is refused now, or not at all.
    return PublishPlan(store, place, keep)


def publish(publishing: PublishPlan) -> bool:
    """Makes the dataset and its results, as they are, the newest version. Repeatable.

    Returns:
      Whether it is a version that was not there before.

    Raises:
      JobError: another job changes it, or publishes.
    """
    with held(publishing.place, PUBLISH_LOCK, wait=_LOCK_SECONDS) as place:
        remove_leftovers(place)
        name = _version_name(publishing.store)
        there = finished_versions(place)
        for version in dict.fromkeys((*there[:1], name)):
            # Of the others nothing is read.
            if version in there and read_manifest(place.below(version)) is None:
                there.remove(version)
        for folder in place.files.folders(place.root):
            # What a killed job left in part, or did not come to remove.
            if VERSION.fullmatch(folder) and folder not in (name, *there):
                _remove(place, folder)
        if name not in there:
            _copy(publishing.store, place, name, there[0] if there else None)
        newest = Dataset.open(place.below(name)).manifest.fingerprint
        older = [version for version in there if version != name]
        kept = older[: publishing.keep]
        place.update(LATEST, Latest(newest, (name, *kept)).to_json(), durable=True)
        for version in older[len(kept) :]:
            _remove(place, version)
    return name not in there


def _remove(place: Store, version: str) -> None:
    # It is whole as long as its manifest is there.
    place.delete(f"{version}/{MANIFEST}")
    place.delete_tree(version)


def _version_name(store: Store) -> str:
    """Folder of the version that a dataset with its results is. What stands in no JSON file
    (predictions, tables, figures) is decided by those."""
    paths = [MANIFEST, *(path for path in store.walk("results") if path.endswith(".json"))]
    return f"v-{fingerprint(paths, in_parallel(store.digest, paths))[:12]}"


def _copy(store: Store, place: Store, name: str, before: str | None) -> None:
    """Copies what a version lacks, and says what is different from another one."""
    dataset, manifest = Dataset.open(store), store.read(MANIFEST)
    there = place.sizes(name)
    files = {file.path: file.bytes for file in dataset.manifest.files}
    paths = [path for path, size in files.items() if there.get(f"{name}/{path}") != size]
    paths += store.walk("results")
    paths += [REPORT] if store.exists(REPORT) else []
    place.delete_all(sorted(there.keys() - {f"{name}/{path}" for path in (*files, *paths)}))
    store.copy_into(place, [(path, f"{name}/{path}") for path in paths])
    if before is not None:
        old = place.below(before)

        def compare() -> str:
            return to_markdown(
                describe_changes(State.from_dataset(Dataset.open(old)), State.from_dataset(dataset))
            )

        # A version that was damaged is no reason not to publish the next one.
        text = read_intact(old, "", compare)
        if text is not None:
            place.write(f"{name}/{CHANGES}", text.encode())
    if _version_name(store) != name:
        raise JobError(
            f"{store.root} has changed while it was published; call it again, or: in9 report "
            f"--dataset {store.root} --publish {place.root}"
        )
    place.write(f"{name}/{MANIFEST}", manifest, durable=True)


def describe_published(place: Store, is_new: bool) -> str:
    """Closing lines: which version is the newest now, and what is different in a new one."""
    newest, *older = finished_versions(place)
    verb = "published" if is_new else "published already"
    lines = [f"{verb}: {place.path(newest)} (older ones: {len(older)})"]
    changes = f"{newest}/{CHANGES}"
    if is_new and place.exists(changes):
        words = summary_of(place.read(changes).decode())
        lines.append(f"changed since the last version: {words}; see {place.path(changes)}")
    return "\n".join(lines)
