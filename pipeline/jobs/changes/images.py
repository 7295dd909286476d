"""Finds the images that were added, removed, changed or rejected between two states of a dataset.

Shards whose file is the same in both states are not read.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from pipeline.dataset.folder import Dataset
from pipeline.dataset.records import ACCEPTED, read_rows
from pipeline.dataset.shards import index_file, layer_record
from pipeline.evaluate.result_files import result_folder
from pipeline.evaluate.summaries import read_summaries
from transforms.variants import EXTERNAL, MIXED, with_replicates

LISTED = 100
"""Largest number of images of each kind that are listed by name; the others are only counted."""

Row = dict[str, Any]
_Image = tuple[str, int]
"""(key of an image or object, its position, from 0, among the rows with the same key)."""


@dataclasses.dataclass
class ImageChanges:
    """Changes of the images of a split, as rows with `key`, `path` and `status`.

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

    added: list[Row] = dataclasses.field(default_factory=list)
    removed: list[Row] = dataclasses.field(default_factory=list)
    changed: list[Row] | None = dataclasses.field(default_factory=list)
    rejected: list[Row] = dataclasses.field(default_factory=list)
    accepted: list[Row] = dataclasses.field(default_factory=list)
    repaired: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def is_input(self) -> bool:
        """Whether the input has changed."""
        return bool(self.added or self.removed or self.changed)

    def to_json(self) -> dict[str, Any]:
        """Returns the number and the first images of each kind, and `repaired`."""
        lists = {
            name: None if rows is None else _listed(rows)
            for name, rows in (
                *(("added", self.added), ("removed", self.removed), ("changed", self.changed)),
                *(("rejected", self.rejected), ("accepted", self.accepted)),
            )
        }
        return {**lists, "repaired": dict(sorted(self.repaired.items()))}


def _listed(rows: list[Row]) -> dict[str, Any]:
    shown = sorted(rows, key=lambda row: (row["key"], row["path"]))[:LISTED]
    names = ("key", "path", "status")
    return {"count": len(rows), "images": [{name: row[name] for name in names} for row in shown]}


def compare_images(before: Dataset, after: Dataset, split: str) -> ImageChanges:
    """Compares the images of a split, which may exist in only one of the two datasets."""
    changes = ImageChanges()
    columns = ["key", "path", "status", "selected"]
    mixed, now_mixed = _background_columns(before), _background_columns(after)
    content: dict[_Image, Row] = {}
    for old_files, new_files in _pairs(before, after, split, _index_files):
        old = _read(before, old_files, [*columns, *mixed])
        new = _read(after, new_files, [*columns, *now_mixed])
        content |= new
        _compare(old, new, [name for name in mixed if name in now_mixed], changes)
    if _segmented_alike(before, after):
        changes.changed = [content[image] for image in _changed(before, after, split, content)]
    else:
        changes.changed = None
    return changes


def _compare(
    old: dict[_Image, Row], new: dict[_Image, Row], mixed: list[str], to: ImageChanges
) -> None:
    to.added += [new[image] for image in new.keys() - old.keys()]
    to.removed += [old[image] for image in old.keys() - new.keys()]
    for image, row in new.items():
        was = old.get(image)
        if row["status"] != ACCEPTED and (was is None or was["status"] == ACCEPTED):
            to.rejected.append(row)
        if was is None:
            continue
        if row["status"] == ACCEPTED != was["status"]:
            to.accepted.append(row)
        if row["selected"] and was["selected"]:
            for name in mixed:
                to.repaired[name.removesuffix("_bg_key")] += row[name] != was[name]


def _changed(
    before: Dataset, after: Dataset, split: str, content: dict[_Image, Row]
) -> Iterator[_Image]:
    """Yields the images in both states whose source differs."""
    columns = ["key", "source_digest"]
    for old_files, new_files in _pairs(before, after, split, _record_files):
        old, new = _read(before, old_files, columns), _read(after, new_files, columns)
        for image in sorted(old.keys() & new.keys()):
            # A changed source changes the file of its output shard, too, so `content` has the
            # image.
            if old[image]["source_digest"] != new[image]["source_digest"] and image in content:
                yield image


def _segmented_alike(before: Dataset, after: Dataset) -> bool:
    stages = (before.manifest.stages, after.manifest.stages)
    first, second = (stage.get("segment_fingerprint") for stage in stages)
    return first is not None and first == second


def _background_columns(dataset: Dataset) -> list[str]:
    replicates = dataset.manifest.config.compose.replicates
    drawn = (*MIXED, EXTERNAL) if EXTERNAL in dataset.variants else MIXED
    return [f"{name}_bg_key" for name in with_replicates(drawn, replicates)]


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


def _read(dataset: Dataset, files: list[str], columns: list[str]) -> dict[_Image, Row]:
    """Reads rows by image or object."""
    rows: dict[_Image, Row] = {}
    times = Counter[str]()
    for file in files:
        for row in read_rows(dataset.store, file, columns):
            rows[row["key"], times[row["key"]]] = row
            times[row["key"]] += 1
    return rows


Summary = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class State:
    """A dataset with results.

    Attributes:
      dataset: the dataset.
      summaries: summaries of its models, by their folder under `results/`.
    """

    dataset: Dataset
    summaries: dict[str, Summary]

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> State:
        """Returns the state of a dataset folder."""
        summaries = {
            result_folder(summary["model"], summary["evaluation"]): summary
            for summary in read_summaries(dataset)[0]
        }
        return cls(dataset, summaries)
