"""Advice for a dataset that rejects most images: the most frequent reasons, and the flags that
help."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.dataset.manifest import Manifest
from transforms.filters import Reason

_NAMED = 3
"""The most reasons to name."""
_SHARE = 0.05
"""Smallest share of all images (0 to 1) that a reason must account for to be named."""

_HELP: dict[str, str] = {
    Reason.MISSING_ANNOTATION: "--annotations names the boxes, --masks the masks; --selection in9l "
    "needs none",
    Reason.UNREADABLE_ANNOTATION: "--annotations names another folder of boxes",
    Reason.SIZE_MISMATCH: "--annotations must be of these pictures at their size",
    Reason.NOT_ONE_BOX: "--objects largest, union or each takes images with several boxes, "
    "--annotations names boxes of those without",
    Reason.BOX_TOO_LARGE: "--crop pad shows more around it, or raise --max_box",
    Reason.BOX_OFF_CENTER: "--crop pad cuts nothing off, or lower --min_visible",
    Reason.SEGMENTATION_FAILED: "another --segmenter (docs/segmenters.md), or lower "
    "--min_foreground",
    Reason.EXCLUDED: "--exclude and --include leave them out",
    Reason.NO_BACKGROUND: "--own_background lets images keep theirs, or leave mixed variants out "
    "with --variants",
}


def advise(rejected: Mapping[str, int], total: int) -> list[str]:
    """Returns a line of advice if over half of the images are rejected and a frequent reason has a
    remedy, else an empty list.

    Args:
      rejected: number of images (with `--objects each`, of objects) by reason.
      total: number of all images (or objects).
    """
    if 2 * sum(rejected.values()) <= total:
        return []
    frequent = sorted(rejected, key=lambda reason: (-rejected[reason], reason))
    named = [
        f"{reason} ({rejected[reason]}): {_HELP[reason]}"
        for reason in frequent[:_NAMED]
        if reason in _HELP and rejected[reason] >= _SHARE * total
    ]
    return [f"over half are rejected. {'; '.join(named)}"] if named else []


def advice(manifest: Manifest, split: str) -> list[str]:
    """Same as `advise`, but for a split of a finished dataset; returns an empty list if the dataset
    is imported."""
    images = manifest.images[split]
    if manifest.config.is_imported:
        return []
    total = images["accepted"] + images["rejected"]
    return advise(manifest.rejections[split], total)
