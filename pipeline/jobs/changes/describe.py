"""Describes the changes between two states of a dataset: changes.md, and a closing line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.dataset.card import markdown
from pipeline.dataset.manifest import Manifest
from pipeline.errors import counted, escaped_texts
from pipeline.evaluate.result_files import display_name
from pipeline.jobs.changes.accuracies import compare_accuracies
from pipeline.jobs.changes.images import ImageChanges, State, compare_images
from transforms.scoring import PAPER_RULE


def describe_changes(before: State, after: State) -> dict[str, Any]:
    """Collects the content of changes.md.

    Returns:
      `from` and `to`, fingerprints of the datasets; `causes` of their difference with details:
      `data`, `configuration` (flags), `code` (stages, libraries); `images` by split, from
      `compare_images`; `models`, from `compare_accuracies`; `new_models`, names of the models that
      were not evaluated before.
    """
    old, new = before.dataset.manifest, after.dataset.manifest
    splits = dict.fromkeys((*old.shards, *new.shards))
    images = {split: compare_images(before.dataset, after.dataset, split) for split in splits}
    causes = _dataset_causes(old, new, images)
    return {
        "from": old.fingerprint,
        "to": new.fingerprint,
        "causes": causes,
        "images": {split: changes.to_json() for split, changes in images.items()},
        "models": list(compare_accuracies(before, after, list(causes))),
        "new_models": [
            display_name(summary)
            for folder, summary in after.summaries.items()
            if folder not in before.summaries
        ],
    }


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
_GAP = "bg_gap"


def to_markdown(changes: Mapping[str, Any]) -> str:
    """Formats the content of changes.md.

    Args:
      changes: result of `describe_changes`.
    """
    return "\n".join(_lines(escaped_texts(changes, markdown))) + "\n"


def summary_of(markdown: str) -> str:
    """Returns the line of changes.md that sums it up."""
    return markdown.split("\n")[2]


def _one_line(changes: Mapping[str, Any]) -> str:
    """Sums up the changes: numbers of images (of replaced backgrounds if there is no other change
    of images), BG-Gaps of models, and new models."""
    splits = changes["images"].values()
    images = [
        f"{count} {kind}"
        for kind in _KINDS
        if (count := sum((split[kind] or {"count": 0})["count"] for split in splits))
    ]
    replaced = sum(sum(split["repaired"].values()) for split in splits)
    if replaced and not images:
        images = [f"{replaced} other backgrounds"]
    parts = [f"images: {', '.join(images)}"] if images else []
    parts += [
        f"BG-Gap of {model['model']}: {_difference(row)} ({_causes(model)})"
        for model in changes["models"]
        for row in model["rows"]
        if row["variant"] == _GAP
    ]
    if changes["new_models"]:
        parts.append(f"new models: {', '.join(changes['new_models'])}")
    # A model may lack BG-Gap, but differ in other accuracies.
    is_same = not any(row["difference"] for model in changes["models"] for row in model["rows"])
    return "; ".join(parts) or f"none in images, none in {'accuracies' if is_same else 'BG-Gap'}"


def _lines(changes: Mapping[str, Any]) -> Iterator[str]:
    yield from ("# What has changed", "", _one_line(changes), "")
    if changes["from"] == changes["to"]:
        yield f"The dataset `{changes['to'][:12]}` is the same; only results on it have changed."
    else:
        yield f"From dataset `{changes['from'][:12]}` to `{changes['to'][:12]}`."
    for cause, details in changes["causes"].items():
        yield from ("", f"**{cause}**: {'; '.join(details)}")
    for split, images in changes["images"].items():
        yield from _image_lines(split, images)
    if changes["models"]:
        yield from _model_lines(changes["models"])


def _image_lines(split: str, changes: Mapping[str, Any]) -> Iterator[str]:
    kinds = {kind: changes[kind] for kind in _KINDS if changes[kind] and changes[kind]["count"]}
    repaired = {variant: count for variant, count in changes["repaired"].items() if count}
    if not kinds and not repaired:
        return
    yield from ("", f"## Images of {split}", "")
    for kind, change in kinds.items():
        yield f"* {change['count']} {_KINDS[kind]}"
        yield from (f"  * {row['key']}: {row['status']}" for row in change["images"])
        unlisted = change["count"] - len(change["images"])
        if unlisted:
            yield f"  * and {unlisted} more"
    for variant, count in repaired.items():
        yield f"* {count} in both versions have another background in {variant}"


def _model_lines(models: list[dict[str, Any]]) -> Iterator[str]:
    variants: list[str] = []
    for model in models:
        for row in model["rows"]:
            name = row["variant"]
            if name not in variants and name != _GAP:
                variants.append(name)
    columns = [*variants, _GAP]
    yield from ("", "## Accuracies", "")
    yield (
        "Differences in percentage points over the n images in both versions, with 95 % "
        f"intervals of a paired bootstrap, under {PAPER_RULE}."
    )
    yield from ("", "| model | cause | n | " + " | ".join([*variants, "BG-Gap"]) + " |")
    yield "|---|---|--:|" + "--:|" * len(columns)
    for model in models:
        rows = {row["variant"]: row for row in model["rows"]}
        cells = [_difference(rows[name]) if name in rows else "-" for name in columns]
        yield f"| {model['model']} | {_causes(model)} | {model['n']} | {' | '.join(cells)} |"


def _causes(model: Mapping[str, Any]) -> str:
    return ", ".join(model["causes"]) or "cause unknown"


def _difference(row: Mapping[str, Any]) -> str:
    """Formats a difference in percentage points, such as `+0.4 [-0.2, 1.0]`."""
    numbers = [100 * row[name] for name in ("difference", "ci_low", "ci_high")]
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
