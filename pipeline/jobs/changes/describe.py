"""Describes the changes between two states of a dataset: changes.md, and a closing line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from pipeline.analyses import ANALYSES
from pipeline.analyses.parts import Changed
from pipeline.dataset.card import markdown
from pipeline.dataset.folder import Dataset
from pipeline.dataset.manifest import Manifest
from pipeline.errors import counted
from pipeline.jobs.changes.images import ImageChanges, ImageRow, compare_images

LISTED = 100
"""Largest number of images of each kind that are listed by name; the others are only counted."""


@dataclasses.dataclass(frozen=True)
class Changes:
    """Content of changes.md.

    Attributes:
      before, after: fingerprints of the datasets.
      causes: details of each cause of their difference: `data`, `configuration` (flags), `code`
        (stages, libraries).
      images: changes of images by split.
      results: changes of the results of each analysis that compares them.
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
    causes = {}
    was, now = old.config.flags(), new.config.flags()
    flags = [
        f"--{name} "
        + (
            describe_list_change(was.get(name), now.get(name))
            or f"{shown(was.get(name))} -> {shown(now.get(name))}"
        )
        for name in old.config.differing_flags(new.config)
    ]
    stages = ["segment", "compose"]
    if not flags and old.stages.get("segment") == new.stages.get("segment"):
        # If the fingerprint differs all the same, something else has changed, such as the
        # segmenter.
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
    if any(changes.is_input for changes in images.values()):
        causes["data"] = [
            f"{split}: {counted(len(changes.added), 'image')} added, {len(changes.removed)} removed"
            + ("" if changes.changed is None else f", {len(changes.changed)} changed")
            for split, changes in images.items()
            if changes.is_input
        ]
    if flags:
        causes["configuration"] = flags
    if code and old.files != new.files:
        causes["code"] = code
    return causes


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


def _by_kind(images: ImageChanges) -> dict[str, list[ImageRow]]:
    """Returns the changed images of each kind of change; a kind may have none."""
    return {kind: getattr(images, kind) or [] for kind in _KINDS}


def _one_line(changes: Changes) -> str:
    """Sums up the changes: numbers of images (of replaced backgrounds if there is no other change
    of images), and what each analysis finds most important."""
    splits = changes.images.values()
    images = [
        f"{count} {kind}"
        for kind in _KINDS
        if (count := sum(len(_by_kind(split)[kind]) for split in splits))
    ]
    replaced = sum(sum(split.repaired.values()) for split in splits)
    if replaced and not images:
        images = [counted(replaced, "other background")]
    parts = [f"images: {', '.join(images)}"] if images else []
    parts += [part for changed in changes.results for part in changed.short]
    nothing = ["images", *(changed.unchanged for changed in changes.results)]
    return "; ".join(parts) or ", ".join(f"none in {name}" for name in nothing)


def _lines(changes: Changes) -> Iterator[str]:
    yield from ("# What has changed", "", _one_line(changes), "")
    if changes.before == changes.after:
        yield f"The dataset `{changes.after[:12]}` is the same; only results on it have changed."
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
    repaired = {name: count for name, count in sorted(changes.repaired.items()) if count}
    if not kinds and not repaired:
        return
    yield from ("", f"## Images of {markdown(split)}", "")
    for kind, rows in kinds.items():
        yield f"* {len(rows)} {_KINDS[kind]}"
        listed = sorted(rows, key=lambda row: (row.key, row.path))[:LISTED]
        yield from (f"  * {markdown(row.key)}: {row.status}" for row in listed)
        if len(rows) > LISTED:
            yield f"  * and {len(rows) - LISTED} more"
    for variant, count in repaired.items():
        has = "has" if count == 1 else "have"
        yield f"* {count} in both versions {has} another background in {markdown(variant)}"


def describe_list_change(old: object, new: object) -> str | None:
    """Describes what a list has gained and lost; None if a value is no list, or only the order
    differs.

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
