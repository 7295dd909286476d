"""Differences between two states of a dataset, and their causes: changes.md, and a closing line."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

from pipeline.analyses import ANALYSES
from pipeline.analyses.parts import Changed
from pipeline.dataset.card import markdown
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import Manifest
from pipeline.dataset.records import ACCEPTED, Row, index_file, layer_record, read_rows
from pipeline.errors import counted
from pipeline.runtime.flag_types import as_given
from transforms.variants import EXTERNAL, MIXED, VariantName, with_replicates

T = TypeVar("T")

_Image = tuple[str, int]
"""(key of an image or object, its position, from 0, among the rows with the same key)."""


class IndexedImage(NamedTuple):
    """What the index says of an image or object.

    `backgrounds` are the keys of its backgrounds by mixed variant; None where there is none.
    """

    key: str
    path: str
    status: str
    selected: bool
    backgrounds: dict[str, str | None]


@dataclasses.dataclass
class ImageChanges:
    """Changes of the images of a split.

    Attributes:
      removed: images that are gone, with their last status.
      changed: images whose picture, annotation or class differs; None if unknown, because layers
        are now made in another way.
      rejected: images that are rejected now, but were accepted or absent before.
      accepted: images that are accepted now, but were rejected before.
      repaired: by mixed variant, the number of images in both states that have another background.
    """

    added: list[IndexedImage] = dataclasses.field(default_factory=list)
    removed: list[IndexedImage] = dataclasses.field(default_factory=list)
    changed: list[IndexedImage] | None = dataclasses.field(default_factory=list)
    rejected: list[IndexedImage] = dataclasses.field(default_factory=list)
    accepted: list[IndexedImage] = dataclasses.field(default_factory=list)
    repaired: Counter[str] = dataclasses.field(default_factory=Counter)


def compare_images(before: Dataset, after: Dataset, split: str) -> ImageChanges:
    """Compares the images of a split, which may exist in only one of the two datasets."""
    changes = ImageChanges()
    content: dict[_Image, IndexedImage] = {}
    for old, new in _pairs(before, after, split, _index_files, _read_index):
        content |= new
        _compare(old, new, changes)
    fingerprints = {side.manifest.stages.get("segment_fingerprint") for side in (before, after)}
    # A changed source changes the file of its output shard, too, so `content` has the image.
    changes.changed = (
        [
            content[image]
            for old, new in _pairs(before, after, split, _record_files, _read_digests)
            for image in sorted(old.keys() & new.keys() & content.keys())
            if old[image] != new[image]
        ]
        if len(fingerprints) == 1 and None not in fingerprints
        else None
    )
    return changes


def _compare(
    old: dict[_Image, IndexedImage], new: dict[_Image, IndexedImage], to: ImageChanges
) -> None:
    to.added += [new[image] for image in new.keys() - old.keys()]
    to.removed += [old[image] for image in old.keys() - new.keys()]
    for image, row in new.items():
        was = old.get(image)
        if row.status != ACCEPTED and (was is None or was.status == ACCEPTED):
            to.rejected.append(row)
        if was is not None and row.status == ACCEPTED != was.status:
            to.accepted.append(row)
        if was is not None and row.selected and was.selected:
            to.repaired.update(
                name
                for name in was.backgrounds.keys() & row.backgrounds.keys()
                if row.backgrounds[name] != was.backgrounds[name]
            )


def _index_files(dataset: Dataset, split: str) -> list[str]:
    return [index_file(split, s, len(dataset.shards(split))) for s in dataset.shards(split)]


def _record_files(dataset: Dataset, split: str) -> list[str]:
    return [layer_record(split, s) for s in range(dataset.manifest.shards[split].source)]


def _pairs(
    before: Dataset,
    after: Dataset,
    split: str,
    files: Callable[[Dataset, str], list[str]],
    read: Callable[[Dataset, list[str]], T],
) -> Iterator[tuple[T, T]]:
    """Yields what `read` returns for files before and after, of the same images, that may differ.

    If the numbers of shards differ, all files are one pair, because an image may be in any.
    """
    old, new = (
        files(side, split) if split in side.manifest.shards else [] for side in (before, after)
    )
    if len(old) != len(new):
        yield read(before, old), read(after, new)
        return
    digests = [{file.path: file.sha256 for file in side.manifest.files} for side in (before, after)]
    for first, second in zip(old, new, strict=True):
        if digests[0][first] != digests[1][second]:
            yield read(before, [first]), read(after, [second])


def _read_index(dataset: Dataset, files: list[str]) -> dict[_Image, IndexedImage]:
    drawn = (*MIXED, EXTERNAL) if VariantName(EXTERNAL) in dataset.variants else MIXED
    mixed = with_replicates(drawn, dataset.manifest.config.compose.replicates)
    columns = ["key", "path", "status", "selected"]
    return {
        image: IndexedImage(
            **{name: row[name] for name in columns},
            backgrounds={str(name): row[f"{name}_bg_key"] for name in mixed},
        )
        for image, row in _read(dataset, files, [*columns, *(f"{n}_bg_key" for n in mixed)])
    }


def _read_digests(dataset: Dataset, files: list[str]) -> dict[_Image, str]:
    """Reads the digests of sources from records of layers."""
    column = "source_digest"
    return {image: row[column] for image, row in _read(dataset, files, ["key", column])}


def _read(dataset: Dataset, files: list[str], columns: list[str]) -> Iterator[tuple[_Image, Row]]:
    """Yields rows with their image or object."""
    times = Counter[str]()
    for file in files:
        for row in read_rows(dataset.store, file, columns):
            key = row["key"]
            yield (key, times[key]), row
            times[key] += 1


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
        f"{split}: {counted(len(changes.added), 'image')} added, {len(changes.removed)} removed"
        + ("" if changes.changed is None else f", {len(changes.changed)} changed")
        for split, changes in images.items()
        if changes.added or changes.removed or changes.changed
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


def _by_kind(images: ImageChanges) -> dict[str, list[IndexedImage]]:
    """Returns the changed images of each kind of change; a kind may have none."""
    return {kind: getattr(images, kind) or [] for kind in _KINDS}


def _one_line(changes: Changes) -> str:
    """Sums up the changes: of images, or if there are none of backgrounds, and of each analysis."""
    splits = changes.images.values()
    images = [
        f"{count} {kind}"
        for kind in _KINDS
        if (count := sum(len(_by_kind(split)[kind]) for split in splits))
    ]
    replaced = sum(split.repaired.total() for split in splits)
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
    if changes.before == changes.after:
        yield (
            f"The dataset `{changes.after[:12]}` is the same; only results on it, or its card, "
            "have changed."
        )
    else:
        yield f"From dataset `{changes.before[:12]}` to `{changes.after[:12]}`."
    for cause, details in changes.causes.items():
        yield from ("", f"**{cause}**: {'; '.join(map(markdown, details))}")
    for split, images in changes.images.items():
        yield from _image_lines(split, images)
    for changed in changes.results:
        yield from changed.lines


def _image_lines(split: str, changes: ImageChanges) -> Iterator[str]:
    kinds = {kind: rows for kind, rows in _by_kind(changes).items() if rows}
    if not kinds and not changes.repaired:
        return
    yield from ("", f"## Images of {markdown(split)}", "")
    for kind, rows in kinds.items():
        yield f"* {len(rows)} {_KINDS[kind]}"
        listed = sorted(rows, key=lambda row: (row.key, row.path))[:LISTED]
        yield from (f"  * {markdown(row.key)}: {row.status}" for row in listed)
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
