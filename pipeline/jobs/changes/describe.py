"""Describes the changes between two states of a dataset: changes.md, and a closing line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

from pipeline.analyses.evaluation.contributions import BG_GAP
from pipeline.dataset.card import markdown
from pipeline.dataset.manifest import Manifest
from pipeline.errors import counted
from pipeline.jobs.changes.accuracies import Difference, ModelChange, compare_accuracies
from pipeline.jobs.changes.images import ImageChanges, ImageRow, State, compare_images

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
      models: differences of models that were evaluated in both states.
      new_models: names of the models that were not evaluated before.
    """

    before: str
    after: str
    causes: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    images: Mapping[str, ImageChanges] = dataclasses.field(default_factory=dict)
    models: Sequence[ModelChange] = ()
    new_models: Sequence[str] = ()


def describe_changes(before: State, after: State) -> Changes:
    """Collects the content of changes.md."""
    old, new = before.dataset.manifest, after.dataset.manifest
    splits = dict.fromkeys((*old.shards, *new.shards))
    images = {split: compare_images(before.dataset, after.dataset, split) for split in splits}
    causes = _dataset_causes(old, new, images)
    return Changes(
        before=old.fingerprint,
        after=new.fingerprint,
        causes=causes,
        images=images,
        models=list(compare_accuracies(before, after, list(causes))),
        new_models=[
            summary.name
            for folder, summary in after.summaries.items()
            if folder not in before.summaries
        ],
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
    of images), BG-Gaps of models, and new models."""
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
    parts += [
        f"BG-Gap of {markdown(model.model)}: {_difference(row)} ({_causes(model)})"
        for model in changes.models
        for row in model.rows
        if row.variant == BG_GAP
    ]
    if changes.new_models:
        parts.append(f"new models: {', '.join(map(markdown, changes.new_models))}")
    # A model may lack BG-Gap, but differ in other accuracies.
    is_same = not any(row.difference for model in changes.models for row in model.rows)
    return "; ".join(parts) or f"none in images, none in {'accuracies' if is_same else 'BG-Gap'}"


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
    if changes.models:
        yield from _model_lines(changes.models)


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


def _model_lines(models: Sequence[ModelChange]) -> Iterator[str]:
    names = dict.fromkeys(row.variant for model in models for row in model.rows)
    variants = [name for name in names if name != BG_GAP]
    rules = dict.fromkeys(model.label_rule for model in models)
    yield from ("", "## Accuracies", "")
    yield (
        "Differences in percentage points over the n images in both versions, with 95 % "
        f"intervals of a paired bootstrap, under {', '.join(rules)}."
    )
    yield from (
        "",
        "| model | cause | n | " + " | ".join([*map(markdown, variants), "BG-Gap"]) + " |",
    )
    yield "|---|---|--:|" + "--:|" * (len(variants) + 1)
    for model in models:
        rows = {row.variant: row for row in model.rows}
        cells = [_difference(rows[name]) if name in rows else "-" for name in (*variants, BG_GAP)]
        yield f"| {markdown(model.model)} | {_causes(model)} | {model.n} | {' | '.join(cells)} |"


def _causes(model: ModelChange) -> str:
    return ", ".join(model.causes) or "cause unknown"


def _difference(row: Difference) -> str:
    """Formats a difference in percentage points, such as `+0.4 [-0.2, 1.0]`."""
    numbers = [100 * number for number in (row.difference, row.ci_low, row.ci_high)]
    # Adding zero turns a rounded -0.0 into 0.0.
    value, low, high = (round(number, 1) + 0.0 for number in numbers)
    return f"{value:+.1f} [{low:.1f}, {high:.1f}]" if value else f"0.0 [{low:.1f}, {high:.1f}]"


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
