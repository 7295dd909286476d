"""Finds the images that were added, removed, changed or rejected between two states of a dataset.

Shards whose file is the same in both states are not read.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import ACCEPTED, read_rows
from pipeline.dataset.shards import index_file, layer_record
from transforms.variants import EXTERNAL, MIXED, with_replicates

_Image = tuple[str, int]
"""(key of an image or object, its position, from 0, among the rows with the same key)."""


class ImageRow(NamedTuple):
    """What the index says of an image or object.

    Attributes:
      key, path, status: columns of the index.
      selected: whether the variants have the image.
      backgrounds: for each mixed variant, the key of its background; None where there is none.
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
      added: images that are new.
      removed: images that are gone, with their last status.
      changed: images whose picture, annotation or class differs; None if this is unknown, because
        layers are now made in another way.
      rejected: images that are rejected now, but were accepted or absent before.
      accepted: images that are accepted now, but were rejected before.
      repaired: for each mixed variant, the number of images in both states that have another
        background.
    """

    added: list[ImageRow] = dataclasses.field(default_factory=list)
    removed: list[ImageRow] = dataclasses.field(default_factory=list)
    changed: list[ImageRow] | None = dataclasses.field(default_factory=list)
    rejected: list[ImageRow] = dataclasses.field(default_factory=list)
    accepted: list[ImageRow] = dataclasses.field(default_factory=list)
    repaired: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def is_input(self) -> bool:
        """Whether the input has changed."""
        return bool(self.added or self.removed or self.changed)


def compare_images(before: Dataset, after: Dataset, split: str) -> ImageChanges:
    """Compares the images of a split, which may exist in only one of the two datasets."""
    changes = ImageChanges()
    content: dict[_Image, ImageRow] = {}
    for old_files, new_files in _pairs(before, after, split, _index_files):
        old, new = _read_index(before, old_files), _read_index(after, new_files)
        content |= new
        _compare(old, new, changes)
    if _segmented_alike(before, after):
        changes.changed = [content[image] for image in _changed(before, after, split, content)]
    else:
        changes.changed = None
    return changes


def _compare(old: dict[_Image, ImageRow], new: dict[_Image, ImageRow], to: ImageChanges) -> None:
    to.added += [new[image] for image in new.keys() - old.keys()]
    to.removed += [old[image] for image in old.keys() - new.keys()]
    for image, row in new.items():
        was = old.get(image)
        if row.status != ACCEPTED and (was is None or was.status == ACCEPTED):
            to.rejected.append(row)
        if was is None:
            continue
        if row.status == ACCEPTED != was.status:
            to.accepted.append(row)
        if row.selected and was.selected:
            for name in was.backgrounds.keys() & row.backgrounds.keys():
                is_other = row.backgrounds[name] != was.backgrounds[name]
                to.repaired[name] = to.repaired.get(name, 0) + is_other


def _changed(
    before: Dataset, after: Dataset, split: str, content: dict[_Image, ImageRow]
) -> Iterator[_Image]:
    """Yields the images in both states whose source differs."""
    for old_files, new_files in _pairs(before, after, split, _record_files):
        old, new = _read_digests(before, old_files), _read_digests(after, new_files)
        for image in sorted(old.keys() & new.keys()):
            # A changed source changes the file of its output shard, too, so `content` has the
            # image.
            if old[image] != new[image] and image in content:
                yield image


def _segmented_alike(before: Dataset, after: Dataset) -> bool:
    stages = (before.manifest.stages, after.manifest.stages)
    first, second = (stage.get("segment_fingerprint") for stage in stages)
    return first is not None and first == second


def _index_files(dataset: Dataset, split: str) -> list[str]:
    return [index_file(split, s, len(dataset.shards(split))) for s in dataset.shards(split)]


def _record_files(dataset: Dataset, split: str) -> list[str]:
    return [layer_record(split, s) for s in range(dataset.manifest.shards[split].source)]


def _pairs(
    before: Dataset, after: Dataset, split: str, files: Callable[[Dataset, str], list[str]]
) -> Iterator[tuple[list[str], list[str]]]:
    """Yields pairs: files before and files after that hold the same images and may differ.

    If the states have different numbers of shards, all files are one pair, because an image may be
    in any of them.
    """
    old, new = (
        files(side, split) if split in side.manifest.shards else [] for side in (before, after)
    )
    if len(old) != len(new):
        yield old, new
        return
    digests = [{file.path: file.sha256 for file in side.manifest.files} for side in (before, after)]
    for first, second in zip(old, new, strict=True):
        if digests[0][first] != digests[1][second]:
            yield [first], [second]


def _read_index(dataset: Dataset, files: list[str]) -> dict[_Image, ImageRow]:
    """Reads the rows of index files."""
    drawn = (*MIXED, EXTERNAL) if EXTERNAL in dataset.variants else MIXED
    mixed = with_replicates(drawn, dataset.manifest.config.compose.replicates)
    columns = ["key", "path", "status", "selected"]
    rows = _read(dataset, files, [*columns, *(f"{name}_bg_key" for name in mixed)])
    return {
        image: ImageRow(
            **{name: row[name] for name in columns},
            backgrounds={name: row[f"{name}_bg_key"] for name in mixed},
        )
        for image, row in rows
    }


def _read_digests(dataset: Dataset, files: list[str]) -> dict[_Image, str]:
    """Reads the digests of sources from records of layers."""
    column = "source_digest"
    return {image: row[column] for image, row in _read(dataset, files, ["key", column])}


def _read(
    dataset: Dataset, files: list[str], columns: list[str]
) -> Iterator[tuple[_Image, dict[str, Any]]]:
    """Yields rows with their image or object."""
    times = Counter[str]()
    for file in files:
        for row in read_rows(dataset.store, file, columns):
            key = row["key"]
            yield (key, times[key]), row
            times[key] += 1
