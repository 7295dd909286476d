"""Publishing: copies a dataset with its results to a version that never changes again.

DIR/v-<name>/     a version: dataset, results, report.html, changes.md; its manifest is written last
DIR/latest.json   names of the versions, the newest first; written after the version

The store copies without reading if it can (by hard links within a file system), so files that two
versions share take up space only once.

changes.md, and a closing line, say how the version differs from the one before, and why.
"""

import dataclasses
import posixpath
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.analyses import ANALYSES
from pipeline.analyses.parts import Changed
from pipeline.dataset.card import markdown
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import (
    LATEST,
    MANIFEST,
    PREVIOUS_MANIFEST,
    PUBLISH_LOCK,
    VERSION,
    Latest,
    Manifest,
    finished_versions,
    read_manifest,
)
from pipeline.dataset.records import ACCEPTED, DATA_FOLDERS
from pipeline.errors import JobError, UsageError, counted, shown_bytes
from pipeline.report.write import REPORT
from pipeline.runtime.flag_types import as_given
from pipeline.runtime.lock import locked, remove_leftovers
from pipeline.storage.files import is_below
from pipeline.storage.interface import in_parallel
from pipeline.storage.state_files import read_intact, read_table
from pipeline.storage.store import WORK_FOLDER, Store
from transforms.hashing import fingerprint

_IMAGE = ["key", "number"]
"""Columns that tell images, or objects, apart; the number counts the rows of one key."""


@dataclasses.dataclass(frozen=True)
class ImageChanges:
    """Changes of the images of a split.

    Attributes:
      kinds: by kind of change (`_KINDS`), the images with `key`, `path` and `status`, which is the
        last one of an image that was removed. There is no `changed` if it is unknown, because
        layers are now made in another way.
      repaired: by mixed variant, the number of images in both states that have another background.
    """

    kinds: Mapping[str, pa.Table]
    repaired: Mapping[str, int]


def compare_images(before: Dataset, after: Dataset, split: str) -> ImageChanges:
    """Compares the images of a split, which may exist in only one of the two datasets."""
    was_drawn, now_drawn = (side.manifest.config.compose.indexed for side in (before, after))
    drawn = {f"{name}": f"{name}_bg_key" for name in now_drawn if name in was_drawn}
    columns = ["path", "status", "selected", *drawn.values()]
    images = _joined(before, after, f"index/{split}-", columns)
    was, now = images["status_before"], images["status"]
    rejected = pc.and_(pc.not_equal(now, ACCEPTED), pc.equal(was.fill_null(ACCEPTED), ACCEPTED))
    accepted = pc.and_(pc.equal(now, ACCEPTED), pc.not_equal(was, ACCEPTED))
    in_both = images.filter(pc.and_(images["selected"], images["selected_before"]))
    path = pc.coalesce(images["path"], images["path_before"])
    shown = images.select(_IMAGE).append_column("path", path)
    shown = shown.append_column("status", pc.coalesce(now, was))
    kinds = {
        "added": shown.filter(pc.is_null(was)),
        "removed": shown.filter(pc.is_null(now)),
        "rejected": shown.filter(rejected),
        "accepted": shown.filter(accepted),
    }
    fingerprints = {side.manifest.stages.get("segment_fingerprint") for side in (before, after)}
    if len(fingerprints) == 1 and None not in fingerprints:
        digests = _joined(before, after, f"layers/{split}-", ["source_digest"])
        other = pc.not_equal(digests["source_digest"], digests["source_digest_before"])
        # A changed source changes the index of its output shard, too, so `shown` has the image.
        kinds["changed"] = shown.join(digests.filter(other), _IMAGE, join_type="left semi")
    # A variant that only one of the datasets has does not count: its backgrounds are null there.
    repaired = {
        name: len(in_both.filter(pc.not_equal(in_both[column], in_both[f"{column}_before"])))
        for name, column in drawn.items()
    }
    return ImageChanges(kinds, {name: count for name, count in repaired.items() if count})


def _joined(before: Dataset, after: Dataset, beginning: str, columns: Sequence[str]) -> pa.Table:
    """Joins the rows of images in those tables that differ, by paths that begin alike.

    Columns of the dataset before end with `_before`; they are null where it lacks the image.
    """
    types = {"key": pa.string(), **dict.fromkeys(columns, pa.string())}
    schema = pa.schema(types | ({"selected": pa.bool_()} if "selected" in columns else {}))
    sides = []
    for one, other in ((after, before), (before, after)):
        # An image is in one file, so what is in a file of both datasets is in no other.
        files = set(one.manifest.files) - set(other.manifest.files)
        paths = [file.path for file in files if file.path.endswith(".parquet")]
        tables = [
            read_table(one.store, path, schema.names).select(schema.names).cast(schema)
            for path in sorted(paths)
            if path.startswith(beginning)
        ]
        table = pa.concat_tables([schema.empty_table(), *tables])
        ranks = [pc.rank(table["key"], tiebreaker=ties) for ties in ("first", "min")]
        sides.append(table.append_column("number", pc.subtract(*ranks)))
    return sides[0].join(sides[1], _IMAGE, join_type="full outer", right_suffix="_before")


LISTED = 100
"""Largest number of images of each kind that are listed by name; the others are only counted."""


@dataclasses.dataclass(frozen=True)
class Changes:
    """Content of changes.md: fingerprints of the datasets, and details of each cause.

    Causes are `data`, `configuration` (flags), `code` (stages, libraries).
    """

    before: str
    after: str
    causes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    images: Mapping[str, ImageChanges] = dataclasses.field(default_factory=dict)
    results: Sequence[Changed] = ()


