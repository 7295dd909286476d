"""What would help where most images are rejected: the reasons, and the flag for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pipeline.dataset.config import DatasetConfig
from pipeline.dataset.manifest import Manifest
from transforms.filters import Reason

_NAMED = 3
"""Reasons that are named, of the most frequent."""
_SHARE = 0.05
"""Rarer reasons, of all images, are not what is wrong."""


def _several_boxes(config: DatasetConfig) -> str:
    if config.segment.objects == "one":
        return "--objects largest, union or each takes images with several boxes"
    return "images without a box: see --annotations"


def _off_center(config: DatasetConfig) -> str:
    if config.segment.crop == "pad":
        return f"--min_visible, now {config.segment.min_visible:g}"
    return (
        f"--crop pad cuts nothing off, or lower --min_visible, now {config.segment.min_visible:g}"
    )


def _small_foreground(config: DatasetConfig) -> str:
    lower = f"lower --min_foreground, now {config.segment.min_foreground:g}"
    return f"another --segmenter (docs/segmenters.md), or {lower}"


_HELP: dict[str, Callable[[DatasetConfig], str]] = {
    Reason.MISSING_ANNOTATION: lambda _: (
        "--annotations names the boxes, --masks the masks; --selection in9l needs none"
    ),
    Reason.UNREADABLE_ANNOTATION: lambda _: "--annotations names another folder of boxes",
    Reason.SIZE_MISMATCH: lambda _: "--annotations must be of these pictures at their size",
    Reason.NOT_ONE_BOX: _several_boxes,
    Reason.BOX_TOO_LARGE: lambda c: (
        f"--crop pad shows more around it, or raise --max_box, now {c.segment.max_box:g}"
        if c.segment.crop == "center"
        else f"raise --max_box, now {c.segment.max_box:g}"
    ),
    Reason.BOX_OFF_CENTER: _off_center,
    Reason.SEGMENTATION_FAILED: _small_foreground,
    Reason.EXCLUDED: lambda _: "--exclude and --include leave them out",
    Reason.NO_BACKGROUND: lambda _: (
        "--own_background lets images keep theirs, or leave mixed variants out with --variants"
    ),
}


def advise(rejected: Mapping[str, int], total: int, config: DatasetConfig) -> list[str]:
    """Lines for a reader, if over half of all are rejected; else none.

    Args:
      rejected: number of images, or of objects, by reason.
      total: of all.
      config: of the dataset, whose flags may be set already.
    """
    if 2 * sum(rejected.values()) <= total:
        return []
    frequent = sorted(rejected, key=lambda reason: (-rejected[reason], reason))
    named = [
        f"{reason} ({rejected[reason]}): {_HELP[reason](config)}"
        for reason in frequent[:_NAMED]
        if reason in _HELP and rejected[reason] >= _SHARE * total
    ]
    return [f"over half are rejected. {'; '.join(named)}"] if named else []


def advice(manifest: Manifest, split: str) -> list[str]:
    """`advise` on a split of a finished dataset; nothing of an imported one."""
    images = manifest.images[split]
    if manifest.config.is_imported:
        return []
    total = images["accepted"] + images["rejected"]
    return advise(manifest.rejections[split], total, manifest.config)
