"""What is different between two states of a dataset, and why.

What has changed as people read it: changes.md, and a line of the closing words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.dataset.manifest import Manifest
from pipeline.evaluate.result_files import display_name
from pipeline.jobs.changes.accuracies import compare_accuracies
from pipeline.jobs.changes.images import ImageChanges, State, compare_images
from transforms.scoring import PAPER_RULE


def describe_changes(before: State, after: State) -> dict[str, Any]:
    """What changes.md says.

    Returns:
      `from` and `to`, fingerprints of the datasets; `causes` of their difference, each with what
      it is: `data`, `configuration` (flags), `code` (stages, libraries); `images` by split, of
      `compare_images`; `models`, of `compare_accuracies`; `new_models`, names of those that were
      not evaluated before.
    """
    old, new = before.dataset.manifest, after.dataset.manifest
    splits = dict.fromkeys((*old.shards, *new.shards))
    images = {split: compare_images(before.dataset, after.dataset, split) for split in splits}
    causes = _dataset_causes(old, new, images)
    return {
        "from": old.fingerprint,
        "to": new.fingerprint,
        "causes": causes,
        "images": {split: found.to_json() for split, found in images.items()},
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
    """Why two datasets differ: cause to what it is."""
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
        # Of the segmenter, say.
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
    if any(found.is_input for found in images.values()):
        causes["data"] = [
            f"{split}: {len(found.added)} images added, {len(found.removed)} removed"
            + ("" if found.changed is None else f", {len(found.changed)} changed")
            for split, found in images.items()
            if found.is_input
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
    "rejected": "rejected that were accepted, or not there, before",
    "accepted": "accepted that were rejected before",
}
_GAP = "bg_gap"


def to_markdown(changes: Mapping[str, Any]) -> str:
    """The content of changes.md.

    Args:
      changes: of `describe_changes`.
    """
    return "\n".join(_lines(changes)) + "\n"


def summary_of(markdown: str) -> str:
    """The line of changes.md that says all of it in short."""
    return markdown.split("\n")[2]


def _one_line(changes: Mapping[str, Any]) -> str:
    """Numbers of images, and BG-Gaps of models."""
    kinds = {"added": "added", "removed": "removed", "changed": "changed", "rejected": "rejected"}
    images = [
        f"{count} {what}"
        for kind, what in kinds.items()
        if (count := sum((of[kind] or {"count": 0})["count"] for of in changes["images"].values()))
    ]
    parts = [f"images: {', '.join(images)}"] if images else []
    parts += [
        f"{model['model']}: BG-Gap {_difference(row)} ({_causes(model)})"
        for model in changes["models"]
        for row in model["rows"]
        if row["variant"] == _GAP
    ]
    if changes["new_models"]:
        parts.append(f"new models: {', '.join(changes['new_models'])}")
    return "; ".join(parts) or "none in images, none in accuracies"


def _lines(changes: Mapping[str, Any]) -> Iterator[str]:
    yield from ("# What has changed", "", _one_line(changes), "")
    if changes["from"] == changes["to"]:
        yield f"The dataset `{changes['to'][:12]}` is the same; results on it are others."
    else:
        yield f"From dataset `{changes['from'][:12]}` to `{changes['to'][:12]}`."
    for cause, details in changes["causes"].items():
        yield from ("", f"**{cause}**: {'; '.join(details)}")
    for split, of in changes["images"].items():
        yield from _image_lines(split, of)
    if changes["models"]:
        yield from _model_lines(changes["models"])


def _image_lines(split: str, of: Mapping[str, Any]) -> Iterator[str]:
    kinds = {kind: of[kind] for kind in _KINDS if of[kind] and of[kind]["count"]}
    repaired = {variant: count for variant, count in of["repaired"].items() if count}
    if not kinds and not repaired:
        return
    yield from ("", f"## Images of {split}", "")
    for kind, found in kinds.items():
        yield f"* {found['count']} {_KINDS[kind]}"
        yield from (f"  * {_code(row['key'])}: {row['status']}" for row in found["images"])
        left = found["count"] - len(found["images"])
        if left:
            yield f"  * and {left} more"
    for variant, count in repaired.items():
        yield f"* {count} of both versions have another background in {variant}"


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
        "Differences in percentage points over the images in both versions (n), with 95 % "
        f"intervals of a paired bootstrap, under {PAPER_RULE}."
    )
    yield from ("", "| model | cause | n | " + " | ".join([*variants, "BG-Gap"]) + " |")
    yield "|---|---|--:|" + "--:|" * len(columns)
    for model in models:
        rows = {row["variant"]: row for row in model["rows"]}
        cells = [_difference(rows[name]) if name in rows else "-" for name in columns]
        yield f"| {_code(model['model'])} | {_causes(model)} | {model['n']} | {' | '.join(cells)} |"


def _causes(model: Mapping[str, Any]) -> str:
    return ", ".join(model["causes"]) or "cause not known"


def _difference(row: Mapping[str, Any]) -> str:
    """Such as `+0.4 [-0.2, 1.0]`, in percentage points."""
    numbers = [100 * row[name] for name in ("difference", "ci_low", "ci_high")]
    # Adding zero takes the sign of what rounds to none.
    value, low, high = (round(number, 1) + 0.0 for number in numbers)
    return f"{value:+.1f} [{low:.1f}, {high:.1f}]" if value else f"0.0 [{low:.1f}, {high:.1f}]"


def _code(text: str) -> str:
    """Text as code, in a line or a cell of a table."""
    return "`" + text.replace("`", "'").replace("|", "\\|") + "`"


def describe_list_change(old: object, new: object) -> str | None:
    """Describes what a list has gained and lost; None for other values and for another order.

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
