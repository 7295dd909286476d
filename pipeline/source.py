"""Source images: what a split holds, and its shards.

The folder decides the class of an image; where there is none, its annotation does.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator

import numpy as np

from pipeline.layout import IMAGE_SUFFIXES, Layout, files_in
from pipeline.shards import ShardCounts
from transforms.annotations import AnnotationError, parse_annotation
from transforms.selection import lowest_hashes
from transforms.taxonomy import OUTSIDE, Taxonomy

ANY_FOLDER = "/"
"""Stands for any folder in the index of annotations; no folder can be called so."""


@dataclasses.dataclass(frozen=True)
class SourceImage:
    """One image of the input, and its annotation.

    Attributes:
      key: file name without its suffix.
      path: absolute path of the image.
      name: path relative to the input, with forward slashes, as records show it.
      wnid: class; empty if neither folder nor annotation tells.
      label: superclass label, `OUTSIDE` with an empty wnid.
      annotation: absolute path of the XML file, None if there is none.
    """

    key: str
    path: str
    name: str
    wnid: str
    label: int
    annotation: str | None


@dataclasses.dataclass(frozen=True)
class Listing:
    """All images of one split.

    Attributes:
      images: those of the taxonomy's classes, in order of `name`; after `--limit`.
      outside: number of images of other classes, which are only counted.
      other_files: number of files beside the images that are no images by their name.
    """

    images: tuple[SourceImage, ...]
    outside: int
    other_files: int


@dataclasses.dataclass(frozen=True)
class SplitTotals:
    """What the whole of a split holds. It travels with every shard, so that nothing that
    gets lost on the way goes unnoticed.

    Attributes:
      split: its name.
      counts: its numbers of shards.
      listed, outside, other_files: of its `Listing`; `listed` counts the images.
    """

    split: str
    counts: ShardCounts
    listed: int
    outside: int
    other_files: int


@dataclasses.dataclass(frozen=True)
class SourceShard:
    """The unit of work: a hash bucket of source images.

    Attributes:
      totals: of its split.
      shard: number of the bucket.
      images: in order of (key, name): of equal keys, the lowest path comes first.
    """

    totals: SplitTotals
    shard: int
    images: tuple[SourceImage, ...]


def image_classes(images: str, annotations: str | None) -> Iterator[tuple[str, str]]:
    """(path, wnid) of every image in a split's folder; the wnid is empty if nothing tells it.

    Args:
      images: folder of the images.
      annotations: folder of the annotations, None if there is none.

    Raises:
      OSError: a folder cannot be read, or an annotation that must tell the class cannot.
    """
    index = None if annotations is None else _index_annotations(annotations)
    for folder, file in files_in(images, IMAGE_SUFFIXES):
        if not file:
            continue
        wnid = folder
        if not wnid and index is not None:
            wnid = _annotated_wnid(index.get((ANY_FOLDER, file[: file.rindex(".")])))
        yield os.path.join(images, folder, file), wnid


def list_images(layout: Layout, taxonomy: Taxonomy, limit: int | None = None) -> Listing:
    """Lists a split.

    Args:
      layout: of `find_layout`.
      taxonomy: which classes are ours.
      limit: keep the images with the lowest key hashes of each superclass, so many.

    Raises:
      OSError: a folder cannot be read, or an annotation that must tell the class cannot.
    """
    annotations = _index_annotations(layout.annotations)
    images = []
    counts: Counter[str] = Counter()
    for folder, file in files_in(layout.images, IMAGE_SUFFIXES):
        if not file:
            counts["other"] += 1
            continue
        key = file[: file.rindex(".")]
        annotation = annotations.get((folder, key), annotations.get((ANY_FOLDER, key)))
        wnid = folder or _annotated_wnid(annotation)
        label = taxonomy.label_of(wnid)
        if label == OUTSIDE and wnid:
            counts["outside"] += 1
            continue
        path = os.path.join(layout.images, folder, file)
        name = os.path.relpath(path, layout.root).replace(os.sep, "/")
        images.append(SourceImage(key, path, name, wnid, label, annotation))
    if limit is not None:
        labels = np.asarray([image.label for image in images], np.int64)
        kept = lowest_hashes([i.key for i in images], labels, limit, seed=0, purpose="limit")
        images = [image for image, keep in zip(images, kept, strict=True) if keep]
    images.sort(key=lambda image: image.name)
    return Listing(tuple(images), outside=counts["outside"], other_files=counts["other"])


def _index_annotations(root: str) -> dict[tuple[str, str], str]:
    """Path of each annotation by (folder, key), and by (`ANY_FOLDER`, key): one that lies in
    no folder, or the only one of its key."""
    found: dict[tuple[str, str], str] = {}
    by_key: dict[str, list[str]] = {}
    for folder, name in files_in(root, (".xml",)):
        key = name[: -len(".xml")]
        path = os.path.join(root, folder, name)
        found[folder, key] = path
        by_key.setdefault(key, []).append(path)
    for key, paths in by_key.items():
        if ("", key) in found or len(paths) == 1:
            found[ANY_FOLDER, key] = found.get(("", key), paths[0])
    return found


def _annotated_wnid(annotation: str | None) -> str:
    """Class that an annotation names, "" if there is no readable one."""
    if annotation is None:
        return ""
    with open(annotation, "rb") as file:
        data = file.read()
    try:
        return parse_annotation(data).wnid or ""
    except AnnotationError:
        return ""


def make_shards(split: str, listing: Listing, counts: ShardCounts) -> list[SourceShard]:
    """Deals the images of a split into its source shards, empty ones included."""
    buckets: list[list[SourceImage]] = [[] for _ in range(counts.source)]
    for image in listing.images:
        buckets[counts.source_shard(image.key)].append(image)
    totals = SplitTotals(
        split=split,
        counts=counts,
        listed=len(listing.images),
        outside=listing.outside,
        other_files=listing.other_files,
    )
    return [
        SourceShard(
            totals=totals,
            shard=shard,
            images=tuple(sorted(bucket, key=lambda image: (image.key, image.name))),
        )
        for shard, bucket in enumerate(buckets)
    ]