def describe_changes(before: Dataset, after: Dataset) -> Changes:
    """Collects the content of changes.md from two states of a dataset."""
    old, new = before.manifest, after.manifest
    splits = dict.fromkeys((*old.shards, *new.shards))
    images = {split: compare_images(before, after, split) for split in splits}
    causes = _dataset_causes(old, new, images)
    compared = (one.parts.changes(before, after, list(causes)) for one in ANALYSES)
    return Changes(
        before=old.fingerprint,
        after=new.fingerprint,
        causes=causes,
        images=images,
        results=[changed for changed in compared if changed],
    )


def _dataset_causes(
    old: Manifest, new: Manifest, images: dict[str, ImageChanges]
) -> dict[str, list[str]]:
    """Returns why two datasets differ: cause to its details."""
    was, now = old.config.flags(), new.config.flags()
    flags = [
        f"{as_given(name)} "
        + (
            describe_list_change(was.get(name), now.get(name))
            or f"{shown(was.get(name))} -> {shown(now.get(name))}"
        )
        for name in old.config.differing_flags(new.config)
    ]
    stages = ["segment", "compose"]
    if not flags and old.stages.get("segment") == new.stages.get("segment"):
        # If the fingerprint differs, something else has changed, such as the segmenter.
        stages.append("segment_fingerprint")
    code = [
        f"{name} {before[name]} -> {after[name]}"
        for names, before, after in (
            (stages, old.stages, new.stages),
            (list(new.libraries), old.libraries, new.libraries),
        )
        for name in names
        if name in before and before[name] != after[name]
    ]
    data = [
        f"{split}: {counted(numbers['added'], 'image')} added, {numbers['removed']} removed"
        + (f", {numbers['changed']} changed" if "changed" in numbers else "")
        for split, changes in images.items()
        for numbers in [{kind: len(rows) for kind, rows in changes.kinds.items()}]
        if any(numbers.get(kind) for kind in ("added", "removed", "changed"))
    ] + [
        f"{name} from outside {'added' if not was else 'replaced' if now else 'removed'}"
        for name in sorted(old.outside.keys() | new.outside)
        for was, now in [(old.outside.get(name), new.outside.get(name))]
        if was != now
    ]
    causes = {"data": data, "configuration": flags, "code": code * (old.files != new.files)}
    return {cause: details for cause, details in causes.items() if details}


_KINDS = {
    "added": "added",
    "removed": "removed",
    "changed": "changed",
    "rejected": "rejected that were accepted or absent before",
    "accepted": "accepted that were rejected before",
}


def to_markdown(changes: Changes) -> str:
    """Formats the content of changes.md."""
    return "\n".join(_lines(changes)) + "\n"


def summary_of(markdown: str) -> str:
    """Returns the line of changes.md that sums it up."""
    return markdown.split("\n")[2]


def _one_line(changes: Changes) -> str:
    """Sums up the changes: of images, or if there are none of backgrounds, and of each analysis."""
    splits = changes.images.values()
    images = [
        f"{count} {kind}"
        for kind in _KINDS
        if (count := sum(len(split.kinds.get(kind, ())) for split in splits))
    ]
    replaced = sum(sum(split.repaired.values()) for split in splits)
    if replaced and not images:
        images = [counted(replaced, "other background")]
    parts = [
        *([f"images: {', '.join(images)}"] if images else []),
        *(part for changed in changes.results for part in changed.short),
    ]
    nothing = ["images", *(changed.unchanged for changed in changes.results)]
    return "; ".join(parts) or ", ".join(f"none in {name}" for name in nothing)


def _lines(changes: Changes) -> Iterator[str]:
    yield from ("# What has changed", "", _one_line(changes), "")
    yield (
        f"The dataset `{changes.after[:12]}` is the same; only results on it, or its card, have "
        "changed."
        if changes.before == changes.after
        else f"From dataset `{changes.before[:12]}` to `{changes.after[:12]}`."
    )
    for cause, details in changes.causes.items():
        yield from ("", f"**{cause}**: {'; '.join(map(markdown, details))}")
    for split, images in changes.images.items():
        yield from _image_lines(split, images)
    for changed in changes.results:
        yield from changed.lines


def _image_lines(split: str, changes: ImageChanges) -> Iterator[str]:
    kinds = {kind: changes.kinds[kind] for kind in _KINDS if len(changes.kinds.get(kind, ()))}
    if not kinds and not changes.repaired:
        return
    yield from ("", f"## Images of {markdown(split)}", "")
    for kind, rows in kinds.items():
        yield f"* {len(rows)} {_KINDS[kind]}"
        listed = rows.sort_by([("key", "ascending"), ("path", "ascending")])[:LISTED].to_pylist()
        yield from (f"  * {markdown(row['key'])}: {row['status']}" for row in listed)
        if len(rows) > LISTED:
            yield f"  * and {len(rows) - LISTED} more"
    for variant, count in sorted(changes.repaired.items()):
        yield (
            f"* {count} in both versions {'has' if count == 1 else 'have'} another background in "
            f"{markdown(variant)}"
        )


def describe_list_change(old: object, new: object) -> str | None:
    """Describes what a list gained and lost; None if one is not a list, or only the order differs.

    >>> describe_list_change(("original", "no_fg"), ("original", "only_fg"))
    'adds only_fg and lacks no_fg'
    """
    if not (isinstance(old, tuple) and isinstance(new, tuple)):
        return None
    added, missing = (
        ",".join(str(item) for item in one if item not in other)
        for one, other in ((new, old), (old, new))
    )
    parts = (f"adds {added}" if added else "", f"lacks {missing}" if missing else "")
    return " and ".join(filter(None, parts)) or None


def shown(value: object) -> str:
    """Returns the value of a flag as it is typed."""
    if value is None:
        return "not set"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


CHANGES = "changes.md"


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
    with locked(publishing.target, PUBLISH_LOCK, wait=600) as target:
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
