"""What is different between two states of a dataset, and why."""

from __future__ import annotations

from typing import Any

from pipeline.dataset.manifest import Manifest
from pipeline.evaluate.results import display_name
from pipeline.jobs.changes.accuracies import compare_accuracies
from pipeline.jobs.changes.images import ImageChanges, compare_images
from pipeline.jobs.changes.state import State
from pipeline.jobs.changes.text import shown


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
        f"--{name} {shown(was.get(name))} -> {shown(now.get(name))}"
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
